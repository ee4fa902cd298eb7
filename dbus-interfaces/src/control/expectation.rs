//! An expectation as the bus and streams show it.

use ctnetlink::{ExpectationFlags, Family, Tuple};
use zbus::{DeserializeDict, SerializeDict, Type};

use crate::flow::ports;
use crate::owned::OwnedValue;
use crate::{Flow, protocol_name};

/// A connection that a helper of the kernel has read about in another one, its master, and that will belong to it: `a{sv}`
/// with these names. A key without a value is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type, serde::Deserialize)]
#[zbus(signature = "a{sv}")]
// The trait is for dictionaries, as DeserializeDict reads them; this makes the reader of `from_json`.
#[serde(remote = "Self")]
pub struct Expectation {
    /// `CTA_EXPECT_ID`, a hash.
    pub expectation_id: Option<u32>,
    /// ipv4 or ipv6.
    pub family: String,
    /// tcp, udp and so on, else the number.
    pub protocol: String,
    /// The number of the protocol.
    pub protocol_number: u8,
    /// Source of the first packet, where the mask has ones.
    pub src: String,
    /// Source port of the first packet, where the mask has ones.
    pub sport: Option<u16>,
    /// Destination of the first packet.
    pub dst: String,
    /// Destination port of the first packet.
    pub dport: Option<u16>,
    /// Which bits of the source have to be so.
    pub mask_src: String,
    /// Which bits of the source's port have to be so.
    pub mask_sport: Option<u16>,
    /// Which bits of the destination have to be so: all.
    pub mask_dst: String,
    /// Which bits of the destination's port have to be so: all.
    pub mask_dport: Option<u16>,
    /// The protocol of the master.
    pub master_protocol: String,
    /// The master's original source.
    pub master_src: String,
    /// The master's original source port.
    pub master_sport: Option<u16>,
    /// The master's original destination.
    pub master_dst: String,
    /// The master's original destination port.
    pub master_dport: Option<u16>,
    /// Conntrack zone; absent for the default one.
    pub zone: Option<u16>,
    /// Seconds until the expectation is given up.
    pub timeout: Option<u32>,
    /// The master's helper.
    pub helper: Option<String>,
    /// permanent, inactive, userspace; later kernels' bits as numbers. Absent where none is set.
    pub flags: Option<Vec<String>>,
    /// The helper's number for the kind of connection.
    pub class: Option<u32>,
    /// What the kernel calls when the connection comes.
    pub function: Option<String>,
    /// The connection's direction, where its translation was prepared: original, or reply where it goes against the master's.
    pub nat_direction: Option<String>,
    /// The address before translation; absent where the helper follows the master, as FTP's does.
    pub nat_src: Option<String>,
    /// The port before translation.
    pub nat_sport: Option<u16>,
}

