//! Processes that open sockets as a test tells them, so that it is known by construction whose packets are whose.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use flowbus_tests::Namespace;

/// Evaluates lines; what they may call.
const LOOP: &str = r#"
use Socket qw(:all); use Time::HiRes; $| = 1;
sub at { my ($host, $port) = @_;
    $host =~ /:/ ? pack_sockaddr_in6($port, inet_pton(AF_INET6, $host)) : sockaddr_in($port, inet_aton($host)) }
sub opened { my ($type, $protocol, $host, $port, $option) = @_;
    socket(my $socket, $host =~ /:/ ? PF_INET6 : PF_INET, $type, $protocol) or die "socket: $!";
    setsockopt($socket, SOL_SOCKET, $option, 1) if $option;
    bind($socket, at($host, $port)) or die "bind: $!";
    $socket }
sub udp { my ($host, $port, $option) = @_; opened(SOCK_DGRAM, 0, $host, $port, $option) }
sub to { my ($socket, $host, $port) = @_; defined send($socket, "x", 0, at($host, $port)) or die "send: $!" }
sub once { my ($local, $port, $remote, $remote_port) = @_;
    my $socket = opened(SOCK_STREAM, 0, $local, $port, SO_REUSEADDR);
    connect($socket, at($remote, $remote_port)) or die "connect: $!";
    sysread($socket, my $byte, 1) == 1 or die "read: $!";
    setsockopt($socket, SOL_SOCKET, SO_LINGER, pack("II", 1, 0));
    close $socket; 1 }
sub refused { my ($local, $port, $remote, $remote_port) = @_;
    my $socket = opened(SOCK_STREAM, 0, $local, $port, SO_REUSEADDR);
    connect($socket, at($remote, $remote_port)) and die "connect: accepted"; close $socket; 1 }
while (<STDIN>) { my $result = eval $_; print $@ ? "error: $@" : "ok $result", $@ ? "" : "\n" }
"#;

/// A process of Perl.
pub(crate) struct Worker {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    pub(crate) fn start(namespace: &Namespace) -> Self {
        let mut command = namespace.command("perl");
        command.args(["-e", LOOP]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { process, input, output: BufReader::new(output) }
    }

    pub(crate) fn pid(&self) -> u64 {
        self.process.id().into()
    }

    /// Has the worker evaluate a line, and returns what comes of it.
    pub(crate) fn run(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        let mut result = String::new();
        self.output.read_line(&mut result).unwrap();
        result.strip_prefix("ok ").unwrap_or_else(|| panic!("{line}: {result}")).trim().to_owned()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
