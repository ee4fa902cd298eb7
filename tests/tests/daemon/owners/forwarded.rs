//! Flows that only pass through, and the processes of this machine at their ends: in other network namespaces.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;

use flowbus_tests::daemon::UNATTRIBUTED;
use flowbus_tests::network::{
    BOTH_NAT, CHROME, MASQUERADED, PLAIN, REDIRECTED, ROUTER_V4, ROUTER_V6, SERVER_V4, SERVER_V6,
    socket_address,
};
use flowbus_tests::process::{DEADLINE, wait_for};
use flowbus_tests::{Bus, Daemon, Kept, Namespace, Network};
use rustix::process::Signal;
use serde_json::Value;

use super::life::DEFAULT;
use super::{flows, listen, on_thread, owned, this_process, who};

/// The client's address.
const CLIENT_V4: &str = "198.18.0.2";

pub(super) fn inode(namespace: &Namespace) -> u64 {
    std::fs::metadata(namespace.path()).unwrap().ino()
}

pub(super) fn forwarded(name: &str) -> (u64, String, String) {
    (this_process(), name.to_owned(), "forwarded".to_owned())
}

/// Both ends of the flow are threads of this process, named client and server, in these namespaces.
pub(super) fn assert_between(flow: &Value, client: &Namespace, server: &Namespace) {
    assert_eq!(who(&flow["initiator"]), forwarded("client"), "{flow:#}");
    assert_eq!(who(&flow["responder"]), forwarded("server"), "{flow:#}");
    assert_eq!(flow["initiator"]["network_namespace"], inode(client), "{flow:#}");
    assert_eq!(flow["responder"]["network_namespace"], inode(server), "{flow:#}");
}

/// A connection from the client to a listener of the server, and who holds it.
fn connection(network: &Network, listener: &TcpListener, to: SocketAddr) -> (TcpStream, TcpStream) {
    let client = on_thread(&network.client, "client", || TcpStream::connect(to).unwrap());
    let (server, _) = on_thread(&network.server, "server", || listener.accept().unwrap());
    (client, server)
}

#[test]
fn connections_of_other_namespaces_have_owners_through_every_translation() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&network.router, &bus);
    let mut held = Vec::new();
    for (port, address, listens) in [
        (PLAIN, SERVER_V4, (SERVER_V4, PLAIN)),
        (MASQUERADED, SERVER_V4, (SERVER_V4, MASQUERADED)),
        (REDIRECTED, ROUTER_V4, (SERVER_V4, PLAIN)),
        (BOTH_NAT, ROUTER_V4, (SERVER_V4, PLAIN)),
        (MASQUERADED, SERVER_V6, (SERVER_V6, MASQUERADED)),
        (BOTH_NAT, ROUTER_V6, (SERVER_V6, PLAIN)),
    ] {
        let listener = listen(&network.server, &socket_address(listens.0, listens.1).to_string());
        held.push(connection(&network, &listener, socket_address(address, port)));
        let flow = wait_for("both owners", || {
            let mut flows = flows(&bus);
            flows.retain(|flow| flow["dport"] == port && flow["dst"] == address);
            flows.pop().filter(|flow| flow["initiator"].is_object() && flow["responder"].is_object())
        });
        assert_between(&flow, &network.client, &network.server);
    }
    let none = bus.list("ListActive", &[["pid", "u", "1"]]).unwrap();
    assert!(none.is_empty(), "{none:?}");
    daemon.stop();
}

/// A UDP socket in a namespace, bound to this address.
pub(super) fn udp(namespace: &Namespace, name: &str, address: &str) -> UdpSocket {
    on_thread(namespace, name, || {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    })
}

/// The client sends a question to an address by which it comes to the server, which answers to where it came from.
fn ask(network: &Network, client: &UdpSocket, to: SocketAddr, server: &UdpSocket) {
    on_thread(&network.client, "client", || client.send_to(b"question", to).unwrap());
    on_thread(&network.server, "server", || {
        let mut buffer = [0; 16];
        let (_, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"answer", from).unwrap();
    });
}

/// The flow to this port of this address, once it has an initiator and the server has answered.
fn answered(bus: &Bus, address: &str, port: u16) -> Value {
    wait_for("both owners, the server having answered", || {
        let mut flows = flows(bus);
        flows.retain(|flow| flow["dport"] == port && flow["dst"] == address);
        flows.pop().filter(|flow| {
            flow["initiator"].is_object() && flow["responder"]["comm"].as_str() == Some("server")
        })
    })
}

