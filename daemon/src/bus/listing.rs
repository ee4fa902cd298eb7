//! The pages of ListActive and ListClosed: the flows that pass the filter, as many as fit.
//!
//! The tracker hands flows out chunk by chunk, so that a filter over a large table never keeps it from its events.

use flowbus_interfaces::{DictionaryArray, Lookup, Query};
use zbus::wire::Endian;

use crate::dictionary::{FlowNames, Item};
use crate::handle::{AskError, Handle, Page, Preselection};

/// The longest page in bytes, however few flows that are: the bus disconnects a sender of more than it takes.
const PAGE_BYTES: usize = 1024 * 1024 - 4096;
/// How many flows are asked for at once where a filter may refuse most of them.
const CHUNK: usize = 2048;

/// A page for the bus.
#[derive(Debug)]
pub(super) struct FlowPage {
    pub(super) flows: DictionaryArray,
    /// Where the next page begins.
    pub(super) next: Option<u64>,
    pub(super) sequence: u64,
    pub(super) synchronized: bool,
}

/// The active flows after `query.after`, ascending by id.
pub(super) async fn active(
    handle: &Handle,
    names: &FlowNames,
    query: &Query,
    endian: Endian,
) -> Result<FlowPage, AskError> {
    let candidates = match query.filter.lookup() {
        Some(Lookup::Ids(ids)) => Preselection::Ids(ids.into()),
        Some(Lookup::Port(port)) => Preselection::Port(port),
        None if query.filter.asks_for_owner() => Preselection::Owned,
        None => Preselection::All,
    };
    let mut filling = Filling::new(names, query, endian);
    let mut after = query.after.unwrap_or(0);
    let mut refresh = query.refresh;
    loop {
        let limit = filling.chunk();
        let page = handle.list_active(after, limit, refresh, candidates.clone()).await?;
        refresh = false;
        after = page.flows.last().map_or(after, |flow| flow.record.id);
        if filling.fill(page, |item| Some(item.flow.record.id)) {
            return Ok(filling.finish());
        }
    }
}

/// The closed flows that ended before `query.after`, newest first.
pub(super) async fn closed(
    handle: &Handle,
    names: &FlowNames,
    query: &Query,
    endian: Endian,
) -> Result<FlowPage, AskError> {
    let mut filling = Filling::new(names, query, endian);
    let mut before = query.after.unwrap_or(u64::MAX);
    loop {
        let page = handle.list_closed(before, filling.chunk()).await?;
        before = page.flows.last().and_then(|flow| flow.end).map_or(before, |end| end.sequence);
        if filling.fill(page, |item| item.sequence) {
            return Ok(filling.finish());
        }
    }
}

/// A page that is being filled.
struct Filling<'a> {
    names: &'a FlowNames,
    query: &'a Query,
    flows: DictionaryArray,
    count: usize,
    bytes: usize,
    /// The number by which the last flow is paged.
    last: Option<u64>,
    next: Option<u64>,
    /// What the first chunk was answered with: later changes may be included, or not.
    state: Option<(u64, bool)>,
}

impl<'a> Filling<'a> {
    fn new(names: &'a FlowNames, query: &'a Query, endian: Endian) -> Self {
        let flows = DictionaryArray::new(endian);
        Self { names, query, flows, count: 0, bytes: 0, last: None, next: None, state: None }
    }

    /// How many flows to ask for.
    fn chunk(&self) -> usize {
        if self.query.filter.is_empty() { usize::from(self.query.limit) + 1 } else { CHUNK }
    }

    /// Takes a chunk in; true when the page is full or the listing at its end. `number` is what a flow is paged by.
    fn fill(&mut self, page: Page, number: impl Fn(&Item) -> Option<u64>) -> bool {
        let Self { query, names, .. } = *self;
        let config = names.config();
        self.state.get_or_insert((page.sequence, page.synchronized));
        for item in page.flows.into_iter().map(Item::from) {
            let size = names.show(&item, |flow| {
                let matches = query.filter.matches(flow);
                matches.then(|| self.flows.push_flow(flow, &config.source_names, query.fields))
            });
            let Some(size) = size else { continue };
            let full = self.count == usize::from(query.limit) || self.bytes + size > PAGE_BYTES;
            if full && self.count > 0 {
                self.flows.remove(self.count);
                self.next = self.last;
                return true;
            }
            self.count += 1;
            self.bytes += size;
            self.last = number(&item);
        }
        !page.more
    }

    fn finish(self) -> FlowPage {
        let (sequence, synchronized) = self.state.unwrap_or_default();
        FlowPage { flows: self.flows, next: self.next, sequence, synchronized }
    }
}

#[cfg(test)]
mod tests {
    use ctnetlink::{Flow, Tuple};
    use flowbus_interfaces::{Key, OwnedFlow, RawQuery, SourceNames, TimeSource};
    use zbus::wire::serialized::Context;
    use zbus::wire::{LE, to_bytes};

    use super::*;
    use crate::flow::{Owners, Record, Snapshot, Start, inverted};

    fn page(ids: std::ops::Range<u64>) -> Page {
        let original = Tuple {
            src: "198.18.0.1".parse().unwrap(),
            dst: "198.18.0.2".parse().unwrap(),
            protocol: 50,
            layer4: ctnetlink::Layer4::None,
            zone: 0,
        };
        let flow = Flow::new(original, inverted(&original, 0));
        let start = Start { usec: 0, boottime_usec: 0, source: TimeSource::Event };
        let flows = ids.map(|id| Snapshot {
            record: Record::new(id, &flow, start),
            extra: None,
            owners: Owners::default(),
            end: None,
        });
        Page { flows: flows.collect(), more: true, sequence: 9, synchronized: true }
    }

    #[test]
    fn a_page_ends_before_the_flow_that_exceeds_its_bytes() {
        let (names, query) =
            (FlowNames::default(), Query::parse(&RawQuery::default(), &SourceNames::default()));
        let query = query.unwrap();
        let id = |item: &Item| Some(item.flow.record.id);
        // Room for nothing, which is room for one; for about two; for all that the limit allows.
        for (room, expected) in [(0, 1), (1_000, 2), (PAGE_BYTES, 500)] {
            let mut filling = Filling::new(&names, &query, LE);
            filling.bytes = PAGE_BYTES - room;
            assert!(!filling.fill(page(1..2), id));
            assert!(filling.fill(page(2..1_000), id));
            let page = filling.finish();
            assert_eq!((page.next, page.sequence), (Some(expected), 9), "{room}");
            let data = to_bytes(Context::new(LE, 0), &page.flows).unwrap();
            let (flows, _): (Vec<OwnedFlow>, usize) = data.deserialize().unwrap();
            let ids: Vec<u64> = flows.iter().filter_map(|flow| flow.number(Key::Id)).collect();
            assert_eq!(ids, (1..=expected).collect::<Vec<_>>());
        }
    }
}
