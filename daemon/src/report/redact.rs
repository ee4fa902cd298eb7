//! Addresses, ports and counts as a report shows them.
//!
//! Tokens have the shape of those of Chrome's redaction tool (components/feedback/redaction_tool), but name kinds of
//! addresses in words: that tool reads the report afterwards, and would take a range such as `10.0.0.0/8` for an address.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hashbrown::HashMap;

/// Hides addresses. The same address has the same token as long as the redactor lives.
#[derive(Debug)]
pub(super) struct Redactor {
    on: bool,
    numbers: HashMap<IpAddr, u32, foldhash::fast::RandomState>,
    /// How many IPv4 and IPv6 addresses have a number: Chrome counts them apart.
    counts: [u32; 2],
}

/// Ports that a system chooses for a client. Linux stops at 60999 (net.ipv4.ip_local_port_range), but guests and NAT
/// choose up to the end.
pub(super) const EPHEMERAL: std::ops::RangeFrom<u16> = 32768..;

impl Redactor {
    pub(super) fn new(on: bool) -> Self {
        Self { on, numbers: HashMap::default(), counts: [0; 2] }
    }

    /// Writes an address, with its port where it has one.
    pub(super) fn endpoint(&mut self, out: &mut String, address: IpAddr, port: Option<u16>) {
        // Writing to a string cannot fail.
        let _ = match (self.on, address, port) {
            (false, IpAddr::V6(v6), Some(port)) => write!(out, "[{v6}]:{port}"),
            (false, address, Some(port)) => write!(out, "{address}:{port}"),
            (false, address, None) => write!(out, "{address}"),
            (true, ..) => {
                match inner(address) {
                    // Without brackets a redaction tool reads the port as another group.
                    address @ IpAddr::V6(v6) if is_kept(address) && port.is_some() => {
                        let _ = write!(out, "[{v6}]");
                    }
                    address => self.token(out, address),
                }
                match port {
                    None => Ok(()),
                    Some(port) if EPHEMERAL.contains(&port) => write!(out, ":EPH"),
                    Some(port) => write!(out, ":{port}"),
                }
            }
        };
    }

    fn token(&mut self, out: &mut String, address: IpAddr) {
        if is_kept(address) {
            let _ = write!(out, "{address}");
            return;
        }
        let (kind, count) = match address {
            IpAddr::V4(v4) => (v4_kind(v4), &mut self.counts[0]),
            IpAddr::V6(v6) => (v6_kind(v6), &mut self.counts[1]),
        };
        let number = *self.numbers.entry(address).or_insert_with(|| {
            *count += 1;
            *count
        });
        let _ = write!(out, "({kind}: {number})");
    }

    /// Writes a number of bytes.
    pub(super) fn bytes(&self, out: &mut String, bytes: u64) {
        let _ = if self.on { write!(out, "{}", TwoDigits(bytes)) } else { write!(out, "{bytes}") };
    }
}

/// The IPv4 address in a mapped one (`::ffff:0:0/96`) or in one of NAT64 (`64:ff9b::/96`); else the address itself.
fn inner(address: IpAddr) -> IpAddr {
    const NAT64: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];
    let IpAddr::V6(v6) = address else { return address };
    let [.., a, b, c, d] = v6.octets();
    match v6.to_ipv4_mapped() {
        Some(mapped) => mapped.into(),
        None if v6.segments().starts_with(&NAT64) => Ipv4Addr::new(a, b, c, d).into(),
        None => address,
    }
}

/// Addresses that say nothing about the user, and that Chrome keeps: public resolvers, ChromeOS's own network between
/// its parts, the unspecified and the broadcast address, loopback, all nodes and all routers of IPv6.
fn is_kept(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => matches!(
            v4.octets(),
            [8, 8, 8, 8]
                | [8, 8, 4, 4]
                | [1, 1, 1, 1]
                | [100, 115, 92, _]
                | [0, 0, 0, 0]
                | [255, 255, 255, 255]
        ),
        IpAddr::V6(v6) => {
            matches!(
                v6.segments(),
                [0 | 0xff01 | 0xff02, 0, 0, 0, 0, 0, 0, 1] | [0xff01 | 0xff02, 0, 0, 0, 0, 0, 0, 2]
            ) || v6.is_unspecified()
        }
    }
}

