//! The connection mark as ChromeOS's patchpanel lays it out (patchpanel/routing_service.h).
//!
//! | bits | field |
//! |---|---|
//! | 0 | legacy SNAT |
//! | 1-4 | reserved |
//! | 5-7 | QoS category |
//! | 8-13 | traffic source |
//! | 14 | bypass-VPN intent |
//! | 15 | route-on-VPN intent |
//! | 16-31 | routing table: interface index + 1000 |
//!
//! What a mark keeps is up to who sets it. patchpanel saves routing table, traffic source and QoS category of a packet into the
//! connection mark, and keeps VPN intent and legacy SNAT on packets: of a Chromebook's flows, `vpn` is `none`, and the
//! interface of the routing table says over which network they go.

use std::fmt;

/// A connection mark (`CTA_MARK`). Every one of the 2^32 values has a meaning; nothing here fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mark(pub u32);

/// patchpanel's `RT_TABLE` base: an interface's routing table is its index plus this.
const TABLE_BASE: u16 = 1000;

impl Mark {
    /// Where the QoS category stands.
    pub(crate) const QOS: u32 = 0x0000_00e0;
    /// Where the traffic source stands.
    pub(crate) const SOURCE: u32 = 0x0000_3f00;
    /// Where the VPN intent stands.
    pub(crate) const VPN: u32 = 0x0000_c000;
    /// Where the routing table stands.
    pub(crate) const ROUTING_TABLE: u32 = 0xffff_0000;

    /// Bit 0: the connection is subject to the legacy SNAT rules.
    pub const fn legacy_snat(self) -> bool {
        self.0 & 1 != 0
    }

    /// The QoS category, bits 5-7.
    pub const fn qos(self) -> Qos {
        Qos((self.0 >> 5 & 0x7) as u8)
    }

    /// The traffic source, bits 8-13; [`SourceNames`] names it.
    pub const fn source_id(self) -> u8 {
        (self.0 >> 8 & 0x3f) as u8
    }

    /// The VPN intent, bits 14 and 15: none, route, bypass or route+bypass.
    pub const fn vpn(self) -> &'static str {
        match self.0 >> 14 & 0x3 {
            0 => "none",
            1 => "bypass",
            2 => "route",
            _ => "route+bypass",
        }
    }

    /// The routing table, bits 16-31; below 1000 it belongs to no interface and is `None`.
    pub const fn routing_table(self) -> Option<u16> {
        let table = (self.0 >> 16) as u16;
        if table >= TABLE_BASE { Some(table) } else { None }
    }

    /// The index of the interface that the routing table belongs to; table 1000 would be index 0, which no interface has.
    pub const fn interface_index(self) -> Option<u32> {
        match self.routing_table() {
            Some(table) if table > TABLE_BASE => Some((table - TABLE_BASE) as u32),
            _ => None,
        }
    }
}

/// A QoS category, 0 to 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Qos(u8);

/// patchpanel's `QoSCategory`, then the numbers that it does not use.
const QOS_NAMES: [&str; 8] = [
    "default",
    "realtime-interactive",
    "multimedia-conferencing",
    "network-control",
    "webrtc",
    "0x5",
    "0x6",
    "0x7",
];

impl Qos {
    /// The number, 0 to 7.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The name, or the number as `0x5`.
    pub const fn name(self) -> &'static str {
        QOS_NAMES[self.0 as usize & 7]
    }
}

/// patchpanel's `TrafficSource`. Forwarded traffic has bit 0x20 set.
const SOURCES: [(u8, &str); 15] = [
    (0x00, "UNKNOWN"),
    (0x01, "CHROME"),
    (0x02, "USER"),
    (0x03, "UPDATE_ENGINE"),
    (0x04, "SYSTEM"),
    (0x05, "HOST_VPN"),
    (0x20, "ARC"),
    (0x21, "CROSTINI_VM"),
    (0x22, "PARALLELS_VM"),
    (0x23, "TETHER_DOWNSTREAM"),
    (0x24, "ARC_VPN"),
    (0x25, "BRUSCHETTA_VM"),
    (0x26, "BOREALIS_VM"),
    (0x27, "WIFI_DIRECT"),
    (0x28, "WIFI_LOHS"),
];

