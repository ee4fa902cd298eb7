//! What each thread of the daemons may still do once they serve, however they were started: capabilities, new ones, system calls.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;

use flowbus_tests::daemon::binary;
use flowbus_tests::process::{Directory, wait_for};
use flowbus_tests::{Bus, Daemon, Helper, Namespace};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

const STARTS: usize = 20;

const NONE: u64 = 0;
const NET_ADMIN: u64 = 1 << 12;
/// Whose descriptors are whose: `CAP_DAC_READ_SEARCH` and `CAP_SYS_PTRACE`.
const LOOK: u64 = 1 << 2 | 1 << 19;

/// /proc/PID/task/TID/status.
type Status = BTreeMap<String, String>;

/// Each thread of a process by its name; none, where it has ended meanwhile.
fn threads(pid: u32) -> Vec<(String, Status)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok())
        .map(|text| {
            let lines = text.lines().filter_map(|line| line.split_once(":\t"));
            let status: Status =
                lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect();
            (status["Name"].clone(), status)
        })
        .collect()
}

fn set(status: &Status, name: &str) -> u64 {
    u64::from_str_radix(&status[name], 16).unwrap()
}

/// What a thread of this name may have, by hand.
fn allowed(thread: &str) -> u64 {
    match thread {
        "flowbusd" | "tracker" | "kernel" | "flowbus-control" | "worker" => NET_ADMIN,
        "attribution" => LOOK,
        other => panic!("a thread that nobody has thought of: {other}"),
    }
}

/// What a way to start leaves to all threads.
#[derive(Clone, Copy)]
struct Start {
    /// What programs could bring, where that is not its to give up; no program can be run.
    bounding: u64,
    inheritable: u64,
    /// The filters of system calls that it was started under.
    filters: u32,
}

const AS_ROOT: Start = Start { bounding: NONE, inheritable: NONE, filters: 0 };

/// Looks at each thread from the start on: from the moment when its system calls are confined, which is for good, it has what
/// it may have.
fn check(pid: u32, start: Start) {
    wait_for("all threads to be confined", || {
        let threads = threads(pid);
        let confined = |status: &Status| status["Seccomp_filters"].parse::<u32>().unwrap() > start.filters;
        let confined: Vec<_> = threads.iter().filter(|(_, status)| confined(status)).collect();
        for (name, status) in &confined {
            for held in ["CapEff", "CapPrm"] {
                assert_eq!(set(status, held) & !allowed(name), NONE, "{held} of {name}: {status:#?}");
            }
            for passed_on in ["CapInh", "CapAmb"] {
                assert_eq!(
                    set(status, passed_on) & !start.inheritable,
                    NONE,
                    "{passed_on} of {name}: {status:#?}"
                );
            }
            assert_eq!(set(status, "CapBnd") & !start.bounding, NONE, "CapBnd of {name}: {status:#?}");
            assert_eq!(status["NoNewPrivs"], "1", "{name}: {status:#?}");
        }
        (!threads.is_empty() && confined.len() == threads.len()).then_some(())
    });
}

/// What enters the namespace has become this program.
fn wait_for_program(process: &Daemon, program: &str) {
    wait_for("the program to run", || {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", process.pid())).unwrap();
        (name.trim() == program).then_some(())
    });
}

/// Starts flowbusd by this command several times: each ends confined, with the threads of its tier and this in its log.
fn start_often(mut command: impl FnMut() -> Command, bus: &Bus, tier: &str, start: Start) {
    for _ in 0..STARTS {
        let mut daemon = Daemon::spawn(&mut command());
        wait_for_program(&daemon, "flowbusd");
        check(daemon.pid(), start);
        daemon.wait_until_synchronized(bus);
        wait_for("its way to owners", || (bus.property("Attribution").ok()? == tier).then_some(()));
        // Nothing that came later has more.
        check(daemon.pid(), start);
        let looks = threads(daemon.pid()).iter().any(|(name, _)| name == "attribution");
        assert_eq!(looks, tier == "procfs", "the thread stays where it looks into /proc");
        assert!(!daemon.log().contains("powers"), "{}", daemon.log());
        daemon.stop();
    }
}

#[test]
fn by_hand_each_thread_keeps_what_its_tier_needs() {
    let (namespace, bus, directory) = (Namespace::tracked("powers"), Bus::start(), Directory::new("powers"));
    for (tier, attribution) in [("auto", "bpf"), ("procfs", "procfs"), ("none", "none")] {
        let file = directory.file("flowbusd.toml", &format!("attribution.tier = \"{tier}\""));
        let command = || {
            let mut command = Daemon::command(&namespace, &bus);
            command.arg("--config").arg(&file);
            command
        };
        start_often(command, &bus, attribution, AS_ROOT);
    }
}

#[test]
fn where_bpf_is_refused_as_in_containers_the_thread_that_looks_into_proc_keeps_no_more() {
    let (namespace, bus) = (Namespace::tracked("container"), Bus::start());
    let refused = [libc::SYS_bpf, libc::SYS_perf_event_open].map(|number| (number, vec![]));
    let (other, these) = (SeccompAction::Allow, SeccompAction::Errno(1));
    let machine = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(refused.into(), other, these, machine).unwrap();
    let filter = BpfProgram::try_from(filter).unwrap();
    let command = || {
        let mut command = Daemon::command(&namespace, &bus);
        command.args(["--config", "/dev/null"]);
        command
    };
    thread::scope(|scope| {
        // What this thread starts is under its filter.
        scope.spawn(|| {
            seccompiler::apply_filter(&filter).unwrap();
            start_often(command, &bus, "procfs", Start { filters: 1, ..AS_ROOT });
        });
    });
}

#[test]
fn where_no_control_groups_are_seen_the_thread_that_looks_into_proc_keeps_no_more() {
    let (namespace, bus) = (Namespace::tracked("netns"), Bus::start());
    let path = namespace.path();
    // It mounts another /sys.
    let command = || {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", path.rsplit('/').next().unwrap()]).arg(binary("flowbusd"));
        command.args(["--config", "/dev/null", "--bus", &bus.address()]);
        command
    };
    start_often(command, &bus, "procfs", AS_ROOT);
}

#[test]
fn an_ordinary_user_with_one_capability_keeps_that_one_and_nothing_is_wrong() {
    let (namespace, bus, directory) =
        (Namespace::tracked("ambient"), Bus::start(), Directory::new("ambient"));
    // Where everybody can reach it.
    let program = directory.path().join("flowbusd");
    std::fs::copy(binary("flowbusd"), &program).unwrap();
    for path in [directory.path(), &program] {
        std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let command = || {
        let mut command = namespace.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.args(["--inh-caps=-all,+net_admin", "--ambient-caps=+net_admin"]).arg(&program);
        command.args(["--config", "/dev/null", "--bus", &bus.address()]);
        command
    };
    let start = Start { bounding: u64::MAX, inheritable: NET_ADMIN, filters: 0 };
    start_often(command, &bus, "procfs", start);
}

#[test]
fn the_helper_keeps_one_capability_by_hand() {
    let (namespace, bus) = (Namespace::tracked("helper"), Bus::start());
    for _ in 0..STARTS {
        let helper = Daemon::spawn(Helper::command(&namespace, &bus).args(["--user", "root"]));
        wait_for_program(&helper, "flowbus-control");
        check(helper.pid(), AS_ROOT);
        helper.stop();
    }
}