fn v4_kind(address: Ipv4Addr) -> &'static str {
    match address.octets() {
        [10, ..] => "IPv4 private 10",
        [172, 16..=31, ..] => "IPv4 private 172",
        [192, 168, ..] => "IPv4 private 192",
        [127, ..] => "IPv4 loopback",
        [169, 254, ..] => "IPv4 link-local",
        [224..=239, ..] => "IPv4 multicast",
        [0, ..] => "IPv4 this network",
        _ => "IPv4",
    }
}

fn v6_kind(address: Ipv6Addr) -> &'static str {
    match address.segments() {
        [0xfe80..=0xfebf, ..] => "IPv6 link-local",
        [0xfc00..=0xfdff, ..] => "IPv6 unique local",
        [0xff00..=0xffff, ..] => "IPv6 multicast",
        _ => "IPv6",
    }
}

/// A number of which two digits are shown, with a decimal unit: `84`, `840`, `8.4k`, `12M`.
struct TwoDigits(u64);

impl fmt::Display for TwoDigits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
        // As u128, so that rounding up does not overflow.
        let number = u128::from(self.0);
        let (mut power, mut zeros) = (1, 0);
        while (number + power / 2) / power > 99 {
            power *= 10;
            zeros += 1;
        }
        let digits = (number + power / 2) / power;
        let unit = |index| UNITS.get(index).unwrap_or(&"");
        match zeros % 3 {
            0 => write!(f, "{digits}{}", unit(zeros / 3)),
            1 => write!(f, "{digits}0{}", unit(zeros / 3)),
            _ => write!(f, "{}.{}{}", digits / 10, digits % 10, unit(zeros / 3 + 1)),
        }
    }
}

/// A name that others choose, as of a process: what could form an address or break the line is shown as `?`.
pub(super) struct Name<'a>(pub(super) &'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dots = self.0.matches('.').count();
        self.0.chars().try_for_each(|c| match c {
            '.' if dots < 3 => f.write_char(c),
            '-' | '_' | '+' => f.write_char(c),
            c if c.is_ascii_alphanumeric() => f.write_char(c),
            _ => f.write_char('?'),
        })
    }
}

/// A network interface. udev names some adapters after their MAC address, such as enx78e7d1ea46da: of that, the maker's
/// three bytes are shown alone, as Chrome's redaction tool does it.
pub(super) struct Interface<'a>(pub(super) &'a str);

impl fmt::Display for Interface<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_at_checked(3) {
            Some((kind, mac)) if kind.ends_with('x') && is_hex(mac, 12) => {
                write!(f, "{}??????", Name(&self.0[..9]))
            }
            _ => Name(self.0).fmt(f),
        }
    }
}

/// A container: of a long id or a UUID as many digits as engines show, or a redaction tool would replace it.
pub(super) struct Container<'a>(pub(super) &'a str);

