//! What flowbus says on D-Bus: names, the flow dictionary, queries, errors, client proxies and the reader of streams.
//!
//! Dictionary keys, JSON keys, query keys and `flowctl --fields` are one vocabulary: [`Key`]. A service describes a
//! flow as a [`Flow`] and writes it as a [`Dictionary`], among others in a [`DictionaryArray`], or as [`Json`]; a client
//! reads any of them into an [`OwnedFlow`].
//! A key without a value is absent, never 0.
//!
//! A client asks with [`FlowMonitorProxy`], hears of changes with [`FlowEventsProxy`], and has every one of them with a
//! [`FlowStream`]:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use flowbus_interfaces::{FlowMonitorProxy, Key, QueryMap};
//!
//! let bus = zbus::Connection::system().await?;
//! let monitor = FlowMonitorProxy::new(&bus).await?;
//! // The connections of one traffic source to these ports, page by page.
//! let mut query = QueryMap::from([("source", "chrome".into()), ("dport", vec![80_u16, 443].into())]);
//! loop {
//!     let (flows, page) = monitor.list_active(&query).await?;
//!     for flow in &flows {
//!         println!("{:?} to {:?}", flow.number(Key::Id), flow.text(Key::Dst));
//!     }
//!     let Some(next) = page.next else { break };
//!     query.insert("after", next.into());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `examples/follow.rs` is a whole program. What every member, key and error means is in the manual pages
//! org.flowbus.FlowMonitor1(5) and org.flowbus.FlowEvents1(5).

mod array;
mod bus_address;
mod connection;
mod control;
mod dictionary;
mod error;
mod fit;
mod flow;
mod flow_log;
mod key;
mod mark;
mod names;
mod number;
mod owned;
mod owner;
mod page;
mod printing;
mod protocol;
mod proxy;
mod query;
mod statistic;
mod stream;
mod text;
mod time;
mod value;

pub use array::DictionaryArray;
pub use bus_address::BusAddress;
pub use connection::{Connection, ConnectionJson, ConnectionKind, OwnedConnection};
pub use control::*;
pub use ctnetlink::{EventKind, protocol_name};
pub use dictionary::{Dictionary, Json, MarkDictionary};
pub use error::Error;
pub use fit::{Largest, fit};
pub use flow::{Flow, event_name, visit_mark_fields};
pub use flow_log::{
    FLOW_LOG_DIRECTORY, FlowLogBegin, FlowLogName, FlowLogNameError, flow_log_files, open_flow_log_file,
};
pub use key::{FieldSet, Key};
pub use mark::{Mark, Qos, SourceNameError, SourceNames};
pub use names::*;
pub use number::parse_number;
pub use owned::{FlowError, OwnedFlow, OwnedValue};
pub use owner::Owner;
pub use page::Page;
pub use printing::{is_printing, json_text, printing, printing_json, write_json};
pub use protocol::{protocol_number, protocol_title};
pub use proxy::*;
pub use query::{
    Argument, ChangeOptions, Clue, EventSet, Filter, LIMIT_DEFAULT, LIMIT_MAXIMUM, Lookup, Query, QueryError,
    QueryKey, QueryPart, RawQuery, RecordError, ReportOptions, Resume, StreamQuery, Subject,
};
pub use statistic::{Statistic, StatisticKind, Statistics};
pub use stream::{
    Cursor, CursorError, FlowRef, FlowStream, STREAM_LINE_BYTES, StreamError, StreamItem, StreamPause,
};
pub use time::{EndReason, Span, Time, TimeSource};
pub use value::{Value, status_bit, status_names};
