//! Filters of flows that were written down as lines.
//!
//! What the line lacks because the log leaves it out is not known. That is something else than a value which the flow does not have,
//! such as an address after translation: a condition on it has no answer. Which of the two it is depends on the fields of the log.

use super::condition::{Condition, End, IcmpField, Zone};
use super::parse::{Masked, Nat, State};
use super::record::{Record, RecordedOwner};
use super::{Filter, QueryKey};
use crate::text::Text;
use crate::{FieldSet, Flow, FlowRef, Key, Mark};

/// Why a line of a flow cannot be compared with a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The line does not have what the key is about, though every flow has it.
    #[error("{0} is not recorded")]
    NotRecorded(QueryKey),
    /// A value has another type than its key, or there is no id.
    #[error("{0} cannot be read")]
    Invalid(Key),
}

impl Key {
    /// Where a record lacks this value of the reply direction, it is the first of these that the record has: what translation made of
    /// the original direction, or the original direction as it is.
    pub const fn substitutes(self) -> &'static [Self] {
        match self {
            Self::ReplySrc => &[Self::NatDst, Self::Dst],
            Self::ReplySport => &[Self::NatDport, Self::Dport],
            Self::ReplyDst => &[Self::NatSrc, Self::Src],
            Self::ReplyDport => &[Self::NatSport, Self::Sport],
            _ => &[],
        }
    }
}

impl Filter {
    /// Whether the flow of a line passes; `recorded` are the fields that the log has of each flow.
    ///
    /// # Errors
    /// If the line lacks what decides it, or cannot be read.
    pub fn matches_line(&self, line: &FlowRef<'_>, recorded: FieldSet) -> Result<bool, RecordError> {
        let has_owners = QueryKey::OF_OWNERS.into_iter().any(|key| self.has(key));
        let record = Record::read(line, has_owners, recorded)?;
        let owners = record.owners.each_ref().map(|owner| owner.as_ref().map(RecordedOwner::owner));
        let flow = Flow {
            initiator: owners[0].as_ref(),
            responder: owners[1].as_ref(),
            interface: record.interface.as_deref(),
            helper: record.helper.as_deref(),
            labels: record.labels.as_deref(),
            ..record.flow
        };
        let mut unknown = None;
        for asked in &self.conditions {
            let is_known = asked.condition.is_known(record.known, &flow);
            match is_known && asked.matches(&flow) {
                true => {}
                false if is_known => return Ok(false),
                false => unknown = unknown.or(Some(asked.key)),
            }
        }
        unknown.map_or(Ok(true), |key| Err(RecordError::NotRecorded(key)))
    }

    /// Texts by which lines of a log with these fields are ruled out without being read, if their JSON is as compact as a stream's. They
    /// say what a flow keeps from its begin to its end.
    pub fn clues(&self, recorded: FieldSet) -> Vec<Clue> {
        let included = self.conditions.iter().filter(|asked| !asked.excluded);
        let clue = |condition: &Condition| {
            let (needs, fields) = condition.needs();
            let is_recorded = fields.iter().all(|&key| recorded.contains(key));
            Some(Clue { texts: condition.texts().filter(|_| is_recorded)?, needs })
        };
        included.filter_map(|asked| clue(&asked.condition)).collect()
    }
}

/// A line cannot pass that has all of `needs` and none of `texts`. One that lacks what it needs may not say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clue {
    /// The values that are asked for.
    pub texts: Vec<String>,
    /// The names of the members that say the value, with quotation marks and colon.
    pub needs: &'static [&'static str],
}

