//! From the loader to the daemon: descriptors over a socket.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Instant;

use ctnetlink::Socket;
use flowbus_attribution::events::{EventFilter, FilterError, has_filter};
use flowbus_attribution::handover::{Handed, HandoverError, Loader, Request};
use flowbus_attribution::{DescriptorError, Kind, Programs};
use flowbus_tests::daemon::binary;
use flowbus_tests::process::{DEADLINE, Directory};
use flowbus_tests::{Namespace, Sockets};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The socket of a daemon, which the test plays.
struct Daemon {
    directory: Directory,
    listener: OwnedFd,
}

impl Daemon {
    fn listen() -> Self {
        let directory = Directory::new("handover");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(directory.path().join("socket")).unwrap()).unwrap();
        rustix::net::listen(&listener, 4).unwrap();
        Self { directory, listener }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn accept(&self, request: Request) -> Result<Loader, HandoverError> {
        readable(&self.listener);
        Loader::accept(self.listener.as_fd(), request).map(|loader| loader.expect("somebody has connected"))
    }
}

/// What a daemon without programs asks for, and one that has them.
const PROGRAMS: Request = Request { programs: true, snapshot: true, filter: false };
const SNAPSHOT: Request = Request { programs: false, snapshot: true, filter: false };

fn readable(descriptor: &impl AsFd) {
    let timeout = Timespec::try_from(DEADLINE).unwrap();
    let ready = poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "nothing came");
}

fn receive(loader: &Loader) -> Result<Handed, HandoverError> {
    readable(loader);
    loader.receive().map(|handed| handed.expect("it is all in one message"))
}

fn start_loader(namespace: &Namespace, socket: &Path) -> Child {
    let mut command = namespace.command(binary("flowbus-attribution").to_str().unwrap());
    command.arg("--socket").arg(socket).stderr(Stdio::piped()).spawn().unwrap()
}

/// What the loader said, and whether it went well.
fn end(mut loader: Child) -> (String, bool) {
    let mut text = String::new();
    loader.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (text, loader.wait().unwrap().success())
}

