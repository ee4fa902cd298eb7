//! Names of addresses, which systemd-resolved is asked for in the background: nobody waits for an answer before a line is printed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use flowbus_interfaces::BusAddress;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use zbus::Proxy;

use crate::cell;

/// Questions at a time.
const IN_FLIGHT: usize = 16;
/// Questions that wait for their turn. An address beyond that is asked for when it is shown again.
const WAITING: usize = 1024;
/// Addresses that are remembered. Beyond that all are forgotten; systemd-resolved has a cache of its own.
const REMEMBERED: usize = 4096;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The one resolver of the program: flows are printed on any thread.
static RESOLVER: OnceLock<Resolver> = OnceLock::new();

/// What is known, and the way to ask for more.
struct Resolver {
    known: Mutex<HashMap<IpAddr, Known>>,
    questions: mpsc::Sender<IpAddr>,
    /// Why no address has a name.
    failure: OnceLock<String>,
}

/// What is known of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    Asked,
    Nameless,
    /// The name; `late` until it was shown.
    Named {
        name: Arc<str>,
        late: bool,
    },
}

impl Resolver {
    fn known(&self) -> MutexGuard<'_, HashMap<IpAddr, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of an address, if it is known by now; else it is asked for.
    fn name(&self, address: IpAddr) -> Option<Arc<str>> {
        let mut known = self.known();
        match known.get_mut(&address) {
            Some(Known::Named { name, late }) => {
                *late = false;
                return Some(name.clone());
            }
            Some(Known::Asked | Known::Nameless) => return None,
            None => {}
        }
        if self.failure.get().is_none() && self.questions.try_send(address).is_ok() {
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert(address, Known::Asked);
        }
        None
    }

    /// Answers questions until systemd-resolved turns out not to be there.
    async fn answer(&self, questions: mpsc::Receiver<IpAddr>) {
        let resolved = match connect().await {
            Ok(resolved) => resolved,
            Err(error) => return self.fail(&error),
        };
        let questions = stream::unfold(questions, async |mut questions| {
            let question = questions.recv().await?;
            Some((question, questions))
        });
        questions
            .for_each_concurrent(IN_FLIGHT, async |address| {
                let name = match tokio::time::timeout(PATIENCE, ask(&resolved, address)).await {
                    Ok(Err(error)) if !is_an_answer(&error) => {
                        self.fail(&error);
                        None
                    }
                    Ok(Ok(name)) => name,
                    Ok(Err(_)) | Err(_) => None,
                };
                let known = name.map_or(Known::Nameless, |name| Known::Named { name, late: true });
                self.known().insert(address, known);
            })
            .await;
    }

    fn fail(&self, error: &zbus::Error) {
        let _ =
            self.failure.set(format!("addresses have no names: systemd-resolved cannot be asked: {error}"));
        self.known().retain(|_, known| *known != Known::Asked);
    }
}

/// Begins to ask for the names of addresses.
pub(crate) fn start() {
    let mut receiver = None;
    let resolver = RESOLVER.get_or_init(|| {
        let (questions, waiting) = mpsc::channel(WAITING);
        receiver = Some(waiting);
        Resolver { known: Mutex::default(), questions, failure: OnceLock::new() }
    });
    let Some(receiver) = receiver else { return };
    // A thread of its own: the printing one may be busy, or wait for whoever reads.
    thread::spawn(move || {
        if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
            runtime.block_on(resolver.answer(receiver));
        }
    });
}

/// The name of an address, if it is known by now.
pub(crate) fn name(address: &str) -> Option<Arc<str>> {
    RESOLVER.get()?.name(address.parse().ok()?)
}

/// Why no address has a name.
pub(crate) fn failure() -> Option<&'static str> {
    RESOLVER.get()?.failure.get().map(String::as_str)
}

/// The names of addresses that were shown before their names were known, once those are there or two seconds have passed.
pub(crate) async fn late() -> Vec<(IpAddr, Arc<str>)> {
    let Some(resolver) = RESOLVER.get() else { return Vec::new() };
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end && resolver.known().values().any(|known| *known == Known::Asked) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let named = |(address, known): (&IpAddr, &Known)| match known {
        Known::Named { name, late: true } => Some((*address, name.clone())),
        _ => None,
    };
    let mut names: Vec<_> = resolver.known().iter().filter_map(named).collect();
    names.sort();
    names
}

async fn connect() -> zbus::Result<Proxy<'static>> {
    // systemd-resolved is on the system bus, wherever flowbusd is.
    let connection = BusAddress::System.connect().build().await?;
    Proxy::new(
        &connection,
        "org.freedesktop.resolve1",
        "/org/freedesktop/resolve1",
        "org.freedesktop.resolve1.Manager",
    )
    .await
}

/// The first name of an address.
async fn ask(resolved: &Proxy<'_>, address: IpAddr) -> zbus::Result<Option<Arc<str>>> {
    const AF_INET: i32 = 2;
    const AF_INET6: i32 = 10;
    let (family, octets) = match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    };
    let any_link = 0_i32;
    let no_flags = 0_u64;
    let (names, _): (Vec<(i32, String)>, u64) =
        resolved.call("ResolveAddress", &(any_link, family, octets, no_flags)).await?;
    // The holder of an address chooses its name.
    Ok(names.into_iter().next().map(|(_, name)| cell::clean(name.into()).into()))
}

/// Whether systemd-resolved says no more than that an address has no name.
fn is_an_answer(error: &zbus::Error) -> bool {
    let zbus::Error::MethodError(name, ..) = error else { return false };
    name.as_str().starts_with("org.freedesktop.resolve1.")
        || ["NoReply", "Timeout", "TimedOut"].iter().any(|end| name.as_str().ends_with(&format!(".{end}")))
}

/// The end of a name that is too long, which says whose it is.
pub(crate) fn shortened(name: &str, most: usize) -> String {
    let length = name.chars().count();
    if length <= most {
        return name.to_owned();
    }
    let end = name.chars().skip(length + 1 - most);
    ['…'].into_iter().chain(end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_and_what_is_remembered_are_bounded() {
        let (questions, mut waiting) = mpsc::channel(WAITING);
        let resolver = Resolver { known: Mutex::default(), questions, failure: OnceLock::new() };
        let address = |number: u32| IpAddr::from((0xC612_0000 + number).to_be_bytes());
        for number in 0..20_000 {
            assert_eq!(resolver.name(address(number)), None);
            if number >= 10_000 {
                waiting.try_recv().unwrap();
            } else {
                assert!(resolver.known().len() <= WAITING);
            }
            assert!(resolver.known().len() <= REMEMBERED);
        }
        resolver.known().insert(address(1), Known::Named { name: "one.test".into(), late: true });
        assert_eq!(resolver.name(address(1)).as_deref(), Some("one.test"));
        assert_eq!(
            resolver.known().get(&address(1)),
            Some(&Known::Named { name: "one.test".into(), late: false })
        );
    }

    #[test]
    fn of_a_long_name_the_end_is_shown() {
        assert_eq!(shortened("server.test", 11), "server.test");
        assert_eq!(shortened("a.server.test", 11), "…erver.test");
    }
}