#[test]
fn datagrams_of_other_namespaces_have_owners() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&network.router, &bus);
    for (port, bound, client_bound, to) in [
        (PLAIN, format!("{SERVER_V4}:{PLAIN}"), "198.18.0.2:0", SERVER_V4),
        (MASQUERADED, format!("{SERVER_V4}:{MASQUERADED}"), "198.18.0.2:0", SERVER_V4),
        (MASQUERADED, format!("[{SERVER_V6}]:{MASQUERADED}"), "[2001:2:0:1::2]:0", SERVER_V6),
    ] {
        let server = udp(&network.server, "server", &bound);
        let client = udp(&network.client, "client", client_bound);
        ask(&network, &client, socket_address(to, port), &server);
        assert_between(&answered(&bus, to, port), &network.client, &network.server);
    }
    daemon.stop();
}

#[test]
fn sockets_without_an_address_have_their_datagrams_through_every_translation() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&network.router, &bus);
    // Servers of both families; their namespace has two IPv4 addresses.
    let [plain, masqueraded] =
        [PLAIN, MASQUERADED].map(|port| udp(&network.server, "server", &format!("[::]:{port}")));
    for (any, server, router) in [("0.0.0.0", SERVER_V4, ROUTER_V4), ("[::]", SERVER_V6, ROUTER_V6)] {
        for (socket, address, port) in [
            (&plain, server, PLAIN),
            (&masqueraded, server, MASQUERADED),
            (&plain, router, REDIRECTED),
            (&plain, router, BOTH_NAT),
        ] {
            let client = udp(&network.client, "client", &format!("{any}:0"));
            ask(&network, &client, socket_address(address, port), socket);
            assert_between(&answered(&bus, address, port), &network.client, &network.server);
        }
    }
    // A resolver's client: a socket of both families that was never bound.
    let server = udp(&network.server, "server", &format!("{SERVER_V4}:{CHROME}"));
    let client = on_thread(&network.client, "client", || {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET6, rustix::net::SocketType::DGRAM, None);
        UdpSocket::from(socket.unwrap())
    });
    let mapped = SERVER_V4.parse::<Ipv4Addr>().unwrap().to_ipv6_mapped();
    ask(&network, &client, SocketAddr::from((mapped, CHROME)), &server);
    assert_between(&answered(&bus, SERVER_V4, CHROME), &network.client, &network.server);
    daemon.stop();
}

/// Two namespaces with one address, behind a router that tells them apart by zone and mark.
fn twins(router: &Namespace) -> [Namespace; 2] {
    let twins = [Namespace::new("twin1"), Namespace::new("twin2")];
    for (number, twin) in (1..).zip(&twins) {
        router.run(&format!("ip link add br{number} type bridge"));
        router.run(&format!("ip link set br{number} up"));
        router.run(&format!("ip address add 198.18.5.1/24 dev br{number}"));
        router.run(&format!("ip link add port{number} type veth peer name up0 netns {}", twin.path()));
        router.run(&format!("ip link set port{number} master br{number} up"));
        router.run(&format!("ip rule add fwmark {number} table 10{number} priority {number}"));
        router.run(&format!("ip route add 198.18.5.0/24 dev br{number} table 10{number}"));
        router.sysctl(&format!("net.ipv4.conf.br{number}.rp_filter"), "0");
        twin.run("ip link set up0 up");
        twin.run("ip address add 198.18.5.2/24 dev up0");
        twin.run("ip route add default via 198.18.5.1");
    }
    router.sysctl("net.ipv4.conf.all.rp_filter", "0");
    router.nft(
        "table ip twins {
           chain zones { type filter hook prerouting priority raw;
             iifname br1 ct original zone set 1; iifname br2 ct original zone set 2; };
           chain marks { type filter hook prerouting priority mangle;
             iifname br1 ct mark set 1; iifname br2 ct mark set 2; iifname down2 meta mark set ct mark; };
           chain source { type nat hook postrouting priority srcnat; oifname down2 masquerade; };
         }",
    );
    twins
}