#[test]
fn the_loader_hands_over_programs_and_ends_and_they_run_on() {
    let (namespace, daemon) = (Namespace::new("handover"), Daemon::listen());
    let loader = start_loader(&namespace, &daemon.path());
    let handed = receive(&daemon.accept(PROGRAMS).unwrap()).unwrap();
    let (text, success) = end(loader);
    assert!(success && text.contains("flowbusd has its programs"), "{text}");
    let mut sockets = Sockets::of(handed.programs.unwrap(), handed.snapshot.unwrap());
    for (name, reason) in sockets.report().failures() {
        assert!(
            text.contains(&format!("the kernel refuses the program {name}")) && text.contains(reason),
            "{text}"
        );
    }
    let listener = namespace.enter(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let events = sockets.events_with(&namespace, 1, |kind| kind == Kind::Listen);
    assert_eq!(events[0].local, listener.local_addr().unwrap());
    assert_eq!(events[0].network_namespace, sockets.report().network_namespace, "the loader's own namespace");

    // The service manager keeps them like this, and gives them back in the daemon's next life.
    let kept: Vec<_> = (sockets.programs().named())
        .map(|(name, descriptor)| (name.to_owned(), descriptor.try_clone_to_owned().unwrap()))
        .collect();
    assert!(kept.iter().all(|(name, _)| name.starts_with("bpf-") && Programs::owns(name)));
    sockets.drain();
    drop(sockets);
    drop(listener);
    // A daemon that was taken over may have them kept with something else in the place of one: a file that can be cut under its
    // reader, a program that is missing.
    let again = || kept.iter().map(|(name, descriptor)| (name.clone(), descriptor.try_clone().unwrap()));
    for name in ["bpf-ring", "bpf-statistics", "bpf-link", "bpf-program"] {
        let place = kept.iter().position(|(other, _)| other == name).unwrap();
        let mut replaced: Vec<_> = again().collect();
        let file = rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        replaced[place].1 = file;
        let refused = Programs::from_named(replaced).unwrap_err();
        assert!(matches!(refused, DescriptorError::Kind(other) if other == name), "{refused:?}");
        let missing = again().enumerate().filter(|(index, _)| *index != place).map(|(_, one)| one);
        let refused = Programs::from_named(missing).unwrap_err();
        assert!(matches!(refused, DescriptorError::Missing(other) if other == name), "{refused:?}");
    }
    let programs = Programs::from_named(kept.into_iter().rev()).unwrap();

    // The daemon asks for a snapshot alone then.
    let second = namespace.enter(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let loader = start_loader(&namespace, &daemon.path());
    let handed = receive(&daemon.accept(SNAPSHOT).unwrap()).unwrap();
    let (text, success) = end(loader);
    assert!(success && text.contains("new snapshot"), "{text}");
    assert!(handed.programs.is_none());
    let mut sockets = Sockets::of(programs, handed.snapshot.unwrap());
    let open = sockets.open_before(&namespace);
    assert!(open.iter().any(|event| event.local == second.local_addr().unwrap()), "{open:#?}");
    // What happened while nobody read has waited in the ring.
    let events = sockets.events_with(&namespace, 1, |kind| kind == Kind::Listen);
    assert!(events.iter().any(|event| event.kind == Kind::Release), "{events:#?}");
}

#[test]
fn the_loader_hands_over_the_filter_of_the_event_socket_alone_or_with_the_rest() {
    let (namespace, daemon) = (Namespace::new("handover"), Daemon::listen());
    for request in [Request { filter: true, ..Request::default() }, Request { filter: true, ..PROGRAMS }] {
        let loader = start_loader(&namespace, &daemon.path());
        let handed = receive(&daemon.accept(request).unwrap()).unwrap();
        let (text, success) = end(loader);
        assert!(success && text.contains("flowbusd gets its events by a ring"), "{text}");
        assert_eq!(
            (handed.programs.is_some(), handed.snapshot.is_some()),
            (request.programs, request.snapshot)
        );
        let filter = handed.filter.unwrap();
        let socket = namespace.enter(|| Socket::open().unwrap());
        filter.attach(socket.as_fd()).unwrap();
        assert!(has_filter(socket.as_fd()).unwrap());
        // Whoever was taken over may have something else kept by these names, or one more.
        let kept = || filter.named().map(|(name, fd)| (name.to_owned(), fd.try_clone_to_owned().unwrap()));
        assert!(EventFilter::from_named(kept()).is_ok());
        for (place, (name, fd)) in kept().enumerate() {
            let mut replaced: Vec<_> = kept().collect();
            replaced[place].1 = rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let refused = EventFilter::from_named(replaced).unwrap_err();
            assert!(matches!(refused, FilterError::Kind(other) if other == name), "{refused:?}");
            let refused = EventFilter::from_named(kept().chain([(name, fd)])).unwrap_err();
            assert!(matches!(refused, FilterError::Another(_)), "{refused:?}");
            let missing = kept().enumerate().filter(|(index, _)| *index != place).map(|(_, one)| one);
            let refused = EventFilter::from_named(missing).unwrap_err();
            assert!(matches!(refused, FilterError::Missing(_)), "{refused:?}");
        }
    }
}

#[test]
fn a_loader_that_has_no_filter_hands_over_the_rest() {
    let (namespace, daemon) = (Namespace::new("nofilter"), Daemon::listen());
    let mut command = namespace.command("setpriv");
    let loader =
        command.args(["--bounding-set", "-all", "--inh-caps", "-all"]).arg(binary("flowbus-attribution"));
    let loader = loader.arg("--socket").arg(daemon.path()).stderr(Stdio::piped()).spawn().unwrap();
    let handed = receive(&daemon.accept(Request { filter: true, ..Request::default() }).unwrap()).unwrap();
    let (text, success) = end(loader);
    assert!(success && text.contains("not by a ring") && text.contains("CAP_BPF"), "{text}");
    assert!(handed.filter.is_none() && handed.programs.is_none() && handed.snapshot.is_none());
}

#[test]
fn a_loader_without_capabilities_says_why_and_hands_over_nothing() {
    let (namespace, daemon) = (Namespace::new("nocaps"), Daemon::listen());
    let mut command = namespace.command("setpriv");
    let loader =
        command.args(["--bounding-set", "-all", "--inh-caps", "-all"]).arg(binary("flowbus-attribution"));
    let loader = loader.arg("--socket").arg(daemon.path()).stderr(Stdio::piped()).spawn().unwrap();
    let connection = daemon.accept(PROGRAMS).unwrap();
    assert!(matches!(receive(&connection), Err(HandoverError::Closed)));
    let (text, success) = end(loader);
    assert!(!success && text.contains("CAP_BPF"), "{text}");
}

#[test]
fn only_root_is_believed() {
    let daemon = Daemon::listen();
    // The service's socket is root's alone; this is for the day that somebody's is not.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(daemon.path(), std::fs::Permissions::clone(&mode)).unwrap();
    std::fs::set_permissions(daemon.directory.path(), mode).unwrap();
    let mut command = Namespace::host().command("setpriv");
    let script = "use Socket; socket(S, AF_UNIX, SOCK_SEQPACKET, 0); connect(S, pack_sockaddr_un($ARGV[0])) or die; sysread(S, $x, 1)";
    let mut stranger = command
        .args(["--reuid=4242", "--clear-groups", "perl", "-MSocket", "-e", script])
        .arg(daemon.path())
        .spawn()
        .unwrap();
    let refused = daemon.accept(PROGRAMS);
    assert!(matches!(refused, Err(HandoverError::Stranger(4242))), "{refused:?}");
    stranger.wait().unwrap();
}

#[test]
fn a_loader_whose_daemon_goes_away_ends_and_leaves_nothing() {
    let (namespace, daemon) = (Namespace::new("gone"), Daemon::listen());
    let loader = start_loader(&namespace, &daemon.path());
    readable(&daemon.listener);
    let started = Instant::now();
    drop(daemon);
    let (text, success) = end(loader);
    assert!(!success && text.contains("flowbusd gets nothing"), "{text} after {:?}", started.elapsed());
}

#[test]
fn descriptors_that_are_no_programs_are_refused() {
    let nothing = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let named = |names: &[&str]| {
        Programs::from_named(names.iter().map(|name| ((*name).to_owned(), nothing())))
            .map(|_| ())
            .unwrap_err()
    };
    assert!(matches!(named(&["bpf-ring"]), DescriptorError::Missing("bpf-statistics")));
    assert!(matches!(named(&["bpf-rong"]), DescriptorError::Unknown(name) if name == "bpf-rong"));
    let all = named(&["bpf-ring", "bpf-statistics", "bpf-report", "bpf-link"]);
    assert!(matches!(all, DescriptorError::Kind("bpf-ring")), "{all:?}");
}

#[test]
fn a_listener_to_which_nobody_can_connect_is_refused() {
    use flowbus_attribution::handover::check_listener;
    use rustix::net::{AddressFamily, Shutdown, SocketType, shutdown, socket};
    let daemon = Daemon::listen();
    assert!(check_listener(daemon.listener.as_fd()).is_ok());
    let others = [
        OwnedFd::from(std::fs::File::open("/dev/null").unwrap()),
        std::io::pipe().unwrap().0.into(),
        std::os::unix::net::UnixDatagram::unbound().unwrap().into(),
        socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap(),
    ];
    for other in others {
        assert!(matches!(check_listener(other.as_fd()), Err(HandoverError::Listener(_))), "{other:?}");
    }
    // The descriptor would be readable for ever.
    shutdown(&daemon.listener, Shutdown::Both).unwrap();
    assert!(matches!(check_listener(daemon.listener.as_fd()), Err(HandoverError::Listener(_))));
}
