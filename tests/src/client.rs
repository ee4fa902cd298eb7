//! A program on the bus that uses the proxies of flowbus-interfaces, and the reader of a stream.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use flowbus_interfaces::{Error, FlowMonitorProxy, QueryMap};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use tokio::runtime::Runtime;
use zbus::connection::Builder;

use crate::Bus;
use crate::process::DEADLINE;

/// A connection of its own to the bus.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    monitor: FlowMonitorProxy<'static>,
}

impl Client {
    /// Connects.
    ///
    /// # Panics
    /// If the bus does not take us.
    #[must_use]
    pub fn connect(bus: &Bus) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be started");
        let monitor = runtime.block_on(async {
            let connection =
                Builder::address(bus.address().as_str()).build().await.expect("the bus takes clients");
            FlowMonitorProxy::new(&connection).await.expect("a proxy needs nobody at its other end")
        });
        Self { runtime, monitor }
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// What the daemon answers instead.
    pub fn open_stream(&self, query: &QueryMap<'_>) -> Result<Stream, Error> {
        let descriptor = self.runtime.block_on(self.monitor.open_stream(query))?;
        Ok(Stream::new(descriptor.into()))
    }

    /// A report.
    ///
    /// # Errors
    /// What the daemon answers instead.
    pub fn report(&self, options: &QueryMap<'_>) -> Result<String, Error> {
        self.runtime.block_on(self.monitor.get_report(options))
    }
}

/// The end of a stream that is read.
#[derive(Debug)]
pub struct Stream {
    pipe: File,
    buffer: VecDeque<u8>,
}

impl Stream {
    fn new(descriptor: OwnedFd) -> Self {
        Self { pipe: descriptor.into(), buffer: VecDeque::new() }
    }

    /// The next line; `None` when the daemon has closed its end.
    ///
    /// # Panics
    /// If none comes within the deadline, or it is no JSON object, or the stream ends within a line.
    pub fn line(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let line = String::from_utf8(line).expect("a stream is text");
                return Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}")));
            }
            let timeout = Timespec::try_from(DEADLINE).expect("the deadline is not so far away");
            let readable = poll(&mut [PollFd::new(&self.pipe.as_fd(), PollFlags::IN)], Some(&timeout));
            assert_eq!(readable.expect("a pipe can be polled"), 1, "no line within {DEADLINE:?}");
            let mut chunk = vec![0; 64 * 1024];
            match self.pipe.read(&mut chunk).expect("a pipe can be read") {
                0 => {
                    assert!(self.buffer.is_empty(), "the stream ends within a line: {:?}", self.buffer);
                    return None;
                }
                length => self.buffer.extend(&chunk[..length]),
            }
        }
    }

    /// The next lines, up to the first that `last` says so of.
    ///
    /// # Panics
    /// If no line comes within the deadline, or the stream ends before.
    pub fn until(&mut self, mut last: impl FnMut(&Value) -> bool) -> Vec<Value> {
        let mut lines = Vec::new();
        loop {
            let line = self.line().unwrap_or_else(|| panic!("the stream ended after {:?}", lines.last()));
            let found = last(&line);
            lines.push(line);
            if found {
                return lines;
            }
        }
    }

    /// All lines until the daemon closes its end.
    ///
    /// # Panics
    /// If no line comes within the deadline.
    pub fn rest(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.line()).collect()
    }
}
