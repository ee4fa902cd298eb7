//! What passes over the bus, as `busctl monitor` sees it.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use serde_json::Value;

use crate::Bus;
use crate::bus::plain;
use crate::process::DEADLINE;

/// A running `busctl monitor` of one bus name.
#[derive(Debug)]
pub struct Monitor {
    process: Child,
    messages: Receiver<Value>,
}

impl Monitor {
    /// Starts to watch a name; what is sent after this returns is seen.
    ///
    /// # Panics
    /// If the bus refuses a monitor.
    #[must_use]
    pub fn start(bus: &Bus, name: &str) -> Self {
        let mut process = bus
            .busctl()
            .args(["monitor", name])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("busctl is installed");
        let stderr = BufReader::new(process.stderr.take().expect("stderr is piped"));
        // busctl says so once the bus has made it a monitor.
        let started = stderr.lines().map_while(Result::ok).any(|line| line.starts_with("Monitoring bus"));
        assert!(started, "busctl monitor was refused by the bus");
        let lines = BufReader::new(process.stdout.take().expect("stdout is piped")).lines();
        let (sender, messages) = channel();
        thread::spawn(move || forward(lines, &sender));
        Self { process, messages }
    }

    /// The body of the next signal with this member name, variants unwrapped; other messages are passed over.
    ///
    /// # Panics
    /// If none comes within the deadline.
    #[must_use]
    pub fn signal(&self, member: &str) -> Value {
        loop {
            let message = self.messages.recv_timeout(DEADLINE);
            let message = message.unwrap_or_else(|error| panic!("no signal {member}: {error}"));
            if message["type"] == "signal" && message["member"] == member {
                return plain(message["payload"]["data"].clone());
            }
        }
    }

    /// Collects the events of the FlowEvents signals, in their order, until `enough` says so of all of them; and how many
    /// the signals say were lost.
    ///
    /// # Panics
    /// If that does not come to pass within the deadline.
    #[must_use]
    pub fn events_until(&self, mut enough: impl FnMut(&[Value]) -> bool) -> (Vec<Value>, u64) {
        let (mut events, mut lost) = (Vec::new(), 0);
        while !enough(&events) {
            let body = self.signal("FlowEvents");
            events.extend(body[1].as_array().expect("FlowEvents carries an array").iter().cloned());
            lost += body[2].as_u64().expect("FlowEvents says how many it lost");
        }
        (events, lost)
    }
}

fn forward(lines: Lines<BufReader<ChildStdout>>, sender: &std::sync::mpsc::Sender<Value>) {
    for line in lines.map_while(Result::ok) {
        let message =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("busctl printed {line:?}: {error}"));
        if sender.send(message).is_err() {
            return;
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
