//! Names in place of numbers: services from /etc/services, users from the name service of the system.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::OnceLock;

use nix::unistd::{Uid, User};

/// TCP, UDP, DCCP, SCTP and UDP-Lite, which has UDP's services.
const PROTOCOLS: [(u8, &str); 5] = [(6, "tcp"), (17, "udp"), (33, "dccp"), (132, "sctp"), (136, "udp")];

/// The services of this machine.
#[derive(Debug, Default)]
struct Services {
    /// The first name of each port of each protocol.
    names: HashMap<(u16, u8), Box<str>>,
    /// Names and aliases in small letters.
    ports: HashMap<Box<str>, Vec<u16>>,
}

impl Services {
    /// A line is `name port/protocol alias ...`; what is behind `#` is a comment.
    fn parse(text: &str) -> Self {
        let mut services = Self::default();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let (Some(name), Some((port, protocol))) =
                (words.next(), words.next().and_then(|word| word.split_once('/')))
            else {
                continue;
            };
            let Ok(port) = port.parse() else { continue };
            for (number, _) in PROTOCOLS.iter().filter(|(_, known)| *known == protocol) {
                services.names.entry((port, *number)).or_insert_with(|| name.into());
            }
            for name in std::iter::once(name).chain(words) {
                let ports = services.ports.entry(name.to_ascii_lowercase().into()).or_default();
                if !ports.contains(&port) {
                    ports.push(port);
                }
            }
        }
        services
    }

    fn of_machine() -> &'static Self {
        static SERVICES: OnceLock<Services> = OnceLock::new();
        SERVICES.get_or_init(|| Self::parse(&std::fs::read_to_string("/etc/services").unwrap_or_default()))
    }
}

/// Ports from here on are anybody's: a name of theirs would be a guess.
const FIRST_UNPRIVILEGED: u16 = 1024;

/// The name of a service, if it has one here.
pub(crate) fn service(port: u16, protocol: u8) -> Option<&'static str> {
    if port >= FIRST_UNPRIVILEGED {
        return None;
    }
    Services::of_machine().names.get(&(port, protocol)).map(|name| &**name)
}

/// The ports of a service, whatever the protocol; none for a name that is not known here.
pub(crate) fn ports(service: &str) -> &'static [u16] {
    Services::of_machine().ports.get(&*service.to_ascii_lowercase()).map(Vec::as_slice).unwrap_or_default()
}

/// The number of a user.
pub(crate) fn uid(name: &str) -> Option<u32> {
    User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
}

/// The name of a user, or the number of one without a name. Each user is asked for once.
pub(crate) fn user_or_number(uid: u64) -> String {
    thread_local! {
        static USERS: RefCell<HashMap<u64, String>> = RefCell::default();
    }
    let name = || {
        let user = User::from_uid(Uid::from_raw(uid.try_into().ok()?)).ok().flatten()?;
        Some(user.name)
    };
    USERS.with_borrow_mut(|users| {
        users.entry(uid).or_insert_with(|| name().unwrap_or_else(|| uid.to_string())).clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_names_by_protocol_and_aliases() {
        let services = Services::parse(
            "# comment\nhttps 443/tcp # http over TLS\nhttps\t443/udp\ndomain 53/udp DNS\nbroken\nodd x/tcp\nsyslog 514/udp\nshell 514/tcp cmd syslog\n",
        );
        assert_eq!(services.names.get(&(443, 6)).map(|name| &**name), Some("https"));
        assert_eq!(services.names.get(&(514, 6)).map(|name| &**name), Some("shell"));
        assert_eq!(services.names.get(&(53, 136)).map(|name| &**name), Some("domain"));
        assert_eq!(services.ports.get("dns"), Some(&vec![53]));
        assert_eq!(services.ports.get("syslog"), Some(&vec![514]));
        assert_eq!(services.names.len(), 8);
    }

    #[test]
    fn users_have_names_and_numbers() {
        assert_eq!((uid("root"), user_or_number(0)), (Some(0), "root".to_owned()));
        assert_eq!(uid("nobody-has-this-name"), None);
        assert_eq!(user_or_number(4_000_000_000), "4000000000");
    }
}
