//! What rules out lines of a log before they are read.

use super::Filter;
use super::condition::{Condition, End};
use crate::text::Text;
use crate::{FieldSet, Key};

/// A line cannot pass that has all of `needs` and none of `texts`. One that lacks what it needs may not say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clue {
    /// The values that are asked for.
    pub texts: Vec<String>,
    /// The names of the members that say the value, with quotation marks and colon.
    pub needs: &'static [&'static str],
}

impl Filter {
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
}
