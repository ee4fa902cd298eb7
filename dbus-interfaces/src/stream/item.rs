//! What a line of a stream says.

use ctnetlink::EventKind;
use serde::Deserialize;

use super::FlowRef;
use crate::{Expectation, Key, OwnedConnection};

/// A line of a stream.
#[derive(Clone, Debug)]
pub enum StreamItem<'a> {
    /// The stream begins.
    Begin {
        /// Ids and sequences of another epoch mean nothing in this one.
        epoch: String,
        /// The number of the last change before the stream.
        sequence: u64,
    },
    /// A flow that had ended when the stream began; oldest end first.
    Closed(FlowRef<'a>),
    /// A flow that is alive; ascending ids.
    Flow(FlowRef<'a>),
    /// All flows that are alive have been sent.
    SnapshotEnd {
        /// The snapshot has every change up to this number.
        sequence: u64,
    },
    /// A flow began, changed or ended.
    Event {
        /// Which of these.
        kind: EventKind,
        /// False of a flow that passed the filter before the change and does not after it.
        matches: bool,
        /// The whole flow after the change, with its `sequence`.
        flow: FlowRef<'a>,
    },
    /// Changes that this stream does not have.
    Gap {
        /// The number of the first that is missing, or of the change before the loss.
        first: u64,
        /// The number of the last that is missing, or of the change before the loss.
        last: u64,
        /// How many.
        lost: u64,
        /// `slow-reader`, or `overrun` where the kernel dropped events.
        reason: String,
    },
    /// What a connection did: its socket at one end.
    Connection(OwnedConnection),
    /// Connection events that this stream does not have.
    ConnectionGap {
        /// The number of the first that is missing.
        first: u64,
        /// The number of the last that is missing.
        last: u64,
        /// How many.
        lost: u64,
        /// `slow-reader`.
        reason: String,
    },
    /// What became of an expectation.
    Expectation {
        /// It was made, or it is gone.
        kind: EventKind,
        /// What is waited for, and for which connection.
        expectation: Box<Expectation>,
    },
    /// Events of expectations that this stream does not have; they have no numbers.
    ExpectationGap {
        /// How many.
        lost: u64,
        /// `slow-reader`.
        reason: String,
    },
    /// The table agrees with the kernel's again.
    Resync {
        /// Why it might have differed: start, overrun, state-refused or new-socket.
        reason: String,
        /// Events that the kernel dropped.
        lost: u64,
        /// Flows that had ended unseen.
        closed: u32,
        /// Flows that had begun unseen.
        added: u32,
    },
    /// The daemon has written all that it will.
    End {
        /// `complete`, or `stopping` where the daemon ends.
        reason: String,
    },
    /// A line of a type that this version does not know.
    Other(&'a str),
}

/// The lines that are not of flows.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Notice {
    Begin {
        epoch: String,
        sequence: u64,
    },
    SnapshotEnd {
        sequence: u64,
    },
    Gap {
        first: u64,
        last: u64,
        lost: u64,
        reason: String,
    },
    ConnectionGap {
        first: u64,
        last: u64,
        lost: u64,
        reason: String,
    },
    ExpectationGap {
        lost: u64,
        reason: String,
    },
    Resync {
        reason: String,
        lost: u64,
        closed: u32,
        added: u32,
    },
    End {
        reason: String,
    },
    #[serde(other)]
    Unknown,
}

impl<'a> StreamItem<'a> {
    /// Reads a line.
    ///
    /// # Errors
    /// If it is no JSON object in UTF-8, or lacks what its type has.
    pub fn parse(line: &'a [u8]) -> Result<Self, serde_json::Error> {
        let line = std::str::from_utf8(line).map_err(serde::de::Error::custom)?;
        let flow = FlowRef::parse(line)?;
        let event = |kind| Ok(Self::Event { kind, matches: flow.matches, flow });
        match flow.kind {
            "flow" => Ok(Self::Flow(flow)),
            "closed" => Ok(Self::Closed(flow)),
            "new" => event(EventKind::New),
            "update" => event(EventKind::Update),
            "destroy" => event(EventKind::Destroy),
            "connect" | "accept" | "close" | "connect-failed" => {
                serde_json::from_str(line).map(Self::Connection)
            }
            "expectation" => {
                let kind = match flow.text(Key::Event).as_deref() {
                    Some("new") => EventKind::New,
                    Some("destroy") => EventKind::Destroy,
                    // As of a type that is not known.
                    _ => return Ok(Self::Other(line)),
                };
                let expectation = Box::new(Expectation::from_json(line)?);
                Ok(Self::Expectation { kind, expectation })
            }
            _ => Ok(match serde_json::from_str(line)? {
                Notice::Begin { epoch, sequence } => Self::Begin { epoch, sequence },
                Notice::SnapshotEnd { sequence } => Self::SnapshotEnd { sequence },
                Notice::Gap { first, last, lost, reason } => Self::Gap { first, last, lost, reason },
                Notice::ConnectionGap { first, last, lost, reason } => {
                    Self::ConnectionGap { first, last, lost, reason }
                }
                Notice::ExpectationGap { lost, reason } => Self::ExpectationGap { lost, reason },
                Notice::Resync { reason, lost, closed, added } => {
                    Self::Resync { reason, lost, closed, added }
                }
                Notice::End { reason } => Self::End { reason },
                Notice::Unknown => Self::Other(line),
            }),
        }
    }
}
