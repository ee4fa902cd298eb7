//! The messages of a route socket (linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h), as far as they name interfaces and
//! addresses.
//!
//! By hand, because it is a name or an address of four messages: a library that knows all of rtnetlink is a sixth of the program.

use std::borrow::Cow;
use std::net::IpAddr;

/// Asks for all interfaces: `RTM_GETLINK`.
pub(super) const LINKS_REQUEST: [u8; 32] = dump_request(18);
/// Asks for all addresses: `RTM_GETADDR`.
pub(super) const ADDRESSES_REQUEST: [u8; 32] = dump_request(22);

/// A request with `NLM_F_REQUEST | NLM_F_DUMP`, and an empty `struct ifinfomsg` or `struct ifaddrmsg`.
const fn dump_request(kind: u16) -> [u8; 32] {
    let ([l0, l1, l2, l3], [t0, t1], [f0, f1]) =
        (32_u32.to_ne_bytes(), kind.to_ne_bytes(), 0x301_u16.to_ne_bytes());
    let mut request = [0; 32];
    (request[0], request[1], request[2], request[3]) = (l0, l1, l2, l3);
    (request[4], request[5], request[6], request[7]) = (t0, t1, f0, f1);
    request
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// There is an interface of this name.
    Link { index: u32, name: Cow<'a, str> },
    /// There is no such interface any more.
    Deleted { index: u32 },
    /// There is an address.
    Address(IpAddr),
    /// An address is gone; another interface may have the same.
    AddressDeleted,
    /// The dump has ended.
    Done,
    /// There is no such dump: another one runs, of whoever had this socket before.
    Refused,
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFLA_IFNAME: u16 = 3;
/// `sizeof(struct ifinfomsg)`.
const IFINFOMSG: usize = 16;
/// `sizeof(struct ifaddrmsg)`.
const IFADDRMSG: usize = 8;

/// The messages of one datagram; those that say nothing of the kind are passed over.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    // struct nlmsghdr: length, type, flags, sequence, port.
    let headers = chunks(datagram, |message| {
        let length = u32::from_ne_bytes(*message.first_chunk()?);
        Some((usize::try_from(length).ok()?, u16::from_ne_bytes(*message.get(4..)?.first_chunk()?), 16))
    });
    headers.filter_map(|(kind, body)| match kind {
        RTM_NEWLINK => Some(Message::Link { index: index(body)?, name: name(body)? }),
        RTM_DELLINK => Some(Message::Deleted { index: index(body)? }),
        RTM_NEWADDR => Some(Message::Address(address(body)?)),
        RTM_DELADDR => Some(Message::AddressDeleted),
        NLMSG_DONE => Some(Message::Done),
        NLMSG_ERROR => Some(Message::Refused),
        _ => None,
    })
}

/// The index in a `struct ifinfomsg`: family, padding, type, index, flags, change. A bridge tells of its ports in
/// messages of the same types and its own family; those are not about the interface.
fn index(body: &[u8]) -> Option<u32> {
    let index = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?);
    (body.first() == Some(&0)).then_some(index)
}

/// The interface's name, which has at most 15 bytes and ends with a zero.
fn name(body: &[u8]) -> Option<Cow<'_, str>> {
    let (_, name) = attributes(body.get(IFINFOMSG..)?).find(|(kind, _)| *kind == IFLA_IFNAME)?;
    Some(String::from_utf8_lossy(name.split(|byte| *byte == 0).next()?))
}

/// The address of this machine: of a tunnel the near end, which stands in `IFA_LOCAL`.
fn address(body: &[u8]) -> Option<IpAddr> {
    let find = |wanted| attributes(body.get(IFADDRMSG..)?).find(|(kind, _)| *kind == wanted);
    let (_, bytes) = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?;
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// `struct nlattr`: length, type.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    chunks(bytes, |attribute| {
        let [low, high, kind_low, kind_high] = *attribute.first_chunk()?;
        Some((usize::from(u16::from_ne_bytes([low, high])), u16::from_ne_bytes([kind_low, kind_high]), 4))
    })
}

/// Pieces that begin at multiples of four; `header` tells a piece's length, its type, and how long its header is.
/// What is cut short ends them.
fn chunks(
    mut rest: &[u8],
    header: impl Fn(&[u8]) -> Option<(usize, u16, usize)>,
) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind, begin) = header(rest)?;
        let body = rest.get(begin..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, family: u8, index: u32, attributes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(32 + attributes.len()).unwrap();
        let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]].concat();
        let link = [&[family, 0, 1, 0][..], &index.to_ne_bytes(), &[0; 8]].concat();
        [&header[..], &link, attributes].concat()
    }

    /// An IFLA_TXQLEN, then IFLA_IFNAME.
    fn named(name: &[u8; 8]) -> Vec<u8> {
        let attribute = |length: u16, kind: u16| [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        [&attribute(8, 13)[..], &[1, 0, 0, 0], &attribute(12, IFLA_IFNAME), name].concat()
    }

    #[test]
    fn links_are_named_and_deleted() {
        let datagram = [
            message(RTM_NEWLINK, 0, 7, &named(b"wlan0\0\0\0")),
            message(RTM_DELLINK, 7, 8, &named(b"port0\0\0\0")),
            message(RTM_DELLINK, 0, 9, &[]),
            message(NLMSG_DONE, 0, 0, &[]),
        ];
        let found: Vec<_> = messages(&datagram.concat()).map(|message| format!("{message:?}")).collect();
        let expected =
            [Message::Link { index: 7, name: "wlan0".into() }, Message::Deleted { index: 9 }, Message::Done];
        assert_eq!(found, expected.map(|message| format!("{message:?}")));
    }

    #[test]
    fn addresses_are_those_of_this_end() {
        let attribute = |kind: u16, bytes: &[u8]| {
            let length = u16::try_from(4 + bytes.len()).unwrap();
            [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), bytes].concat()
        };
        let message = |attributes: &[u8]| {
            let length = u32::try_from(16 + IFADDRMSG + attributes.len()).unwrap();
            let header = [&length.to_ne_bytes()[..], &RTM_NEWADDR.to_ne_bytes(), &[0; 10]].concat();
            [&header[..], &[0; IFADDRMSG], attributes].concat()
        };
        let tunnel =
            [attribute(IFA_ADDRESS, &[198, 18, 0, 9]), attribute(IFA_LOCAL, &[198, 18, 0, 1])].concat();
        let v6 = attribute(IFA_ADDRESS, &[0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let datagram = [message(&tunnel), message(&v6), message(&[])].concat();
        let found: Vec<_> = messages(&datagram).collect();
        let expected = ["198.18.0.1", "2001:2::1"].map(|text| Message::Address(text.parse().unwrap()));
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_cut_short_names_nothing() {
        let whole = message(RTM_NEWLINK, 0, 7, &named(b"wlan0\0\0\0"));
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).count(), 0, "{length} bytes");
        }
        // A header that counts less than itself.
        assert_eq!(messages(&[0; 64]).count(), 0);
    }
}
