//! The client side against services on a real bus.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use ctnetlink::{Layer4, Tuple};
use flowbus_interfaces::{
    Connection, ConnectionKind, Dictionary, DictionaryArray, Error, FLOW_EVENTS_INTERFACE, FLOW_EVENTS_NAME,
    FLOW_EVENTS_PATH, FLOW_MONITOR_NAME, FLOW_MONITOR_PATH, FieldSet, Flow, FlowEventsProxy,
    FlowMonitorProxy, Key, Owner, Page, Query, QueryMap, RawQuery, SourceNames,
};
use futures_util::StreamExt;
use zbus::connection::{Builder, Connection as BusConnection};
use zbus::wire::NATIVE_ENDIAN;

/// A dbus-daemon of the test's own.
struct Bus {
    process: Child,
    address: String,
}

impl Bus {
    fn start() -> Self {
        let mut process = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", "--print-address=1", "--address=unix:tmpdir=/tmp"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { process, address: address.trim().to_owned() }
    }

    async fn connect(&self) -> BusConnection {
        Builder::address(self.address.as_str()).build().await.unwrap()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// A service with one flow.
struct Service(SourceNames);

fn flow() -> Flow<'static> {
    let tuple = |src: &str, dst: &str| Tuple {
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        protocol: 17,
        layer4: Layer4::Ports { src: 53, dst: 53 },
        zone: 0,
    };
    Flow::new(7, tuple("198.18.0.2", "198.18.0.3"), tuple("198.18.0.3", "198.18.0.2"))
}

#[zbus::interface(name = "org.flowbus.FlowMonitor1")]
impl Service {
    #[zbus(out_args("flows", "page"))]
    fn list_active(&self, query: RawQuery) -> Result<(Vec<Dictionary<'_>>, Page), Error> {
        let query = Query::parse(&query, &SourceNames::default())?;
        let shown = query.after.is_none() && query.filter.matches(&flow());
        let flows = if shown { vec![flow().dictionary(&self.0, query.fields)] } else { vec![] };
        Ok((flows, Page { next: None, sequence: 9, epoch: "e".into(), synchronized: true }))
    }

    #[zbus(out_args("flow"))]
    fn get_flow(&self, id: u64) -> Result<Dictionary<'_>, Error> {
        if id == 7 {
            Ok(flow().dictionary(&self.0, FieldSet::ALL))
        } else {
            Err(Error::NotFound(format!("no flow {id}")))
        }
    }
}

#[tokio::test]
async fn flows_pages_and_errors_reach_the_client() {
    let bus = Bus::start();
    let service = bus.connect().await;
    service.object_server().at(FLOW_MONITOR_PATH, Service(SourceNames::default())).await.unwrap();
    service.request_name(FLOW_MONITOR_NAME).await.unwrap();
    let client = FlowMonitorProxy::new(&bus.connect().await).await.unwrap();

    let (flows, page) = client.list_active(&QueryMap::new()).await.unwrap();
    assert_eq!((flows.len(), page.sequence, page.next), (1, 9, None));
    assert_eq!(flows[0], client.get_flow(7).await.unwrap());

    let query = QueryMap::from([("fields", vec!["id", "src"].into()), ("limit", "1".into())]);
    let (flows, _) = client.list_active(&query).await.unwrap();
    let keys: Vec<_> = flows[0].iter().map(|(key, _)| key).collect();
    assert_eq!(keys, [Key::Id, Key::Src]);

    let mut query = RawQuery::default();
    query.add_word("source=CHROME,USER").unwrap();
    assert!(client.list_active(&query.to_map()).await.unwrap().0.is_empty());
    let error = client.list_active(&QueryMap::from([("source", "CHROMIUM".into())])).await.unwrap_err();
    assert!(matches!(&error, Error::InvalidArgument(text) if text.contains("source")), "{error}");
    assert_eq!(client.get_flow(8).await.unwrap_err(), Error::NotFound("no flow 8".into()));
}

#[tokio::test]
async fn a_signal_that_someone_else_makes_up_is_not_seen() {
    let bus = Bus::start();
    let (service, impostor, client) = (bus.connect().await, bus.connect().await, bus.connect().await);
    service.request_name(FLOW_EVENTS_NAME).await.unwrap();
    let mut batches = FlowEventsProxy::new(&client).await.unwrap().receive_flow_events().await.unwrap();

    for (sender, sequence) in [(&impostor, 666_u64), (&service, 1)] {
        let names = SourceNames::default();
        let body = (sequence, vec![flow().dictionary(&names, FieldSet::ALL)], 0_u64);
        sender
            .emit_signal(None::<&str>, FLOW_EVENTS_PATH, FLOW_EVENTS_INTERFACE, "FlowEvents", &body)
            .await
            .unwrap();
        // The bus has passed the signal on once it answers what was sent after it.
        zbus::fdo::DBusProxy::new(sender).await.unwrap().get_id().await.unwrap();
    }
    let batch = batches.next().await.unwrap();
    let batch = batch.args().unwrap();
    assert_eq!((batch.sequence, batch.lost), (1, 0));
    assert_eq!(batch.events[0].number(Key::Id), Some(7));
}

#[tokio::test]
async fn what_connections_do_reaches_the_client() {
    let bus = Bus::start();
    let (service, client) = (bus.connect().await, bus.connect().await);
    service.request_name(FLOW_EVENTS_NAME).await.unwrap();
    let mut batches = FlowEventsProxy::new(&client).await.unwrap().receive_connection_events().await.unwrap();
    let event = Connection {
        kind: ConnectionKind::Close,
        sequence: 9,
        flow: Some(7),
        protocol: 6,
        local: "198.18.0.2:40000".parse().unwrap(),
        remote: "[2001:2::1]:443".parse().unwrap(),
        network_namespace: None,
        monotonic_nsec: 1,
        time_usec: 2,
        owner: Some(Owner { pid: Some(42), comm: Some("curl"), ..Owner::default() }),
        tid: None,
        error: None,
        reset: Some(true),
        sent_bytes: Some(5),
        received_bytes: None,
        rtt_usec: Some(250),
        retransmissions: Some(0),
        connect_usec: None,
    };
    let mut events = DictionaryArray::new(NATIVE_ENDIAN);
    events.push_connection(&event);
    let body = (9_u64, events, 3_u64);
    let signal =
        service.emit_signal(None::<&str>, FLOW_EVENTS_PATH, FLOW_EVENTS_INTERFACE, "ConnectionEvents", &body);
    signal.await.unwrap();
    let batch = batches.next().await.unwrap();
    let batch = batch.args().unwrap();
    assert_eq!((batch.sequence, batch.lost), (9, 3));
    let read = &batch.events[0];
    assert_eq!((read.kind, read.flow, read.pid, read.tid), (ConnectionKind::Close, Some(7), Some(42), None));
    assert_eq!((read.dst, read.dport), (event.remote.ip(), 443));
    assert_eq!((read.reset, read.sent_bytes, read.received_bytes), (Some(true), Some(5), None));
    assert_eq!((read.rtt_usec, read.retransmissions, read.connect_usec), (Some(250), Some(0), None));
}
