//! Real traffic between namespaces: every socket here is a socket, and every answer has been waited for.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use rustix::net::{AddressFamily, Protocol, SocketType, ipproto};

use crate::Namespace;
use crate::process::DEADLINE;

/// A TCP listener in a namespace.
#[derive(Debug)]
pub struct TcpService(TcpListener);

/// Both ends of an established TCP connection; dropping it closes both.
#[derive(Debug)]
pub struct Connection {
    /// The end that connected.
    pub client: TcpStream,
    /// The end that accepted.
    pub server: TcpStream,
}

impl TcpService {
    /// Listens in `namespace`.
    ///
    /// # Panics
    /// If the address is taken or not there.
    #[must_use]
    pub fn listen(namespace: &Namespace, address: SocketAddr) -> Self {
        Self(
            namespace.enter(|| {
                TcpListener::bind(address).unwrap_or_else(|error| panic!("tcp {address}: {error}"))
            }),
        )
    }

    /// Opens `count` connections from `namespace` to `address`, which routing or NAT must lead to this listener, and says
    /// something in both directions on each.
    ///
    /// # Panics
    /// If the network does not carry it.
    #[must_use]
    pub fn connect(&self, namespace: &Namespace, address: SocketAddr, count: usize) -> Vec<Connection> {
        let connect = || {
            let client = TcpStream::connect_timeout(&address, DEADLINE);
            let client =
                client.unwrap_or_else(|error| panic!("tcp to {address} from {}: {error}", namespace.path()));
            let (server, _) = self.0.accept().expect("what has connected can be accepted");
            let mut connection = Connection { client, server };
            connection.exchange();
            connection
        };
        namespace.enter(|| (0..count).map(|_| connect()).collect())
    }
}

impl Connection {
    /// Sends a request and an answer.
    ///
    /// # Panics
    /// If either does not arrive.
    pub fn exchange(&mut self) {
        say(&mut self.client, &mut self.server);
        say(&mut self.server, &mut self.client);
    }

    /// Closes both ends in order, and returns once both have seen the other's end.
    ///
    /// # Panics
    /// If the connection is broken.
    pub fn close(mut self) {
        self.client.shutdown(std::net::Shutdown::Write).expect("a connection can be shut down");
        assert_eq!(self.server.read(&mut [0]).expect("the end arrives"), 0);
        self.server.shutdown(std::net::Shutdown::Write).expect("a connection can be shut down");
        assert_eq!(self.client.read(&mut [0]).expect("the end arrives"), 0);
    }
}

/// A UDP socket in a namespace that answers when asked to.
#[derive(Debug)]
pub struct UdpService(UdpSocket);

impl UdpService {
    /// Binds in `namespace`.
    ///
    /// # Panics
    /// If the address is taken or not there.
    #[must_use]
    pub fn bind(namespace: &Namespace, address: SocketAddr) -> Self {
        Self(namespace.enter(|| bound(address)))
    }

    /// Sends a request from each of `count` new sockets in `namespace` to `address` and waits for the answer. As long as the
    /// sockets are kept, no other one gets their ports: another flow to this address is another one.
    ///
    /// # Panics
    /// If the network does not carry it.
    pub fn exchange(&self, namespace: &Namespace, address: SocketAddr, count: usize) -> Vec<UdpSocket> {
        let exchange = || {
            let client = bound(unspecified(address.ip()));
            let mut buffer = [0; 16];
            client.connect(address).unwrap_or_else(|error| panic!("udp to {address}: {error}"));
            client.send(b"request").expect("a request can be sent");
            let (_, peer) = self.0.recv_from(&mut buffer).expect("the request arrives");
            self.0.send_to(b"answer", peer).expect("an answer can be sent");
            client.recv(&mut buffer).expect("the answer arrives");
            client
        };
        namespace.enter(|| (0..count).map(|_| exchange()).collect())
    }
}

/// Sends one echo request with this identifier from `namespace` and waits for the answer.
///
/// # Panics
/// If none comes.
pub fn ping(namespace: &Namespace, address: IpAddr, id: u16) {
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REQUEST_V6: u8 = 128;
    let (family, protocol, echo): (_, Protocol, u8) = match address {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, ECHO_REQUEST),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, ECHO_REQUEST_V6),
    };
    namespace.enter(|| {
        let socket =
            rustix::net::socket(family, SocketType::DGRAM, Some(protocol)).expect("groups may ping here");
        let mut local = unspecified(address);
        // The port of such a socket is the identifier of its echo requests; the kernel fills in the checksum.
        local.set_port(id);
        rustix::net::bind(&socket, &local).unwrap_or_else(|error| panic!("icmp id {id}: {error}"));
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(DEADLINE)).expect("sockets take a timeout");
        socket.connect(SocketAddr::new(address, 0)).unwrap_or_else(|error| panic!("ping {address}: {error}"));
        socket.send(&[echo, 0, 0, 0, 0, 0, 0, 1]).unwrap_or_else(|error| panic!("ping {address}: {error}"));
        socket.recv(&mut [0; 64]).unwrap_or_else(|error| panic!("no answer from {address}: {error}"));
    });
}

fn say(from: &mut TcpStream, to: &mut TcpStream) {
    to.set_read_timeout(Some(DEADLINE)).expect("sockets take a timeout");
    from.write_all(b"flow").expect("a connection carries data");
    to.read_exact(&mut [0; 4]).expect("what was sent arrives");
}

fn bound(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap_or_else(|error| panic!("udp {address}: {error}"));
    socket.set_read_timeout(Some(DEADLINE)).expect("sockets take a timeout");
    socket
}

fn unspecified(like: IpAddr) -> SocketAddr {
    match like {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}