/// The names that patchpanel's scripts used before, and those of its traffic counters, which count both VPNs as one.
const ALIASES: [(&str, &[u8]); 4] =
    [("CROSVM", &[0x21]), ("PLUGINVM", &[0x22]), ("TETHERING", &[0x23]), ("VPN", &[0x05, 0x24])];

/// How many traffic sources the mark has room for.
const COUNT: u8 = 64;

/// The names of traffic sources: patchpanel's, the older names of its scripts as aliases, and those that a
/// configuration adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceNames {
    names: Box<[Box<str>]>,
}

/// Why a traffic source cannot be named so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceNameError {
    /// The number is not 1 to 63: the mark has six bits for the source.
    #[error("traffic source {0:#x} ({1:?}) is out of range: 0x1 to 0x3f")]
    OutOfRange(u8, String),
    /// patchpanel or an earlier entry has named the source.
    #[error("traffic source {0:#04x} is already called {1}; give {2:?} another number")]
    NumberTaken(u8, String, String),
    /// Another source has the name.
    #[error("the name {0:?} already belongs to traffic source {1:#04x}")]
    NameTaken(String, u8),
    /// A script could mistake the name for something else.
    #[error("{0:?} is not a name: one to 32 letters, digits, '_' and '-', the first a letter")]
    NotAName(String),
}

impl SourceNames {
    /// The name of a source, as it is written in `source`: `CHROME`, or `0x29` where it has none. Numbers above 63
    /// do not occur in a mark; they wrap.
    pub fn name(&self, source: u8) -> &str {
        &self.names[usize::from(source % COUNT)]
    }

    /// The number of a source, from a name or alias (without regard to case) or a number (`41`, `0x29`). `VPN`, which
    /// is two sources, is the first of them.
    pub fn parse(&self, text: &str) -> Option<u8> {
        self.parse_all(text).first().copied()
    }

    /// The numbers of the sources that a name, an alias or a number means; none where it means nothing.
    pub fn parse_all(&self, text: &str) -> Vec<u8> {
        let named = (0..COUNT).find(|&source| self.name(source).eq_ignore_ascii_case(text));
        let alias = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(text));
        let number = || crate::parse_number::<u8>(text).filter(|&source| source < COUNT);
        match (named, alias) {
            (None, Some((_, sources))) => sources.to_vec(),
            _ => named.or_else(number).into_iter().collect(),
        }
    }

    /// Names a source that has no name yet.
    ///
    /// # Errors
    /// When the number is 0, above 63 or named already, or when the name is taken or is not a name.
    pub fn add(&mut self, source: u8, name: &str) -> Result<(), SourceNameError> {
        if source == 0 || source >= COUNT {
            return Err(SourceNameError::OutOfRange(source, name.into()));
        }
        let is_name = name.len() <= 32
            && name.starts_with(|first: char| first.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if !is_name {
            return Err(SourceNameError::NotAName(name.into()));
        }
        if let Some(other) = self.parse(name) {
            return Err(SourceNameError::NameTaken(name.into(), other));
        }
        let slot = &mut self.names[usize::from(source)];
        if !slot.starts_with("0x") {
            return Err(SourceNameError::NumberTaken(source, slot.to_string(), name.into()));
        }
        *slot = name.into();
        Ok(())
    }

    /// Every source that has a name, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &str)> {
        (0..COUNT).map(|source| (source, self.name(source))).filter(|(_, name)| !name.starts_with("0x"))
    }
}

/// The names that patchpanel uses.
impl Default for SourceNames {
    fn default() -> Self {
        let mut names: Box<[Box<str>]> = (0..COUNT).map(|source| format!("{source:#04x}").into()).collect();
        for (source, name) in SOURCES {
            names[usize::from(source)] = name.into();
        }
        Self { names }
    }
}

