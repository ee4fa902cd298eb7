//! Names of connection labels: `/etc/xtables/connlabel.conf`, as conntrack reads it.

use std::path::Path;

/// Where iptables and conntrack look.
const FILE: &str = "/etc/xtables/connlabel.conf";

/// Names by number; a label without one is shown as its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LabelNames(Vec<(u32, String)>);

impl LabelNames {
    /// This machine's names; none where there is no such file.
    pub(super) fn load() -> Self {
        std::fs::read_to_string(Path::new(FILE)).map(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// Reads lines of a number and a name; what begins with `#` is a comment.
    fn parse(text: &str) -> Self {
        let name = |line: &str| {
            let mut words = line.split_whitespace();
            let number = words.next()?.parse().ok()?;
            let name = words.next().filter(|name| !name.starts_with('#'))?;
            Some((number, name.to_owned()))
        };
        Self(text.lines().filter_map(name).collect())
    }

    /// The labels of a mask of hexadecimal digits, lowest first.
    pub(super) fn names(&self, mask: &str) -> Vec<String> {
        let digits = mask.as_bytes().as_chunks::<2>().0.iter();
        let byte = |digits: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        let bytes = digits.map(|digits| byte(digits).unwrap_or(0));
        let bits = bytes.zip(0_u32..).flat_map(|(byte, index)| {
            (0..8).filter(move |bit| byte >> bit & 1 != 0).map(move |bit| index * 8 + bit)
        });
        bits.map(|label| self.name(label)).collect()
    }

    fn name(&self, label: u32) -> String {
        let known = self.0.iter().find(|(number, _)| *number == label);
        known.map_or_else(|| label.to_string(), |(_, name)| name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::LabelNames;

    #[test]
    fn labels_have_names_or_numbers() {
        let names = LabelNames::parse("# labels\n\n0 eth0-in\n5\tvideo # a comment\nx wrong\n7 #none\n");
        assert_eq!(names.names("21000000000000000000000000000000"), ["eth0-in", "video"]);
        assert_eq!(names.names("8001"), ["7", "8"]);
        assert!(names.names("0000").is_empty());
    }
}
