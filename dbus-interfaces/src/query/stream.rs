//! What a stream is asked for.

use ctnetlink::EventKind;

use super::parse::{self, each, one};
use super::{Filter, QueryError, QueryKey, RawQuery};
use crate::{FieldSet, SourceNames};

/// The query of `OpenStream`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamQuery {
    /// Which flows, alive, ended or changing.
    pub filter: Filter,
    /// Which fields of each flow are shown.
    pub fields: FieldSet,
    /// Whether a dump brings counters up to date before the snapshot.
    pub refresh: bool,
    /// Whether the flows that are alive are sent.
    pub snapshot: bool,
    /// Whether the stream goes on with every change.
    pub follow: bool,
    /// Whether the flows that ended are sent first.
    pub closed: bool,
    /// Whether what sockets do is sent as well.
    pub connections: bool,
    /// Whether expectations that are made and go are sent.
    pub expectations: bool,
    /// Which changes are sent.
    pub events: EventSet,
    /// Where the flows that ended begin; `None` for all that are remembered.
    pub resume: Option<Resume>,
}

/// The place in an earlier stream behind which another goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The epoch of the earlier stream.
    pub epoch: String,
    /// The number of the last change that is known from it.
    pub after: u64,
}

/// The flows that are alive, then every change, with all fields.
impl Default for StreamQuery {
    fn default() -> Self {
        Self {
            filter: Filter::default(),
            fields: FieldSet::ALL,
            refresh: false,
            snapshot: true,
            follow: true,
            closed: false,
            connections: false,
            expectations: false,
            events: EventSet::ALL,
            resume: None,
        }
    }
}

impl StreamQuery {
    /// Checks a query. `names` are those that `source` knows.
    ///
    /// # Errors
    /// For a key that is unknown, repeated or one of a page (but for `after`, which goes with `epoch` and `closed`), and for a value
    /// of the wrong type or range.
    pub fn parse(raw: &RawQuery, names: &SourceNames) -> Result<Self, QueryError> {
        let mut query = Self::default();
        let (mut after, mut epoch) = (None, None);
        for (key, value) in raw.query_pairs(QueryKey::is_of_streams)? {
            let flag = || one(key.name(), key.takes(), value, parse::boolean);
            match key {
                QueryKey::Snapshot => query.snapshot = flag()?,
                QueryKey::Follow => query.follow = flag()?,
                QueryKey::Closed => query.closed = flag()?,
                QueryKey::Connections => query.connections = flag()?,
                QueryKey::Expectations => query.expectations = flag()?,
                QueryKey::Events => query.events = each(key.name(), key.takes(), value, parse::event)?,
                QueryKey::Refresh => query.refresh = flag()?,
                QueryKey::Fields => query.fields = parse::fields(value, |_| true)?,
                QueryKey::After => after = Some(one(key.name(), key.takes(), value, parse::integer)?),
                QueryKey::Epoch => epoch = Some(one(key.name(), key.takes(), value, parse::epoch)?),
                _ => {
                    if !key.is_of_streams() || !query.filter.add(key, value, names)? {
                        return Err(QueryError::NotOfStreams(key.name()));
                    }
                }
            }
        }
        query.resume = match (after, epoch) {
            (Some(after), Some(epoch)) if query.closed => Some(Resume { epoch, after }),
            (None, None) => None,
            _ => return Err(QueryError::Resume),
        };
        Ok(query)
    }
}

/// A set of kinds of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventSet(u8);

impl EventSet {
    /// Every kind.
    pub const ALL: Self = Self(u8::MAX);

    /// Whether the set has the kind.
    pub const fn contains(self, kind: EventKind) -> bool {
        self.0 & Self::bit(kind) != 0
    }

    const fn bit(kind: EventKind) -> u8 {
        match kind {
            EventKind::New => 1,
            EventKind::Update => 2,
            EventKind::Destroy => 4,
        }
    }
}

impl FromIterator<Option<EventKind>> for EventSet {
    fn from_iter<T: IntoIterator<Item = Option<EventKind>>>(kinds: T) -> Self {
        Self(kinds.into_iter().flatten().fold(0, |set, kind| set | Self::bit(kind)))
    }
}
