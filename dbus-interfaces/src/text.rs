//! Short text on the stack.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};

/// Text of at most 45 bytes, which is the longest IPv6 address (`INET6_ADDRSTRLEN` without its zero).
pub(crate) struct Text {
    bytes: [u8; 45],
    length: u8,
}

impl Text {
    const EMPTY: Self = Self { bytes: [0; 45], length: 0 };

    /// A decimal number.
    pub(crate) fn number(number: u8) -> Self {
        let mut text = Self::EMPTY;
        text.push_number(number);
        text
    }

    /// An address. IPv4 is most of all traffic and has a short cut past the formatting machinery.
    pub(crate) fn address(address: IpAddr) -> Self {
        let mut text = Self::EMPTY;
        match address {
            IpAddr::V4(v4) => text.push_v4(v4),
            // Every address fits, and what did not would be cut.
            IpAddr::V6(v6) => write!(text, "{v6}").unwrap_or_default(),
        }
        text
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }

    fn push_v4(&mut self, address: Ipv4Addr) {
        let [first, rest @ ..] = address.octets();
        self.push_number(first);
        for octet in rest {
            self.push(b'.');
            self.push_number(octet);
        }
    }

    fn push_number(&mut self, number: u8) {
        if number >= 100 {
            self.push(b'0' + number / 100);
        }
        if number >= 10 {
            self.push(b'0' + number / 10 % 10);
        }
        self.push(b'0' + number % 10);
    }

    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(usize::from(self.length)) {
            *slot = byte;
            self.length += 1;
        }
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.push(byte));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn addresses_are_written_as_the_standard_library_writes_them(address: IpAddr) {
            let text = Text::address(address);
            prop_assert_eq!(text.as_str(), address.to_string());
        }

        #[test]
        fn numbers_are_decimal(number: u8) {
            let text = Text::number(number);
            prop_assert_eq!(text.as_str(), number.to_string());
        }
    }

    #[test]
    fn the_longest_address_fits() {
        let longest: IpAddr = "1111:2222:3333:4444:5555:6666:7777:8888".parse().unwrap();
        assert_eq!(Text::address(longest).as_str(), longest.to_string());
        let mapped: IpAddr = "::ffff:255.255.255.255".parse().unwrap();
        assert_eq!(Text::address(mapped).as_str(), mapped.to_string());
    }
}
