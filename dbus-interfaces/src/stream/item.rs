//! What a line of a stream says.

use std::borrow::Cow;

use ctnetlink::EventKind;
use serde::{Deserialize, Serialize};

use super::FlowRef;
use crate::{Expectation, Key, OwnedConnection};

/// A line of a stream. Those that have no flow, connection or expectation are written and read by serde.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum StreamItem<'a> {
    /// The stream begins.
    Begin {
        /// The table's epoch: ids and sequences of another one mean nothing in it.
        epoch: Cow<'a, str>,
        /// The number of the last change before the stream.
        sequence: u64,
        /// The id of the newest flow before the stream: a flow with a greater one began since, or was found since by a dump. Absent from
        /// a daemon that is older than this key, and from the files of the flow log.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        newest_id: Option<u64>,
        /// The machine, by an id that no other program gives it: that of `systemd-id128 machine-id
        /// -a ab5ed77833064470ad28e715b1f0e4f7`. Absent where it has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        machine: Option<Cow<'a, str>>,
    },
    /// A flow that had ended when the stream began; oldest end first.
    #[serde(skip)]
    Closed(FlowRef<'a>),
    /// A flow that is alive; ascending ids.
    #[serde(skip)]
    Flow(FlowRef<'a>),
    /// All flows that are alive have been sent.
    SnapshotEnd {
        /// The snapshot has every change up to this number.
        sequence: u64,
    },
    /// A flow began, changed or ended.
    #[serde(skip)]
    Event {
        /// Whether it began, changed or ended.
        kind: EventKind,
        /// Whether the flow passes the filter after the change; false where it passed before and does not any more.
        matches: bool,
        /// The whole flow after the change, with its `sequence`.
        flow: FlowRef<'a>,
    },
    /// Every change up to this one was sent, or did not pass the filter. A stream that sends little else has one now and then.
    Reached {
        /// The number of the change.
        sequence: u64,
    },
    /// Changes that this stream does not have.
    Gap {
        /// The number of the first that is missing, or of the change before the loss.
        first: u64,
        /// The number of the last that is missing, or of the change before the loss.
        last: u64,
        /// How many changes are missing.
        lost: u64,
        /// `slow-reader`; `overrun` where the kernel dropped events; `forgotten` where the daemon no longer
        /// remembers all ended flows that the stream was to begin with: `lost` then counts these ends.
        reason: Cow<'a, str>,
    },
    /// What a connection did: its socket at one end.
    #[serde(skip)]
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
        reason: Cow<'a, str>,
    },
    /// What became of an expectation.
    #[serde(skip)]
    Expectation {
        /// Whether the expectation was made or is gone.
        kind: EventKind,
        /// What is waited for, and for which connection.
        expectation: Box<Expectation>,
    },
    /// Events of expectations that this stream does not have; they have no numbers.
    ExpectationGap {
        /// How many.
        lost: u64,
        /// `slow-reader`.
        reason: Cow<'a, str>,
    },
    /// The table agrees with the kernel's again.
    Resync {
        /// Why it might have differed: start, overrun, state-refused or new-socket.
        reason: Cow<'a, str>,
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
        reason: Cow<'a, str>,
    },
    /// A line of a type that this version does not know.
    #[serde(other)]
    Other,
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
                    // A kind of event that is not known is treated as a type that is not known.
                    _ => return Ok(Self::Other),
                };
                let expectation = Box::new(Expectation::from_json(line)?);
                Ok(Self::Expectation { kind, expectation })
            }
            _ => serde_json::from_str(line),
        }
    }
}
