//! Prints the active connections, then every change, from a stream, until flowbusd ends it.
//!
//! `cargo run -p flowbus-interfaces --example follow [ADDRESS]`, the address being that of a bus; without it the system bus.
#![allow(clippy::print_stdout, reason = "it is what the example does")]

use std::error::Error;

use flowbus_interfaces::{FlowMonitorProxy, FlowRef, FlowStream, Key, QueryMap, StreamItem, event_name};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let connection = match std::env::args().nth(1) {
        Some(address) => zbus::connection::Builder::address(address.as_str()).build().await?,
        None => zbus::Connection::system().await?,
    };
    let monitor = FlowMonitorProxy::new(&connection).await?;
    // Which flows, and what of them; with an empty query every flow and every field.
    let query = QueryMap::from([
        ("protocol", vec!["tcp", "udp"].into()),
        ("fields", vec!["id", "protocol", "src", "dst"].into()),
    ]);
    let mut stream = FlowStream::open(&monitor, &query).await?;
    while let Some(item) = stream.next().await? {
        match item {
            StreamItem::Flow(flow) => print("alive", &flow),
            StreamItem::Event { kind, flow, .. } => print(event_name(kind), &flow),
            StreamItem::Gap { lost, .. } => println!("missed {lost}"),
            StreamItem::End { reason } => {
                return Err(format!("flowbusd has ended the stream: {reason}").into());
            }
            // Later versions have more.
            _ => {}
        }
    }
    Err("the stream has broken off: flowbusd was killed".into())
}

fn print(what: &str, flow: &FlowRef<'_>) {
    let text = |key| flow.text(key).unwrap_or_default();
    let id = flow.number(Key::Id).unwrap_or_default();
    println!("{what} {id} {} {} {}", text(Key::Protocol), text(Key::Src), text(Key::Dst));
}
