//! The change of a connection, on a real bus.

use std::sync::Arc;

use flowbus_guard::{Guard, Limits, Service};
use flowbus_tests::Bus;
use tokio::sync::Semaphore;
use zbus::connection::Builder;

const PATH: &str = "/org/flowbus/Test";
const ANSWER: u32 = 7;

/// An interface without members.
#[derive(Clone)]
struct Nothing;

#[zbus::interface(name = "org.flowbus.Test.Nothing")]
impl Nothing {}

/// Answers when it may.
struct Slow {
    called: Arc<Semaphore>,
    may_answer: Arc<Semaphore>,
}

#[zbus::interface(name = "org.flowbus.Test.Slow")]
impl Slow {
    async fn wait(&self) -> u32 {
        self.called.add_permits(1);
        self.may_answer.acquire().await.map_or(0, |_permit| ANSWER)
    }
}

#[tokio::test]
async fn our_own_calls_outlive_a_change_of_connection() {
    let bus = Bus::start();
    let [called, may_answer] = [(); 2].map(|()| Arc::new(Semaphore::new(0)));
    let slow = Slow { called: Arc::clone(&called), may_answer: Arc::clone(&may_answer) };
    let other = Builder::address(bus.address().as_str()).serve_at(PATH, slow).build().await.unwrap();
    let service = Service {
        address: bus.address().parse().unwrap(),
        name: "org.flowbus.Test",
        path: PATH,
        interface: Nothing,
        guard: Arc::new(Guard::new(Limits {
            sender: 1,
            user: 1,
            all: 1,
            reserved: [0; 2],
            descriptor: false,
        })),
    };
    let mut link = service.open().await.unwrap();
    let old = link.connection.clone();
    let callee = other.unique_name().unwrap().clone();
    let caller = old.clone();
    let call = tokio::spawn(async move {
        caller.call_method(Some(callee), PATH, Some("org.flowbus.Test.Slow"), "Wait", &()).await
    });
    called.acquire().await.unwrap().forget();
    // Twice, so that the call is on a connection that is neither this one's nor the one before.
    for _ in 0..2 {
        assert!(service.renew(&mut link).await);
    }
    assert_ne!(link.connection.unique_name(), old.unique_name());
    // The bus has handled all of it, and the old connection is still there.
    link.confirm().await.unwrap();
    let bus_proxy = zbus::fdo::DBusProxy::new(&other).await.unwrap();
    let is_there = || bus_proxy.name_has_owner(old.unique_name().unwrap().clone().into());
    assert!(is_there().await.unwrap());
    may_answer.add_permits(1);
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.body().deserialize::<u32>().unwrap(), ANSWER);
    old.closed().await;
    while is_there().await.unwrap() {
        tokio::task::yield_now().await;
    }
    link.close().await;
}