impl Condition {
    /// The members without which a line does not say whether the condition holds, and the fields without which no line does.
    const fn needs(&self) -> (&'static [&'static str], &'static [Key]) {
        match self {
            Self::Addresses(end, _) => match end {
                End::Src => (&["\"src\":"], &[]),
                End::Dst => (&["\"dst\":"], &[]),
                End::ReplySrc => (&["\"dst\":"], &[Key::NatDst]),
                End::ReplyDst => (&["\"src\":"], &[Key::NatSrc]),
                End::NatSrc => (&[], &[Key::NatSrc]),
                End::NatDst => (&[], &[Key::NatDst]),
                End::Any => (&["\"src\":", "\"dst\":"], &[Key::NatSrc, Key::NatDst]),
            },
            Self::Ports(end, _) => match end {
                End::Src => (&["\"sport\":"], &[]),
                End::Dst => (&["\"dport\":"], &[]),
                End::ReplySrc => (&["\"dport\":"], &[Key::NatDport]),
                End::ReplyDst => (&["\"sport\":"], &[Key::NatSport]),
                End::NatSrc => (&[], &[Key::NatSport]),
                End::NatDst => (&[], &[Key::NatDport]),
                End::Any => (&["\"sport\":", "\"dport\":"], &[Key::NatSport, Key::NatDport]),
            },
            _ => (&[], &[]),
        }
    }

    fn texts(&self) -> Option<Vec<String>> {
        match self {
            Self::Ids(ids) => Some(ids.iter().map(|id| format!("\"id\":{id}")).collect()),
            // Without the mark before it: an IPv4-mapped address has the IPv4 address at its end.
            Self::Addresses(_, networks) => networks
                .iter()
                .map(|network| {
                    let is_whole = network.prefix_len() == network.max_prefix_len();
                    is_whole.then(|| format!("{}\"", Text::address(network.addr()).as_str()))
                })
                .collect(),
            Self::Ports(_, ranges) => ranges
                .iter()
                .map(|range| (range.start() == range.end()).then(|| format!("port\":{}", range.start())))
                .collect(),
            _ => None,
        }
    }

    /// Whether a record that has these keys says whether the condition holds.
    fn is_known(&self, known: FieldSet, flow: &Flow<'_>) -> bool {
        let has = |keys: &[Key]| keys.iter().all(|&key| known.contains(key));
        match self {
            Self::Ids(_) => true,
            Self::ConntrackIds(_) => has(&[Key::ConntrackId]),
            Self::Families(_) => has(&[Key::Family]),
            Self::Protocols(_) => has(&[Key::ProtocolNumber]),
            // The source alone is known where its name or number is recorded without the mark.
            Self::Marks(marks) => {
                has(&[Key::Mark])
                    || has(&[Key::SourceId])
                        && marks.iter().all(|Masked { mask, .. }| mask & !Mark::SOURCE == 0)
            }
            Self::Ports(end, _) => match end {
                End::Src => has(&[Key::Sport]),
                End::Dst => has(&[Key::Dport]),
                End::ReplySrc => has(&[Key::ReplySport]),
                End::ReplyDst => has(&[Key::ReplyDport]),
                End::NatSrc => has(&[Key::NatSport]),
                End::NatDst => has(&[Key::NatDport]),
                End::Any => {
                    self.matches(flow) || has(&[Key::Sport, Key::Dport, Key::ReplySport, Key::ReplyDport])
                }
            },
            Self::Addresses(end, _) => match end {
                End::Src => has(&[Key::Src]),
                End::Dst => has(&[Key::Dst]),
                End::ReplySrc => has(&[Key::ReplySrc]),
                End::ReplyDst => has(&[Key::ReplyDst]),
                End::NatSrc => has(&[Key::NatSrc]),
                End::NatDst => has(&[Key::NatDst]),
                End::Any => self.matches(flow) || has(&[Key::Src, Key::Dst, Key::ReplySrc, Key::ReplyDst]),
            },
            Self::Icmp(IcmpField::Type, _) => has(&[Key::IcmpType]),
            Self::Icmp(IcmpField::Code, _) => has(&[Key::IcmpCode]),
            Self::Icmp(IcmpField::Id, _) => has(&[Key::IcmpId]),
            Self::States(states) => {
                let stateless = |state: &State| matches!(state, State::Stateless(_));
                has(&[Key::State]) && (has(&[Key::Status]) || !states.iter().any(stateless))
            }
            Self::Status(_) => has(&[Key::Status]),
            // A flow need not have these: where the log has the field and the line has not, nor has the flow.
            Self::Nat(kinds) => {
                let is_enough = |kind: &Nat| match kind {
                    Nat::Source => has(&[Key::NatSrc]),
                    Nat::Destination => has(&[Key::NatDst]),
                    Nat::Any | Nat::None => has(&[Key::NatSrc, Key::NatDst]),
                };
                kinds.iter().all(is_enough) || !kinds.contains(&Nat::None) && self.matches(flow)
            }
            // A flow of which the directions differ has no `zone`, nor has one without a zone.
            Self::Zones(Zone::Both, zones) => {
                has(&[Key::Zone]) && (!zones.contains(&0) || has(&[Key::OrigZone, Key::ReplyZone]))
            }
            Self::Zones(Zone::Original, _) => has(&[Key::OrigZone]),
            Self::Zones(Zone::Reply, _) => has(&[Key::ReplyZone]),
            Self::Labels(_) => has(&[Key::Labels]),
            Self::Interfaces(_) => has(&[Key::Interface]),
            Self::Helpers(_) => has(&[Key::Helper]),
            Self::Pids(_)
            | Self::Comms(_)
            | Self::Uids(_)
            | Self::Units(_)
            | Self::Containers(_)
            | Self::Pods(_)
            | Self::Exes(_) => self.matches(flow) || has(&[Key::Initiator, Key::Responder]),
            Self::MinBytes(_) => self.matches(flow) || has(&[Key::OrigBytes, Key::ReplyBytes]),
            Self::Since(_) => has(&[Key::EndUsec]),
            Self::Until(_) => has(&[Key::StartUsec]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use ctnetlink::{Counters, Layer4, Status, Tuple};

    use super::*;
    use crate::{EndReason, Owner, Query, RawQuery, SourceNames, Time, TimeSource};

    fn filter(words: &str) -> Filter {
        let mut raw = RawQuery::default();
        words.split_whitespace().for_each(|word| raw.add_word(word).unwrap());
        Query::parse(&raw, &SourceNames::default()).unwrap().filter
    }

    fn tuple(protocol: u8, src: &str, dst: &str, layer4: Layer4) -> Tuple {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        Tuple { src: address(src), dst: address(dst), protocol, layer4, zone: 0 }
    }

    fn ports(src: u16, dst: u16) -> Layer4 {
        Layer4::Ports { src, dst }
    }

    const fn at(usec: u64) -> Option<Time> {
        Some(Time { usec, source: TimeSource::Kernel })
    }

    /// Flows of each kind: translated and not, with owners, labels, zones, ended and alive.
    fn flows<'a>(curl: &'a Owner<'a>) -> Vec<Flow<'a>> {
        let plain = Flow::new(
            1,
            tuple(6, "198.18.0.2", "198.18.1.2", ports(40_000, 443)),
            tuple(6, "198.18.1.2", "198.18.0.2", ports(443, 40_000)),
        );
        let masqueraded = Flow {
            conntrack_id: Some(77),
            state: Some("ESTABLISHED"),
            status: Some(Status::SEEN_REPLY | Status::ASSURED),
            mark: 0x040c_0100,
            interface: Some("wan\"0"),
            labels: Some(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            helper: Some("ftp"),
            original_counters: Some(Counters { packets: 3, bytes: 900 }),
            reply_counters: Some(Counters { packets: 3, bytes: 200 }),
            start: at(1_000),
            end: at(2_000),
            duration_usec: Some(1_000),
            end_reason: Some(EndReason::Destroyed),
            initiator: Some(curl),
            ..Flow::new(
                2,
                tuple(6, "198.18.0.3", "198.18.1.2", ports(40_000, 80)),
                tuple(6, "198.18.1.2", "198.18.3.2", ports(80, 32_768)),
            )
        };
        let mut redirected = Flow::new(
            3,
            tuple(17, "2001:2::1", "2001:2::2", ports(1, 53)),
            tuple(17, "2001:2::3", "2001:2::1", ports(5_353, 1)),
        );
        redirected.original.zone = 7;
        redirected.status = Some(Status::SEEN_REPLY);
        let echo = |kind, id| Layer4::Icmp { kind, code: 0, id };
        let ping = Flow::new(
            4,
            tuple(1, "198.18.0.2", "198.18.1.2", echo(8, 9)),
            tuple(1, "198.18.1.2", "198.18.3.2", echo(0, 10)),
        );
        let mapped = Flow::new(
            5,
            tuple(50, "::ffff:198.18.0.2", "2001:2::2", Layer4::None),
            tuple(50, "2001:2::2", "::ffff:198.18.0.2", Layer4::None),
        );
        vec![plain, masqueraded, redirected, ping, mapped]
    }

    #[test]
    fn a_line_is_compared_as_the_flow_that_it_was_written_from() {
        let curl = Owner {
            pid: Some(9),
            comm: Some("cu\"rl"),
            leader_comm: Some("curl"),
            uid: Some(0),
            unit: Some("a.service"),
            exe: Some("/usr/bin/curl"),
            container: Some("box"),
            pod: Some("p"),
            ..Owner::default()
        };
        let queries = "family=ipv6 protocol=6 protocol=icmp,esp src=198.18.0.2 src=198.18.0.0/24 dst=2001:2::2 dst!=2001:2::2 \
            address=198.18.3.2 address=198.18.0.2 reply_src=2001:2::3 reply_dst=198.18.3.2 nat_src=198.18.3.2 nat_src!=198.18.3.2 \
            nat_dst=2001:2::3 sport=40000 dport=443,80 dport=1-100 reply_sport=5353 reply_dport=32768 nat_sport=32768 nat_dport=5353 \
            port=32768 port!=53 icmp_type=8 icmp_code=0 icmp_id=9 nat=none nat=source nat=any nat!=any mark=0x040c0100 \
            mark=0x100/0x3f00 source=CHROME vpn=none qos=default routing_table=1036 interface=wan\"0 zone=0 orig_zone=7 reply_zone=0 \
            state=ESTABLISHED state=REPLIED state!=ESTABLISHED status=assured status!=assured helper=ftp labels=2 labels=0x5 labels=1 \
            id=2,4 id!=2 conntrack_id=77 pid=9 comm=curl comm=cu\"rl uid=0 unit=a.service exe=/usr/bin/curl container=box pod=p \
            min_bytes=1100 min_bytes=1101 since=2000 since=2001 until=999 until=1000";
        let names = SourceNames::default();
        let mut passed = 0;
        for words in queries.split_whitespace() {
            let filter = filter(words);
            let clues = filter.clues(FieldSet::ALL);
            for flow in flows(&curl) {
                let line = serde_json::to_string(&flow.json(&names, FieldSet::ALL)).unwrap();
                let matches = filter.matches(&flow);
                let read = filter.matches_line(&FlowRef::parse(&line).unwrap(), FieldSet::ALL);
                match read {
                    // A flow of which the kernel has not told this does not have it either.
                    Err(RecordError::NotRecorded(_)) => {
                        assert!(flow.status.is_none() || flow.conntrack_id.is_none(), "{words} {line}");
                    }
                    read => assert_eq!(read, Ok(matches), "{words} {line}"),
                }
                if matches {
                    passed += 1;
                    assert!(!clues.iter().any(|clue| rules_out(clue, &line)), "{words} {line} {clues:?}");
                }
            }
        }
        assert!(passed > 100, "{passed}");
    }

    /// What the default fields of the log say of a translated flow.
    const RECORD: &str = r#"{"id":2,"family":"ipv4","protocol":"tcp","protocol_number":6,"src":"198.18.0.3","sport":40000,
        "dst":"198.18.1.2","dport":80,"nat_src":"198.18.3.2","nat_sport":32768,"mark":0,"start_usec":1000}"#;

    fn asked(words: &str, line: &str) -> Result<bool, RecordError> {
        filter(words).matches_line(&FlowRef::parse(line).unwrap(), FieldSet::ALL)
    }

    fn rules_out(clue: &Clue, line: &str) -> bool {
        clue.needs.iter().all(|name| line.contains(name))
            && !clue.texts.iter().any(|text| line.contains(text))
    }

    /// Whatever a log leaves out, an answer is that of the flow, or there is none; and no line is ruled out that has no answer.
    #[test]
    fn a_log_without_a_field_gives_no_wrong_answer() {
        let sshd = Owner { pid: Some(9), comm: Some("sshd"), ..Owner::default() };
        let mut flows = flows(&sshd);
        flows.push(Flow { initiator: None, responder: Some(&sshd), ..flows[1] });
        let tuples = [("198.18.0.3", 1, "198.18.1.2", 2), ("198.18.1.2", 3, "198.18.0.3", 32_768)]
            .map(|(src, sport, dst, dport)| tuple(17, src, dst, ports(sport, dport)));
        flows.push(Flow::new(7, tuples[0], tuples[1]));
        let queries = "src=198.18.0.3 dst=198.18.1.2 dst!=198.18.1.2 address=198.18.1.2 address=198.18.3.2 address!=198.18.3.2 \
            reply_src=198.18.1.2 reply_src=2001:2::3 reply_dst=198.18.3.2 reply_dst!=198.18.3.2 nat_src=198.18.3.2 \
            nat_src!=198.18.3.2 nat_dst=2001:2::3 nat_dst!=2001:2::3 sport=40000 dport=443 dport!=443 reply_sport=80 reply_sport=5353 \
            reply_dport=32768 nat_sport=32768 nat_sport!=32768 nat_dport=5353 port=32768 port=443 port!=443 nat=none nat=source \
            nat=destination nat=any nat!=any nat=source,destination icmp_type=8 mark=0x040c0100 source=CHROME interface=wan\"0 \
            interface!=wan\"0 zone=7 zone=0 orig_zone=7 reply_zone=7 state=ESTABLISHED status=assured helper=ftp helper!=ftp labels=2 labels!=2 \
            comm=sshd comm!=sshd pid=9 min_bytes=1100 min_bytes=900 since=2001 since=2000 until=999 until=1000 family=ipv6 protocol=udp";
        let names = SourceNames::default();
        let mut unknown = 0;
        for words in queries.split_whitespace() {
            let filter = filter(words);
            for &left_out in Key::ALL.iter().filter(|&&key| key != Key::Id) {
                let fields = FieldSet::ALL.without(left_out);
                let clues = filter.clues(fields);
                for flow in &flows {
                    let line = serde_json::to_string(&flow.json(&names, fields)).unwrap();
                    let context = format!("{words} without {left_out}: {line}");
                    match filter.matches_line(&FlowRef::parse(&line).unwrap(), fields) {
                        Ok(matches) => assert_eq!(matches, filter.matches(flow), "{context}"),
                        Err(RecordError::NotRecorded(_)) => unknown += 1,
                        Err(error) => panic!("{context}: {error}"),
                    }
                    let is_ruled_out = clues.iter().any(|clue| rules_out(clue, &line));
                    assert!(!is_ruled_out || !filter.matches(flow), "{context}");
                }
            }
        }
        assert!(unknown > 100, "{unknown}");
    }

    #[test]
    fn the_reply_direction_follows_from_the_original_one_and_its_translation() {
        for words in [
            "reply_src=198.18.1.2 reply_sport=80 reply_dst=198.18.3.2 reply_dport=32768",
            "nat=source nat_src=198.18.3.2 nat_sport=32768",
            "address=198.18.3.2 port=32768",
            "zone=0 pid!=9",
        ] {
            assert_eq!(asked(words, RECORD), Ok(true), "{words}");
        }
        for words in ["nat=destination", "nat_dst=198.18.1.2", "nat_sport=80", "comm=curl"] {
            assert_eq!(asked(words, RECORD), Ok(false), "{words}");
        }
    }

    #[test]
    fn what_the_log_leaves_out_is_not_known() {
        let unknown = |key| Err(RecordError::NotRecorded(key));
        assert_eq!(asked("status=assured", RECORD), unknown(QueryKey::Status));
        assert_eq!(asked("state=ESTABLISHED", RECORD), unknown(QueryKey::State));
        assert_eq!(asked("state=ESTABLISHED dport=81", RECORD), Ok(false), "whatever its state was");
        let without = RECORD.replace(r#""dst":"198.18.1.2","dport":80,"#, "");
        assert_eq!(asked("dst=198.18.1.2", &without), unknown(QueryKey::Dst));
        assert_eq!(asked("dst!=198.18.1.2", &without), unknown(QueryKey::Dst));
        assert_eq!(asked("dport=80", &without), unknown(QueryKey::Dport));
        assert_eq!(asked("nat_src=198.18.3.2 nat_sport=32768 src=198.18.0.3", &without), Ok(true));
        assert_eq!(asked("address=198.18.0.3 nat!=destination", &without), Ok(true));
        assert_eq!(asked("address=198.18.9.9", &without), unknown(QueryKey::Address));
        assert_eq!(asked("protocol=tcp", r#"{"id":1,"src":"198.18.0.1"}"#), unknown(QueryKey::Protocol));
        assert_eq!(asked("family=ipv6", r#"{"id":1,"dst":"2001:2::1"}"#), Ok(true));
    }

    #[test]
    fn a_value_of_another_type_is_an_error() {
        for (line, key) in [
            ("{}", Key::Id),
            (r#"{"id":"7"}"#, Key::Id),
            (r#"{"id":7,"src":"x"}"#, Key::Src),
            (r#"{"id":7,"src":9}"#, Key::Src),
            (r#"{"id":7,"sport":65536}"#, Key::Sport),
            (r#"{"id":7,"start_usec":-1}"#, Key::StartUsec),
            (r#"{"id":7,"labels":"xyz"}"#, Key::Labels),
        ] {
            assert_eq!(asked("id=7", line), Err(RecordError::Invalid(key)), "{line}");
        }
        assert_eq!(asked("pid=7", r#"{"id":7,"initiator":7}"#), Err(RecordError::Invalid(Key::Initiator)));
    }
}
