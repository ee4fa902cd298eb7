//! What flowbus says on D-Bus: names, the flow dictionary, queries, errors, client proxies and the reader of streams.
//!
//! Dictionary keys, JSON keys, query keys and `flowctl --fields` are one vocabulary: [`Key`]. A service describes a
//! flow as a [`Flow`] and writes it as a [`Dictionary`] or as [`Json`]; a client reads either into an [`OwnedFlow`].
//! A key without a value is absent, never 0.

mod bus_address;
mod connection;
mod control;
mod dictionary;
mod error;
mod flow;
mod key;
mod mark;
mod names;
mod number;
mod owned;
mod owner;
mod page;
mod proxy;
mod query;
mod statistic;
mod stream;
mod text;
mod time;
mod value;

pub use bus_address::BusAddress;
pub use connection::{Connection, ConnectionDictionary, ConnectionJson, ConnectionKind, OwnedConnection};
pub use control::*;
pub use ctnetlink::EventKind;
pub use dictionary::{Dictionary, Json, MarkDictionary};
pub use error::Error;
pub use flow::{Flow, event_name, protocol_name, protocol_number, visit_mark_fields};
pub use key::{FieldSet, Key};
pub use mark::{Mark, Qos, SourceNameError, SourceNames};
pub use names::*;
pub use number::parse_number;
pub use owned::{FlowError, OwnedFlow, OwnedValue};
pub use owner::Owner;
pub use page::Page;
pub use proxy::*;
pub use query::{
    Argument, EventSet, Filter, LIMIT_DEFAULT, LIMIT_MAXIMUM, Lookup, Query, QueryError, QueryKey, QueryPart,
    RawQuery, ReportOptions, StreamQuery,
};
pub use statistic::{Statistic, StatisticKind};
pub use stream::{FlowRef, FlowStream, StreamError, StreamItem};
pub use time::{EndReason, Time, TimeSource};
pub use value::{Value, status_bit, status_names};