/// Eight hexadecimal digits: `0x040c0100`.
impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_mark_of_chrome_on_table_1036() {
        let mark = Mark(67_895_552);
        assert_eq!(mark, Mark(0x040c_0100));
        assert_eq!(SourceNames::default().name(mark.source_id()), "CHROME");
        assert_eq!(mark.routing_table(), Some(1036));
        assert_eq!(mark.interface_index(), Some(36));
        assert_eq!((mark.vpn(), mark.qos().name(), mark.legacy_snat()), ("none", "default", false));
    }

    #[test]
    fn a_source_without_a_name_is_shown_as_a_number() {
        let names = SourceNames::default();
        assert_eq!(names.name(Mark(0x2900).source_id()), "0x29");
        assert_eq!(names.name(Mark(0x3f00).source_id()), "0x3f");
        assert_eq!(names.name(Mark(0x0600).source_id()), "0x06");
        assert_eq!(names.name(0), "UNKNOWN");
    }

    #[test]
    fn each_field_is_read_from_its_bits() {
        assert_eq!(Mark(0x4000).vpn(), "bypass");
        assert_eq!(Mark(0x8000).vpn(), "route");
        assert_eq!(Mark(0xc000).vpn(), "route+bypass");
        assert_eq!(Mark(0x0080).qos().name(), "webrtc");
        assert_eq!(Mark(0x00a0).qos().name(), "0x5");
        assert!(Mark(0x1).legacy_snat());
        assert_eq!(Mark(999 << 16).routing_table(), None);
        assert_eq!(Mark(1000 << 16).routing_table(), Some(1000));
        assert_eq!(Mark(1000 << 16).interface_index(), None);
        assert_eq!(Mark(u32::MAX).interface_index(), Some(64535));
    }

    #[test]
    fn names_aliases_and_numbers_find_their_source() {
        let names = SourceNames::default();
        for (text, source) in
            [("chrome", 1), ("Crosvm", 0x21), ("crostini_vm", 0x21), ("PLUGINVM", 0x22), ("tethering", 0x23)]
        {
            assert_eq!(names.parse(text), Some(source), "{text}");
        }
        assert_eq!(names.parse_all("vpn"), [0x05, 0x24]);
        assert_eq!(names.parse("0X29"), Some(0x29));
        assert_eq!(names.parse("41"), Some(0x29));
        assert_eq!(names.parse("64"), None);
        assert_eq!(names.parse("0x40"), None);
        assert_eq!(names.parse("CHROMIUM"), None);
    }

    #[test]
    fn a_configuration_names_more_sources_but_none_twice() {
        let mut names = SourceNames::default();
        names.add(0x29, "GUEST").unwrap();
        assert_eq!(names.name(0x29), "GUEST");
        assert_eq!(names.parse("guest"), Some(0x29));
        assert!(matches!(names.add(0x2a, "guest"), Err(SourceNameError::NameTaken(_, 0x29))));
        assert!(matches!(names.add(0x2a, "crosvm"), Err(SourceNameError::NameTaken(_, 0x21))));
        assert!(matches!(names.add(0x2a, "VPN"), Err(SourceNameError::NameTaken(_, 0x05))));
        assert!(matches!(names.add(0x29, "OTHER"), Err(SourceNameError::NumberTaken(0x29, ..))));
        assert!(matches!(names.add(1, "OTHER"), Err(SourceNameError::NumberTaken(1, ..))));
        assert!(matches!(names.add(64, "OTHER"), Err(SourceNameError::OutOfRange(64, _))));
        for name in ["", "0x2b", "A B", "Ä", &"A".repeat(33)] {
            assert!(matches!(names.add(0x2b, name), Err(SourceNameError::NotAName(_))), "{name}");
        }
        assert_eq!(names.iter().last(), Some((0x29, "GUEST")));
    }

    proptest! {
        #[test]
        fn every_mark_decodes_and_loses_only_the_reserved_bits(mark: u32) {
            let (names, mark) = (SourceNames::default(), Mark(mark));
            let vpn = match mark.vpn() {
                "none" => 0,
                "bypass" => 0x4000,
                "route" => 0x8000,
                "route+bypass" => 0xc000,
                other => panic!("{other}"),
            };
            let source = names.parse(names.name(mark.source_id())).unwrap();
            let table = mark.routing_table().unwrap_or((mark.0 >> 16) as u16);
            let again = u32::from(mark.legacy_snat())
                | u32::from(mark.qos().number()) << 5
                | u32::from(source) << 8
                | vpn
                | u32::from(table) << 16;
            prop_assert_eq!(again, mark.0 & !0x1e);
            prop_assert_eq!(mark.routing_table().is_some(), mark.0 >> 16 >= 1000);
        }
    }
}
