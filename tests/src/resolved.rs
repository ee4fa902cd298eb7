//! A service in the place of systemd-resolved, which the machines of the tests do not have: it gives names to addresses.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use tokio::sync::{Semaphore, oneshot};
use zbus::connection::Builder;

use crate::Bus;

/// The service, which owns the name on a bus until it is dropped.
#[derive(Debug)]
pub struct Resolved {
    manager: Manager,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What systemd-resolved says of an address without a name.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.resolve1.DnsError")]
enum DnsError {
    #[zbus(error)]
    Bus(zbus::Error),
    #[zbus(name = "NXDOMAIN")]
    NameDoesNotExist(String),
}

#[derive(Clone, Debug)]
struct Manager {
    asked: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    /// Answers that may be given.
    answers: Arc<Semaphore>,
}

#[zbus::interface(name = "org.freedesktop.resolve1.Manager")]
impl Manager {
    /// 198.18.1.2 is host-1-2.lan.test; addresses of 198.19.0.0/16 have no name.
    async fn resolve_address(
        &self,
        _link: i32,
        _family: i32,
        address: Vec<u8>,
        _flags: u64,
    ) -> Result<(Vec<(i32, String)>, u64), DnsError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.open.fetch_add(1, Ordering::SeqCst);
        self.answers.acquire().await.expect("it is never closed").forget();
        self.open.fetch_sub(1, Ordering::SeqCst);
        match *address {
            [198, 18, high, low] => Ok((vec![(0, format!("host-{high}-{low}.lan.test"))], 0)),
            _ => Err(DnsError::NameDoesNotExist("it does not exist".to_owned())),
        }
    }
}

impl Resolved {
    /// Starts the service, which answers nothing before [`Resolved::answer`].
    ///
    /// # Panics
    /// If the name is taken.
    #[must_use]
    pub fn start(bus: &Bus) -> Self {
        let manager =
            Manager { asked: Arc::default(), open: Arc::default(), answers: Arc::new(Semaphore::new(0)) };
        let (end, ended) = oneshot::channel::<()>();
        let (begun, ready) = mpsc::channel();
        let (served, address) = (manager.clone(), bus.address());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be started").block_on(async {
                let builder = Builder::address(address.as_str()).name("org.freedesktop.resolve1");
                let builder = builder.serve_at("/org/freedesktop/resolve1", served);
                let _connection = builder.build().await.expect("the name is free");
                let _ = begun.send(());
                let _ = ended.await;
            });
        });
        ready.recv().expect("it has its name");
        Self { manager, end: Some(end), thread: Some(thread) }
    }

    /// Answers whatever is asked from now on.
    pub fn answer(&self) {
        self.manager.answers.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// How many questions the service was asked.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.manager.asked.load(Ordering::SeqCst)
    }

    /// How many questions the service has not answered.
    #[must_use]
    pub fn open(&self) -> usize {
        self.manager.open.load(Ordering::SeqCst)
    }
}

impl Drop for Resolved {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