impl Expectation {
    /// Every field that has a value, by name, in the order of the list above.
    pub fn fields(&self) -> Vec<(&'static str, OwnedValue)> {
        let text = |text: &String| Some(OwnedValue::Text(text.clone()));
        let some = |value: &Option<String>| value.as_ref().map(|text| OwnedValue::Text(text.clone()));
        let small = |value: Option<u16>| value.map(|value| OwnedValue::Number(value.into()));
        let number = |value: Option<u32>| value.map(|value| OwnedValue::Number(value.into()));
        let fields = [
            ("expectation_id", number(self.expectation_id)),
            ("family", text(&self.family)),
            ("protocol", text(&self.protocol)),
            ("protocol_number", number(Some(self.protocol_number.into()))),
            ("src", text(&self.src)),
            ("sport", small(self.sport)),
            ("dst", text(&self.dst)),
            ("dport", small(self.dport)),
            ("mask_src", text(&self.mask_src)),
            ("mask_sport", small(self.mask_sport)),
            ("mask_dst", text(&self.mask_dst)),
            ("mask_dport", small(self.mask_dport)),
            ("master_protocol", text(&self.master_protocol)),
            ("master_src", text(&self.master_src)),
            ("master_sport", small(self.master_sport)),
            ("master_dst", text(&self.master_dst)),
            ("master_dport", small(self.master_dport)),
            ("zone", small(self.zone)),
            ("timeout", number(self.timeout)),
            ("helper", some(&self.helper)),
            ("flags", self.flags.clone().map(OwnedValue::Names)),
            ("class", number(self.class)),
            ("function", some(&self.function)),
            ("nat_direction", some(&self.nat_direction)),
            ("nat_src", some(&self.nat_src)),
            ("nat_sport", small(self.nat_sport)),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

impl Expectation {
    /// Reads a JSON object, such as a line of a stream. Keys that this version does not know are left out.
    ///
    /// # Errors
    /// If the text is no JSON object, lacks what every expectation has, or has a value of another type.
    pub fn from_json(line: &str) -> Result<Self, serde_json::Error> {
        let mut reader = serde_json::Deserializer::from_str(line);
        let expectation = Self::deserialize(&mut reader)?;
        reader.end().map(|()| expectation)
    }

    /// The expectation as a JSON object, as streams write it.
    pub fn to_json(&self) -> serde_json::Value {
        let json = |value| -> serde_json::Value {
            match value {
                OwnedValue::Number(number) => number.into(),
                OwnedValue::Names(names) => names.into(),
                other => other.to_string().into(),
            }
        };
        self.fields().into_iter().map(|(name, value)| (name.to_owned(), json(value))).collect()
    }
}

impl From<&ctnetlink::Expectation<'_>> for Expectation {
    fn from(expectation: &ctnetlink::Expectation<'_>) -> Self {
        let ctnetlink::Expectation { master, tuple, mask, nat, .. } = expectation;
        let text = |bytes: Option<&[u8]>| {
            let text = String::from_utf8_lossy(bytes?).into_owned();
            (!text.is_empty()).then_some(text)
        };
        Self {
            expectation_id: expectation.id,
            family: match tuple.family() {
                Family::Ipv4 => "ipv4".to_owned(),
                Family::Ipv6 => "ipv6".to_owned(),
            },
            protocol: protocol(tuple),
            protocol_number: tuple.protocol,
            src: tuple.src.to_string(),
            sport: ports(tuple).map(|(src, _)| src),
            dst: tuple.dst.to_string(),
            dport: ports(tuple).map(|(_, dst)| dst),
            mask_src: mask.src.to_string(),
            mask_sport: ports(mask).map(|(src, _)| src),
            mask_dst: mask.dst.to_string(),
            mask_dport: ports(mask).map(|(_, dst)| dst),
            master_protocol: protocol(master),
            master_src: master.src.to_string(),
            master_sport: ports(master).map(|(src, _)| src),
            master_dst: master.dst.to_string(),
            master_dport: ports(master).map(|(_, dst)| dst),
            zone: (tuple.zone != 0).then_some(tuple.zone),
            timeout: expectation.timeout,
            helper: text(expectation.helper),
            flags: expectation.flags.filter(|flags| !flags.is_empty()).map(flag_names),
            class: expectation.class,
            function: text(expectation.function),
            nat_direction: nat.map(|nat| if nat.reply { "reply" } else { "original" }.to_owned()),
            nat_src: nat
                .map(|nat| nat.tuple.src)
                .filter(|src| !src.is_unspecified())
                .map(|src| src.to_string()),
            nat_sport: nat.and_then(|nat| ports(&nat.tuple)).map(|(src, _)| src),
        }
    }
}

impl<'a> Flow<'a> {
    /// The flow that an expectation waits for, as far as a [`Filter`](crate::Filter) for expectations asks.
    pub fn of_expectation(expectation: &'a ctnetlink::Expectation<'_>) -> Self {
        let helper = expectation.helper.and_then(|helper| std::str::from_utf8(helper).ok());
        Self { helper, ..Self::new(0, expectation.tuple, expectation.tuple) }
    }
}

fn protocol(tuple: &Tuple) -> String {
    protocol_name(tuple.protocol).map_or_else(|| tuple.protocol.to_string(), str::to_owned)
}

fn flag_names(flags: ExpectationFlags) -> Vec<String> {
    let name = |bit: u32| match ExpectationFlags::from_bits_retain(bit) {
        ExpectationFlags::PERMANENT => "permanent".to_owned(),
        ExpectationFlags::INACTIVE => "inactive".to_owned(),
        ExpectationFlags::USERSPACE => "userspace".to_owned(),
        other => format!("{:#x}", other.bits()),
    };
    (0..32).map(|bit| 1 << bit).filter(|bit| flags.bits() & bit != 0).map(name).collect()
}