#[test]
fn of_two_namespaces_with_one_address_never_the_wrong_one_is_named() {
    let network = Network::new();
    let twins = twins(&network.router);
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&network.router, &bus);
    let listener = listen(&network.server, &format!("{SERVER_V4}:{PLAIN}"));
    let to = socket_address(SERVER_V4, PLAIN);
    let flow = |port: u16| {
        let mut flows = flows(&bus);
        flows.retain(|flow| flow["sport"] == port && flow["dport"] == PLAIN);
        flows
    };
    let mut held = Vec::new();
    for (twin, name) in twins.iter().zip(["one", "two"]) {
        let client = on_thread(twin, name, || TcpStream::connect(to).unwrap());
        let port = client.local_addr().unwrap().port();
        let flow = wait_for("the client", || flow(port).pop().filter(|flow| flow["initiator"].is_object()));
        assert_eq!(who(&flow["initiator"]), forwarded(name), "{flow:#}");
        assert_eq!(flow["initiator"]["network_namespace"], inode(twin), "{flow:#}");
        held.push((client, listener.accept().unwrap()));
    }
    // Both use one port: whose the second flow is cannot be known.
    let port = 40_404;
    for (twin, name) in twins.iter().zip(["one", "two"]) {
        let client = on_thread(twin, name, || {
            let socket =
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)
                    .unwrap();
            rustix::net::bind(&socket, &SocketAddr::from(([198, 18, 5, 2], port))).unwrap();
            rustix::net::connect(&socket, &to).unwrap();
            TcpStream::from(socket)
        });
        held.push((client, listener.accept().unwrap()));
    }
    let both = wait_for("both flows, established", || {
        let flows = flow(port);
        (flows.iter().filter(|flow| flow["state"] == "ESTABLISHED").count() == 2).then_some(flows)
    });
    for flow in both {
        let twin = &twins[usize::from(flow["orig_zone"] == 2)];
        if flow["initiator"].is_object() {
            assert_eq!(flow["initiator"]["network_namespace"], inode(twin), "{flow:#}");
        }
    }
    let ambiguous =
        || bus.monitor_call("GetStatistics", &[]).unwrap()[0]["owners_ambiguous"].as_u64().unwrap();
    let before = wait_for("it is counted", || Some(ambiguous()).filter(|count| *count > 0));

    // Datagrams of sockets without an address: by a port of their own, and by the same.
    for (twin, name) in twins.iter().zip(["one", "two"]) {
        let client = udp(twin, name, "0.0.0.0:0");
        on_thread(twin, name, || client.send_to(b"x", to).unwrap());
        let port = client.local_addr().unwrap().port();
        let flow = wait_for("the client", || flow(port).pop().filter(|flow| flow["initiator"].is_object()));
        assert_eq!(who(&flow["initiator"]), forwarded(name), "{flow:#}");
        assert_eq!(flow["initiator"]["network_namespace"], inode(twin), "{flow:#}");
    }
    let port = 40_405;
    let clients = twins.each_ref().map(|twin| udp(twin, "twin", &format!("0.0.0.0:{port}")));
    for (twin, client) in twins.iter().zip(&clients) {
        on_thread(twin, "twin", || client.send_to(b"x", to).unwrap());
    }
    for flow in wait_for("both flows", || Some(flow(port)).filter(|flows| flows.len() == 2)) {
        let twin = &twins[usize::from(flow["orig_zone"] == 2)];
        if flow["initiator"].is_object() {
            assert_eq!(flow["initiator"]["network_namespace"], inode(twin), "{flow:#}");
        }
    }
    wait_for("these are counted", || (ambiguous() > before).then_some(()));
    daemon.stop();
}

/// A namespace without a way out, with the addresses of both ends: what it sends reaches nobody else.
fn pretender() -> Namespace {
    let namespace = Namespace::new("pretender");
    namespace.run("ip link set lo up");
    for address in [CLIENT_V4, SERVER_V4] {
        namespace.run(&format!("ip address add {address}/32 dev lo"));
    }
    namespace
}

/// A TCP connection from this port.
fn connect_from(namespace: &Namespace, name: &str, port: u16, to: SocketAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    on_thread(namespace, name, || {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &socket_address(CLIENT_V4, port)).unwrap();
        connect(&socket, &to).unwrap();
        TcpStream::from(socket)
    })
}

