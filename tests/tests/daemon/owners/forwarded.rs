//! Flows that only pass through, and the processes of this machine at their ends: in other network namespaces.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use flowbus_tests::daemon::UNATTRIBUTED;
use flowbus_tests::network::{
    BOTH_NAT, MASQUERADED, PLAIN, REDIRECTED, ROUTER_V4, ROUTER_V6, SERVER_V4, SERVER_V6, socket_address,
};
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Kept, Namespace, Network};
use rustix::process::Signal;
use serde_json::Value;

use super::life::DEFAULT;
use super::{flows, listen, on_thread, owned, this_process, who};

fn inode(namespace: &Namespace) -> u64 {
    std::fs::metadata(namespace.path()).unwrap().ino()
}

fn forwarded(name: &str) -> (u64, String, String) {
    (this_process(), name.to_owned(), "forwarded".to_owned())
}

/// Both ends of the flow are threads of this process, named client and server, in these namespaces.
fn assert_between(flow: &Value, client: &Namespace, server: &Namespace) {
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

#[test]
fn datagrams_of_other_namespaces_have_owners() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&network.router, &bus);
    let udp = |namespace: &Namespace, name: &str, address: &str| {
        on_thread(namespace, name, || UdpSocket::bind(address).unwrap())
    };
    for (port, bound, client_bound, to) in [
        (PLAIN, format!("{SERVER_V4}:{PLAIN}"), "198.18.0.2:0", SERVER_V4),
        (MASQUERADED, format!("{SERVER_V4}:{MASQUERADED}"), "198.18.0.2:0", SERVER_V4),
        (MASQUERADED, format!("[{SERVER_V6}]:{MASQUERADED}"), "[2001:2:0:1::2]:0", SERVER_V6),
    ] {
        let server = udp(&network.server, "server", &bound);
        let client = udp(&network.client, "client", client_bound);
        let to = socket_address(to, port);
        on_thread(&network.client, "client", || client.send_to(b"question", to).unwrap());
        on_thread(&network.server, "server", || {
            let mut buffer = [0; 16];
            let (_, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(b"answer", from).unwrap();
        });
        let flow = wait_for("both owners, the server having answered", || {
            let mut flows = flows(&bus);
            flows.retain(|flow| flow["dport"] == port && flow["dst"] == to.ip().to_string());
            flows.pop().filter(|flow| {
                flow["initiator"].is_object() && flow["responder"]["comm"].as_str() == Some("server")
            })
        });
        assert_between(&flow, &network.client, &network.server);
    }
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
    wait_for("it is counted", || {
        let statistics = bus.monitor_call("GetStatistics", &[]).unwrap()[0].clone();
        statistics["owners_ambiguous"].as_u64().filter(|count| *count > 0)
    });
    daemon.stop();
}

/// A program in namespaces of its own, as a container has them.
fn contained(namespace: &Namespace, script: &str) -> Command {
    let mut command = namespace.command("unshare");
    command.args(["--pid", "--cgroup", "--mount", "--fork", "--mount-proc", "sh", "-c", script]);
    command
}

#[test]
fn a_process_in_namespaces_of_its_own_is_known_by_its_number_outside_also_when_it_is_gone() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&network.router, &bus);
    let listener = listen(&network.server, &format!("{SERVER_V4}:{PLAIN}"));
    let script = format!("exec bash -c 'exec 3<>/dev/tcp/{SERVER_V4}/{PLAIN}; cat <&3'");
    let mut container = contained(&network.client, &script).stdin(Stdio::null()).spawn().unwrap();
    let accepted = listener.accept().unwrap();
    let flow = owned(&bus, PLAIN);
    let pid = flow["initiator"]["pid"].as_u64().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(
        status.lines().any(|line| line.starts_with("NSpid:") && line.split_whitespace().count() == 3),
        "{status}"
    );
    assert_eq!(flow["initiator"]["confidence"], "forwarded", "{flow:#}");
    drop(accepted);
    container.wait().unwrap();
    let ended = wait_for("the flow is over", || {
        flows(&bus).into_iter().find(|flow| flow["dport"] == PLAIN && flow["state"] == "TIME_WAIT")
    });
    assert_eq!(ended["initiator"]["pid"].as_u64(), Some(pid), "{ended:#}");
    daemon.stop();
}

#[test]
fn two_namespaces_on_one_bridge_speak_by_the_published_port_of_one() {
    let router = Namespace::tracked("hairpin");
    router.run("ip link add br0 type bridge");
    router.run("ip link set br0 up");
    router.run("ip address add 198.18.6.1/24 dev br0");
    let [one, two] = [2, 3].map(|number| {
        let host = Namespace::new("bridged");
        router.run(&format!("ip link add port{number} type veth peer name up0 netns {}", host.path()));
        router.run(&format!("ip link set port{number} master br0 up"));
        router.run(&format!("ip link set port{number} type bridge_slave hairpin on"));
        host.run("ip link set up0 up");
        host.run(&format!("ip address add 198.18.6.{number}/24 dev up0"));
        host.run("ip route add default via 198.18.6.1");
        host
    });
    router.sysctl("net.ipv4.ip_forward", "1");
    router.nft(
        "table ip hairpin {
           chain destination { type nat hook prerouting priority dstnat; ip daddr 198.18.6.1 tcp dport 8080 dnat to 198.18.6.3:80; };
           chain output { type nat hook output priority -100; ip daddr 198.18.6.1 tcp dport 8080 dnat to 198.18.6.3:80; };
           chain source { type nat hook postrouting priority srcnat; ip daddr 198.18.6.3 masquerade; };
         }",
    );
    let bus = Bus::start();
    let daemon = Daemon::start_attributed(&router, &bus);
    let listener = listen(&two, "198.18.6.3:80");
    let to: SocketAddr = "198.18.6.1:8080".parse().unwrap();
    // From the other one, from itself by way of the router, and from the router's own namespace.
    for (from, source) in [(&one, "198.18.6.2"), (&two, "198.18.6.3"), (&router, "198.18.6.1")] {
        let client = on_thread(from, "client", || TcpStream::connect(to).unwrap());
        let server = on_thread(&two, "server", || listener.accept().unwrap());
        let flow = wait_for("both owners", || {
            let mut flows = flows(&bus);
            flows.retain(|flow| flow["src"] == source && flow["dport"] == 8080);
            flows.pop().filter(|flow| flow["initiator"].is_object() && flow["responder"].is_object())
        });
        if source == "198.18.6.1" {
            assert_eq!(who(&flow["initiator"]), super::exact("client"), "{flow:#}");
            assert!(flow["initiator"]["network_namespace"].is_null(), "{flow:#}");
            assert_eq!(flow["responder"]["network_namespace"], inode(&two), "{flow:#}");
        } else {
            assert_between(&flow, from, &two);
        }
        drop((client, server));
    }
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
