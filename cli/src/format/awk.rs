//! The line of `monitor-conntrack --awk`.

use std::io::{self, Write};

use flowbus_interfaces::Key;

use crate::cell::clean;
use crate::fields::Fields;

/// What a line shows.
pub(super) const KEYS: &[Key] = &[
    Key::Id,
    Key::Src,
    Key::Sport,
    Key::NatSrc,
    Key::NatSport,
    Key::Dst,
    Key::Dport,
    Key::Protocol,
    Key::StartUsec,
    Key::EndUsec,
    Key::Mark,
    Key::Source,
];

/// `id src_ip src_port nat_src_ip nat_src_port dst_ip dst_port proto start_epoch end_epoch fwmark source`, with
/// `None` for what is unset. Address and port of the translated source are set each where it differs from the
/// original; times are whole seconds.
pub(super) fn line(out: &mut dyn Write, flow: &dyn Fields) -> io::Result<()> {
    for (index, &key) in KEYS.iter().enumerate() {
        if index > 0 {
            out.write_all(b" ")?;
        }
        let unchanged = match key {
            Key::NatSrc => flow.text(Key::NatSrc) == flow.text(Key::Src),
            Key::NatSport => flow.number(Key::NatSport) == flow.number(Key::Sport),
            _ => false,
        };
        match (flow.text(key), flow.number(key)) {
            _ if unchanged => out.write_all(b"None")?,
            (Some(text), _) => out.write_all(clean(text).as_bytes())?,
            (_, Some(usec)) if matches!(key, Key::StartUsec | Key::EndUsec) => {
                write!(out, "{}", usec / 1_000_000)?;
            }
            (_, Some(number)) => write!(out, "{number}")?,
            (None, None) => out.write_all(b"None")?,
        }
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use flowbus_interfaces::OwnedFlow;

    use super::*;

    fn printed(json: &str) -> String {
        let mut out = Vec::new();
        line(&mut out, &OwnedFlow::from_json(json).unwrap()).unwrap();
        String::from_utf8(out).unwrap().trim_end().to_owned()
    }

    #[test]
    fn what_is_unset_is_none() {
        assert_eq!(printed("{}"), "None None None None None None None None None None None None");
    }

    #[test]
    fn a_full_line_has_twelve_words() {
        let json = r#"{"id":7,"src":"198.18.0.2","sport":40000,"dst":"198.18.1.2","dport":443,"protocol":"tcp",
            "nat_src":"198.18.3.2","nat_sport":1024,"start_usec":1700000000999999,"end_usec":1700000001000000,
            "mark":67895552,"source":"CHROME"}"#;
        assert_eq!(
            printed(json),
            "7 198.18.0.2 40000 198.18.3.2 1024 198.18.1.2 443 tcp 1700000000 1700000001 67895552 CHROME"
        );
    }

    #[test]
    fn an_unchanged_half_of_the_translated_source_is_none() {
        let address = r#"{"src":"198.18.0.2","sport":1,"nat_src":"198.18.3.2","nat_sport":1}"#;
        assert_eq!(printed(address), "None 198.18.0.2 1 198.18.3.2 None None None None None None None None");
        let port = r#"{"src":"198.18.0.2","sport":1,"nat_src":"198.18.0.2","nat_sport":2}"#;
        assert_eq!(printed(port), "None 198.18.0.2 1 None 2 None None None None None None None");
    }
}
