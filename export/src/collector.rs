//! Where IPFIX messages go: a collector, by UDP. What it does not receive is lost: the log is the record.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use flowbus_interfaces::{Cursor, EventKind, FlowRef, StreamItem};

use crate::config::IpfixOptions;
use crate::ipfix::{Encoder, Event};

/// A collector that flows are sent to.
#[derive(Debug)]
pub(crate) struct Collector {
    address: SocketAddr,
    socket: UdpSocket,
    encoder: Encoder,
    /// A collector by UDP that was started again knows no templates: it gets them again and again.
    templates_every: Duration,
    templates_sent: Option<Instant>,
    /// How many messages were sent.
    sent: u64,
    /// Messages that could not be sent since the last one that could.
    failures: u64,
}

impl Collector {
    /// One that never waits for the network: what does not fit into the socket is lost.
    pub(crate) fn live(options: &IpfixOptions) -> io::Result<Self> {
        let collector = Self::new(options)?;
        collector.socket.set_nonblocking(true)?;
        Ok(collector)
    }

    pub(crate) fn new(options: &IpfixOptions) -> io::Result<Self> {
        let local: SocketAddr = match options.collector {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(local)?;
        socket.connect(options.collector)?;
        Ok(Self {
            address: options.collector,
            socket,
            encoder: Encoder::new(options.domain),
            templates_every: options.template(),
            templates_sent: None,
            sent: 0,
            failures: 0,
        })
    }

    /// Gathers what an item of a stream says of a flow; `cursor` is the place before it. True where a message was sent.
    pub(crate) fn push(&mut self, item: &StreamItem<'_>, cursor: &Cursor) -> bool {
        let sent = self.sent;
        match item {
            StreamItem::Flow(flow) if !cursor.has_seen(flow) => self.record(Event::Create, flow),
            StreamItem::Closed(flow) => {
                if !cursor.has_seen(flow) {
                    self.record(Event::Create, flow);
                }
                self.record(Event::Delete, flow);
            }
            StreamItem::Event { kind: EventKind::New, flow, .. } => self.record(Event::Create, flow),
            StreamItem::Event { kind: EventKind::Destroy, flow, .. } => self.record(Event::Delete, flow),
            _ => {}
        }
        self.sent != sent
    }

    fn record(&mut self, event: Event, flow: &FlowRef<'_>) {
        if self.encoder.is_full() {
            self.flush();
        }
        if self.encoder.is_empty() {
            // What the kernel has heard of an earlier message: nobody reads it there.
            if let Ok(Some(error)) = self.socket.take_error() {
                self.fail(&error);
            }
            if self.templates_sent.is_none_or(|sent| sent.elapsed() >= self.templates_every) {
                self.encoder.push_templates();
                self.templates_sent = Some(Instant::now());
            }
        }
        self.encoder.push(event, flow);
    }

    /// Sends what was gathered.
    pub(crate) fn flush(&mut self) {
        if self.encoder.is_empty() {
            return;
        }
        self.sent += 1;
        match self.encoder.finish(|message| self.socket.send(message)) {
            Ok(_) => {
                if std::mem::take(&mut self.failures) > 0 {
                    tracing::info!(collector = %self.address, "sending to the collector works again");
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &io::Error) {
        // A collector that was started again needs the templates.
        self.templates_sent = None;
        self.failures += 1;
        if self.failures == 1 {
            tracing::warn!(%error, collector = %self.address, "sending to the collector failed, records are lost");
        }
    }
}
