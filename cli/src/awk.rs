//! The line of `monitor-conntrack --awk`.

use std::fmt;

use flowbus_interfaces::{Key, OwnedFlow, OwnedValue};

/// `id src_ip src_port nat_src_ip nat_src_port dst_ip dst_port proto start_epoch end_epoch fwmark source`, with
/// `None` for what is unset. Address and port of the translated source are set each where it differs from the
/// original; times are whole seconds.
pub(crate) struct Line<'a>(pub(crate) &'a OwnedFlow);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(flow) = self;
        let changed = |new, old| flow.get(new).filter(|&value| flow.get(old) != Some(value));
        let seconds = |key| flow.number(key).map(|usec| OwnedValue::Number(usec / 1_000_000));
        let (start, end) = (seconds(Key::StartUsec), seconds(Key::EndUsec));
        let words = [
            flow.get(Key::Id),
            flow.get(Key::Src),
            flow.get(Key::Sport),
            changed(Key::NatSrc, Key::Src),
            changed(Key::NatSport, Key::Sport),
            flow.get(Key::Dst),
            flow.get(Key::Dport),
            flow.get(Key::Protocol),
            start.as_ref(),
            end.as_ref(),
            flow.get(Key::Mark),
            flow.get(Key::Source),
        ];
        for (index, word) in words.into_iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            match word {
                Some(word) => write!(f, "{word}")?,
                None => f.write_str("None")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(json: &str) -> String {
        Line(&OwnedFlow::from_json(json).unwrap()).to_string()
    }

    #[test]
    fn what_is_unset_is_none() {
        assert_eq!(line("{}"), "None None None None None None None None None None None None");
    }

    #[test]
    fn a_full_line_has_twelve_words() {
        let json = r#"{"id":7,"src":"198.18.0.2","sport":40000,"dst":"198.18.1.2","dport":443,"protocol":"tcp",
            "nat_src":"198.18.3.2","nat_sport":1024,"start_usec":1700000000999999,"end_usec":1700000001000000,
            "mark":67895552,"source":"CHROME"}"#;
        assert_eq!(
            line(json),
            "7 198.18.0.2 40000 198.18.3.2 1024 198.18.1.2 443 tcp 1700000000 1700000001 67895552 CHROME"
        );
    }

    #[test]
    fn an_unchanged_half_of_the_translated_source_is_none() {
        let address = r#"{"src":"198.18.0.2","sport":1,"nat_src":"198.18.3.2","nat_sport":1}"#;
        assert_eq!(line(address), "None 198.18.0.2 1 198.18.3.2 None None None None None None None None");
        let port = r#"{"src":"198.18.0.2","sport":1,"nat_src":"198.18.0.2","nat_sport":2}"#;
        assert_eq!(line(port), "None 198.18.0.2 1 None 2 None None None None None None None");
    }
}
