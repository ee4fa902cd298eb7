//! The messages of a route socket, as far as they name interfaces and addresses.
//!
//! netlink-packet-route has the headers and the requests. Its messages are not used: they fail as a whole for any attribute of
//! some sixty that a newer kernel sends otherwise (its issues 54, 140, 151). We look at one attribute of a message, which alone
//! can cost the name.

use std::net::IpAddr;

use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkMessage,
    NlasIterator, parse_ip,
};
use netlink_packet_route::address::{AddressHeader, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkHeader, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// `nlmsg_type` (linux/rtnetlink.h); the crate keeps these numbers to itself, as those of the attributes.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
/// linux/if_link.h, linux/if_addr.h.
const IFLA_IFNAME: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// What is asked for by a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteDump {
    Links,
    Addresses,
}

impl RouteDump {
    /// The request for all interfaces or all addresses.
    pub(super) fn request(self) -> Vec<u8> {
        let inner = match self {
            Self::Links => {
                let mut message = LinkMessage::default();
                // Statistics are half of a message, and virtual functions, which we do not ask for, can be hundreds.
                message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
                RouteNetlinkMessage::GetLink(message)
            }
            Self::Addresses => RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        };
        let mut message = NetlinkMessage::from(inner);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// There is an interface of this name.
    Link { index: u32, name: String },
    /// There is no such interface any more.
    Deleted { index: u32 },
    /// There is an address.
    Address(IpAddr),
    /// An address is gone; another interface may have the same.
    AddressDeleted,
    /// The dump has ended.
    Done,
    /// The dump is refused: another one runs, of an earlier owner of this socket.
    Refused,
}

/// The messages of one datagram. Those that say nothing of the kind are passed over, as are those that cannot be read.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message> {
    std::iter::from_fn(move || {
        while !datagram.is_empty() {
            match take(&mut datagram) {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "a message of the route socket cannot be read, ignoring")
                }
            }
        }
        None
    })
}

/// Takes a message off the datagram; all of the datagram where the message's length is wrong.
fn take(datagram: &mut &[u8]) -> Result<Option<Message>, DecodeError> {
    let rest = std::mem::take(datagram);
    let message = NetlinkBuffer::new_checked(rest)?;
    *datagram = rest.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
    let body = message.payload();
    Ok(match message.message_type() {
        RTM_NEWLINK => link(body)?,
        RTM_DELLINK => index(body)?.map(|index| Message::Deleted { index }),
        RTM_NEWADDR => address(body)?,
        RTM_DELADDR => Some(Message::AddressDeleted),
        NLMSG_DONE => Some(Message::Done),
        NLMSG_ERROR => Some(Message::Refused),
        _ => None,
    })
}

/// The index of the interface. A bridge announces its ports in messages of the same types and its own family; those are not
/// about the interface.
fn index(body: &[u8]) -> Result<Option<u32>, DecodeError> {
    let header = LinkHeader::parse(body)?;
    Ok((header.interface_family == AddressFamily::Unspec).then_some(header.index))
}

fn link(body: &[u8]) -> Result<Option<Message>, DecodeError> {
    let Some(index) = index(body)? else { return Ok(None) };
    let name = find(body, LinkHeader::default().buffer_len(), IFLA_IFNAME, |name| Ok(text(name)))?;
    Ok(name.map(|name| Message::Link { index, name }))
}

/// A name up to its zero. The kernel takes bytes that are no text; those are replaced.
fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// The address of this machine: of a tunnel the near end, which is in `IFA_LOCAL`.
fn address(body: &[u8]) -> Result<Option<Message>, DecodeError> {
    let header = AddressHeader::default().buffer_len();
    let address = match find(body, header, IFA_LOCAL, parse_ip)? {
        None => find(body, header, IFA_ADDRESS, parse_ip)?,
        local => local,
    };
    Ok(address.map(Message::Address))
}