impl fmt::Display for Container<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_long = [32, 40, 64].iter().any(|length| is_hex(self.0, *length));
        let is_uuid = self.0.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
        let shown = if is_long {
            12
        } else if is_uuid {
            8
        } else {
            self.0.len()
        };
        Name(self.0.get(..shown).unwrap_or(self.0)).fmt(f)
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(redactor: &mut Redactor, text: &str, port: Option<u16>) -> String {
        let mut out = String::new();
        redactor.endpoint(&mut out, text.parse().unwrap(), port);
        out
    }

    #[test]
    fn each_address_has_one_token() {
        let mut redactor = Redactor::new(true);
        for (address, expected) in [
            ("10.1.2.3", "(IPv4 private 10: 1)"),
            ("172.16.0.1", "(IPv4 private 172: 2)"),
            ("172.31.255.255", "(IPv4 private 172: 3)"),
            ("172.32.0.1", "(IPv4: 4)"),
            ("192.168.1.1", "(IPv4 private 192: 5)"),
            ("127.0.0.1", "(IPv4 loopback: 6)"),
            ("169.254.1.1", "(IPv4 link-local: 7)"),
            ("224.0.0.251", "(IPv4 multicast: 8)"),
            ("239.255.255.255", "(IPv4 multicast: 9)"),
            ("240.0.0.1", "(IPv4: 10)"),
            ("0.0.0.1", "(IPv4 this network: 11)"),
            ("198.18.0.1", "(IPv4: 12)"),
            ("10.1.2.3", "(IPv4 private 10: 1)"),
            ("::ffff:10.1.2.3", "(IPv4 private 10: 1)"),
            ("64:ff9b::198.18.0.1", "(IPv4: 12)"),
            ("64:ff9b:1::198.18.0.1", "(IPv6: 1)"),
            ("::2", "(IPv6: 2)"),
            ("fe80::1", "(IPv6 link-local: 3)"),
            ("febf::1", "(IPv6 link-local: 4)"),
            ("fd00::1", "(IPv6 unique local: 5)"),
            ("ff02::fb", "(IPv6 multicast: 6)"),
            ("2001:2::1", "(IPv6: 7)"),
            ("::198.18.0.1", "(IPv6: 8)"),
            ("2001:2::1", "(IPv6: 7)"),
        ] {
            assert_eq!(token(&mut redactor, address, None), expected, "{address}");
        }
        for kept in [
            "8.8.8.8",
            "8.8.4.4",
            "1.1.1.1",
            "100.115.92.129",
            "0.0.0.0",
            "255.255.255.255",
            "::",
            "::1",
            "ff01::1",
            "ff01::2",
            "ff02::1",
            "ff02::2",
        ] {
            assert_eq!(token(&mut redactor, kept, None), kept);
        }
        assert_eq!(token(&mut redactor, "::ffff:8.8.8.8", Some(53)), "8.8.8.8:53");
        assert_eq!(token(&mut redactor, "ff02::1", Some(40000)), "[ff02::1]:EPH");
        assert_eq!(token(&mut redactor, "100.115.93.1", None), "(IPv4: 13)");
    }

    #[test]
    fn ephemeral_ports_are_hidden() {
        let mut redactor = Redactor::new(true);
        for (port, expected) in
            [(0, "0"), (443, "443"), (32767, "32767"), (32768, "EPH"), (61000, "EPH"), (65535, "EPH")]
        {
            assert_eq!(token(&mut redactor, "2001:2::1", Some(port)), format!("(IPv6: 1):{expected}"));
        }
    }

    #[test]
    fn nothing_is_hidden_from_root_who_asks_for_it() {
        let mut redactor = Redactor::new(false);
        assert_eq!(token(&mut redactor, "198.18.0.1", Some(40000)), "198.18.0.1:40000");
        assert_eq!(token(&mut redactor, "2001:2::1", Some(443)), "[2001:2::1]:443");
        assert_eq!(token(&mut redactor, "2001:2::1", None), "2001:2::1");
        let mut out = String::new();
        redactor.bytes(&mut out, 12_345);
        assert_eq!(out, "12345");
    }

    #[test]
    fn counts_have_two_digits() {
        for (number, text) in [
            (0, "0"),
            (99, "99"),
            (100, "100"),
            (844, "840"),
            (845, "850"),
            (994, "990"),
            (995, "1.0k"),
            (8449, "8.4k"),
            (12_345, "12k"),
            (123_456, "120k"),
            (1_999_999, "2.0M"),
            (u64::MAX, "18E"),
        ] {
            assert_eq!(TwoDigits(number).to_string(), text);
        }
    }

    #[test]
    fn names_form_no_address() {
        for (name, shown) in [
            ("update_engine", "update_engine"),
            ("python3.11", "python3.11"),
            ("10.1.2.3", "10?1?2?3"),
            ("fe80::1", "fe80??1"),
            ("a b\nc/d", "a?b?c?d"),
        ] {
            assert_eq!(Name(name).to_string(), shown);
        }
        assert_eq!(Container("10.1.2.3").to_string(), "10?1?2?3");
        for length in [32, 40, 64] {
            let id = &"3f2a90b1c4d5e6f7".repeat(4)[..length];
            assert_eq!(Container(id).to_string(), "3f2a90b1c4d5");
        }
        assert_eq!(Container("2f1c3a9e-77d0-4b6f-9f5e-0a1b2c3d4e5f").to_string(), "2f1c3a9e");
        assert_eq!(Container("web-1").to_string(), "web-1");
    }

    #[test]
    fn interfaces_named_after_their_mac_address_do_not_tell_it() {
        for (name, shown) in [
            ("enx78e7d1ea46da", "enx78e7d1??????"),
            ("wlx00c0caabcdef", "wlx00c0ca??????"),
            ("wlan0", "wlan0"),
            ("enp0s31f6", "enp0s31f6"),
            ("vethabcdef01234", "vethabcdef01234"),
            ("10.1.2.3", "10?1?2?3"),
            ("br-3f2a90b1c4d5", "br-3f2a90b1c4d5"),
            ("üx8e7d1ea46dab", "?x8e7d1e??????"),
        ] {
            assert_eq!(Interface(name).to_string(), shown);
        }
    }
}