#[test]
fn who_gives_himself_the_address_of_a_container_is_named_for_none_of_its_flows() {
    let network = Network::new();
    let pretender = pretender();
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&network.router, &bus);
    let statistic = |key: &str| bus.monitor_call("GetStatistics", &[]).unwrap()[0][key].as_u64().unwrap();
    let flow = |port: u16| flows(&bus).into_iter().find(|flow| flow["sport"] == port).unwrap();

    // Datagrams: by a socket that is bound, and by one that is connected.
    let server = udp(&network.server, "server", &format!("{SERVER_V4}:{PLAIN}"));
    let to = socket_address(SERVER_V4, PLAIN);
    for (port, is_connected) in [(40_501, false), (40_502, true)] {
        let before = statistic("owners_ambiguous");
        let client = udp(&network.client, "client", &format!("{CLIENT_V4}:{port}"));
        ask(&network, &client, to, &server);
        let named = wait_for("the client", || Some(flow(port)).filter(|flow| flow["initiator"].is_object()));
        assert_eq!(who(&named["initiator"]), forwarded("client"), "{named:#}");
        let other = udp(&pretender, "pretender", &format!("{CLIENT_V4}:{port}"));
        on_thread(&pretender, "pretender", || {
            if is_connected {
                other.connect(to).unwrap();
                other.send(b"x").unwrap();
            } else {
                other.send_to(b"x", to).unwrap();
            }
        });
        wait_for("both are known", || (statistic("owners_ambiguous") > before).then_some(()));
        let doubted = flow(port);
        assert!(doubted["initiator"].is_null(), "{doubted:#}");
    }

    // A connection that is over: its sockets have been forgotten, and its flow is still there.
    let port = 40_503;
    let listener = listen(&network.server, &to.to_string());
    let client = connect_from(&network.client, "client", port, to);
    let (accepted, _) = on_thread(&network.server, "server", || listener.accept().unwrap());
    assert_between(&owned(&bus, PLAIN), &network.client, &network.server);
    let before = statistic("owners_expired");
    drop((client, accepted));
    // What has ended is forgotten when something is reported.
    let witness = udp(&network.client, "client", "0.0.0.0:0");
    let mut destinations = 1..u16::MAX;
    wait_for("its sockets are forgotten", || {
        let to = socket_address(SERVER_V4, destinations.next().unwrap());
        on_thread(&network.client, "client", || witness.send_to(b"x", to).unwrap());
        (statistic("owners_expired") >= before + 2).then_some(())
    });
    let theirs = listen(&pretender, &to.to_string());
    let other = connect_from(&pretender, "pretender", port, to);
    let accepted = on_thread(&pretender, "pretender", || theirs.accept().unwrap());
    // A later one has its owners: what was reported before has been applied.
    let later = listen(&network.server, &format!("{SERVER_V4}:{MASQUERADED}"));
    let held = connection(&network, &later, socket_address(SERVER_V4, MASQUERADED));
    owned(&bus, MASQUERADED);
    let over = flows(&bus)
        .into_iter()
        .find(|flow| flow["sport"] == port && flow["protocol"] == "tcp" && flow["state"] == "TIME_WAIT")
        .unwrap();
    assert_between(&over, &network.client, &network.server);
    drop((other, accepted, held));
    daemon.stop();
}

#[test]
fn owners_of_forwarded_flows_are_found_by_a_daemon_that_comes_later_and_survive_its_kill() {
    let network = Network::new();
    let listener = listen(&network.server, &format!("{SERVER_V4}:{PLAIN}"));
    let held = connection(&network, &listener, socket_address(SERVER_V4, PLAIN));
    let bus = Bus::start();
    let kept = Kept::open(&network.router, 1 << 20);
    let mut daemon = kept.spawn_with(&network.router, &bus, DEFAULT);
    daemon.wait_until_attributed(&bus);
    let before = owned(&bus, PLAIN);
    for end in ["initiator", "responder"] {
        assert_eq!(before[end]["pid"].as_u64(), Some(this_process()), "{before:#}");
        assert_eq!(before[end]["confidence"], "forwarded", "{before:#}");
    }
    daemon.signal(Signal::KILL);
    let _ = daemon.ended();
    // The next life has no programs: what it shows it has from the one before.
    let mut daemon = kept.spawn_with(&network.router, &bus, UNATTRIBUTED);
    daemon.wait_until_synchronized(&bus);
    let after = owned(&bus, PLAIN);
    for key in ["id", "initiator", "responder"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    daemon.stop();
    drop(held);
}

#[test]
fn five_thousand_short_connections_between_namespaces_have_their_owners() {
    const COUNT: usize = 5_000;
    const AT_ONCE: usize = 500;
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&network.router, &bus);
    let listener = listen(&network.server, &format!("{SERVER_V4}:{PLAIN}"));
    let to = socket_address(SERVER_V4, PLAIN);
    let statistics = || bus.monitor_call("GetStatistics", &[]).unwrap()[0].clone();
    for made in (AT_ONCE..=COUNT).step_by(AT_ONCE) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                on_thread(&network.server, "server", || (0..AT_ONCE).for_each(|_| drop(listener.accept())))
            });
            on_thread(&network.client, "client", || {
                (0..AT_ONCE).for_each(|_| drop(TcpStream::connect(to).unwrap()));
            });
        });
        // However busy the machine is, no buffer is to run over.
        wait_for("these to be known", || {
            let known = ["active", "closed"].map(|name| statistics()[name].as_u64().unwrap());
            (known.iter().sum::<u64>() >= made as u64).then_some(())
        });
    }
    wait_for("all have their owners", || {
        let flows = ["ListActive", "ListClosed"].map(|list| bus.list(list, &[]).unwrap()).concat();
        let is_unowned = |flow: &&Value| {
            ["initiator", "responder"].iter().any(|end| flow[*end]["pid"].as_u64() != Some(this_process()))
        };
        let unowned = flows.iter().find(is_unowned);
        if let Some(flow) = unowned {
            eprintln!("{flow:#} of {} flows, {:#}", flows.len(), statistics());
        }
        (flows.len() >= COUNT && unowned.is_none()).then_some(())
    });
    daemon.stop();
}