/// The first attribute of this kind, of those behind the header. The others are not read.
fn find<T>(
    body: &[u8],
    header: usize,
    kind: u16,
    parse: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    for attribute in NlasIterator::new(body.get(header..).unwrap_or_default()) {
        let attribute = attribute?;
        if attribute.kind() == kind {
            return parse(attribute.value()).map(Some);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + payload.len()).unwrap();
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), payload].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// A message with a header of `header` and attributes.
    fn message(kind: u16, header: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
        let body = [header, &attributes.concat()].concat();
        let length = u32::try_from(16 + body.len()).unwrap();
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &body].concat()
    }

    /// A `struct ifinfomsg`.
    fn interface(family: u8, index: u32) -> Vec<u8> {
        [&[family, 0, 1, 0][..], &index.to_ne_bytes(), &[0; 8]].concat()
    }

    fn named(index: u32, name: &str) -> Message {
        Message::Link { index, name: name.to_owned() }
    }

    fn read(datagram: &[u8]) -> Vec<Message> {
        messages(datagram).collect()
    }

    #[test]
    fn links_are_named_and_deleted() {
        let name = |name: &[u8]| attribute(IFLA_IFNAME, name);
        let datagram = [
            message(RTM_NEWLINK, &interface(0, 7), &[attribute(13, &[1, 0, 0, 0]), name(b"wlan0\0")]),
            message(RTM_NEWLINK, &interface(7, 8), &[name(b"port0\0")]),
            message(RTM_DELLINK, &interface(7, 8), &[name(b"port0\0")]),
            message(RTM_DELLINK, &interface(0, 9), &[]),
            message(NLMSG_DONE, &[0; 4], &[]),
        ];
        let expected = [named(7, "wlan0"), Message::Deleted { index: 9 }, Message::Done];
        assert_eq!(read(&datagram.concat()), expected);
    }

    #[test]
    fn addresses_are_those_of_this_end() {
        let (far, near) = (attribute(IFA_ADDRESS, &[198, 18, 0, 9]), attribute(IFA_LOCAL, &[198, 18, 0, 1]));
        let v6 = attribute(IFA_ADDRESS, &[0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let message = |attributes: &[Vec<u8>]| message(RTM_NEWADDR, &[0; 8], attributes);
        let expected = ["198.18.0.1", "2001:2::1"].map(|text| Message::Address(text.parse().unwrap()));
        assert_eq!(read(&[message(&[far, near]), message(&[v6]), message(&[])].concat()), expected);
    }

    /// What a newer kernel sends otherwise is refused by the crate as a whole, and is no matter here.
    #[test]
    fn a_message_that_the_crate_refuses_still_names_its_interface() {
        let name = attribute(IFLA_IFNAME, b"vxlan0\0");
        // IFLA_LINKINFO with a vxlan's data, of which VXLAN_TTL has no byte; IFLA_MTU of three bytes; IFLA_AF_SPEC cut short.
        let kind = attribute(1, b"vxlan\0");
        let vxlan = attribute(18, &[kind, attribute(2, &attribute(5, &[]))].concat());
        let others = [vxlan, attribute(4, &[1, 2, 3]), attribute(26, &[9, 0, 2])];
        for other in others {
            for (kind, expected) in
                [(RTM_NEWLINK, named(7, "vxlan0")), (RTM_DELLINK, Message::Deleted { index: 7 })]
            {
                let refused = message(kind, &interface(0, 7), &[name.clone(), other.clone()]);
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(&refused)
                    .expect_err("the crate refuses it");
                // The messages around it are read, too.
                let before = message(RTM_DELLINK, &interface(0, 3), &[]);
                let datagram = [before.clone(), refused, before].concat();
                let deleted = Message::Deleted { index: 3 };
                assert_eq!(read(&datagram), [deleted.clone(), expected, deleted]);
            }
        }
    }

    #[test]
    fn a_name_or_an_address_that_cannot_be_read_costs_its_message_alone() {
        let last = message(RTM_NEWLINK, &interface(0, 2), &[attribute(IFLA_IFNAME, b"lo\0")]);
        for broken in [
            message(RTM_NEWLINK, &interface(0, 7), &[vec![2, 0, 3, 0]]),
            message(RTM_NEWLINK, &interface(0, 7), &[vec![200, 0, 3, 0]]),
            message(RTM_NEWLINK, &[0; 8], &[]),
            message(RTM_DELLINK, &[], &[]),
            message(RTM_NEWADDR, &[0; 8], &[attribute(IFA_LOCAL, &[198, 18, 0])]),
            message(RTM_NEWADDR, &[0; 4], &[]),
            message(0x3fff, &[], &[]),
        ] {
            assert_eq!(read(&[broken, last.clone()].concat()), [named(2, "lo")]);
        }
    }

    #[test]
    fn a_name_that_is_no_text_is_shown_as_far_as_it_is() {
        let link = message(RTM_NEWLINK, &interface(0, 7), &[attribute(IFLA_IFNAME, b"caf\xe9\0")]);
        assert_eq!(read(&link), [named(7, "caf\u{fffd}")]);
    }

    #[test]
    fn what_is_cut_short_names_nothing() {
        let whole = message(RTM_NEWLINK, &interface(0, 7), &[attribute(IFLA_IFNAME, b"wlan0\0")]);
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length]), [], "{length} bytes");
        }
        // A header that counts less than itself, or more than there is.
        assert_eq!(read(&[0; 64]), []);
        assert_eq!(read(&[0xff; 64]), []);
    }

    #[test]
    fn dumps_are_asked_for_without_statistics_and_virtual_functions() {
        let mut links = message(18, &interface(0, 0), &[attribute(29, &8_u32.to_ne_bytes())]);
        let mut addresses = message(22, &[0; 8], &[]);
        for request in [&mut links, &mut addresses] {
            request[6..8].copy_from_slice(&0x301_u16.to_ne_bytes());
        }
        // `ifi_type` of the request is not set.
        links[18] = 0;
        assert_eq!((RouteDump::Links.request(), RouteDump::Addresses.request()), (links, addresses));
    }
}
