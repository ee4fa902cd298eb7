//! Which flows and which of their fields: the keys of a query as options and as words.
//!
//! Times, services and users are written as people know them, and reach the daemon as numbers.

use std::borrow::Cow;

use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use flowbus_interfaces::{
    Argument, Query as ParsedQuery, QueryError, QueryKey, QueryMap, QueryPart, RawQuery, SourceNames,
};
use jiff::Zoned;
use strsim::levenshtein;

use crate::field::Field;
use crate::{moment, names};

/// A query of the command line: `--dport 443` or `dport=443`, with commas between the values of one key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    raw: RawQuery,
    /// The chosen fields in the order in which they were given; none where all are to be shown.
    fields: Vec<Field>,
}

/// The name of the words among the arguments.
const WORDS: &str = "words";

impl Query {
    /// What the daemon is asked for.
    pub(crate) fn to_map(&self) -> QueryMap<'_> {
        self.raw.to_map()
    }

    /// Which flows.
    pub(crate) const fn raw(&self) -> &RawQuery {
        &self.raw
    }

    /// Whether all flows are asked for.
    pub(crate) fn is_for_all(&self) -> bool {
        keys().filter(|key| key.part() == QueryPart::Filter).all(|key| self.raw.get(key).is_none())
    }

    /// The chosen fields in the order in which they were given; none where all are to be shown.
    pub(crate) fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The conditions as words, `dport=80,443 source=CHROME`.
    #[cfg(feature = "top")]
    pub(crate) fn words(&self) -> String {
        let text = |argument: &Argument| match argument {
            Argument::Text(text) => text.clone(),
            other => other.to_string(),
        };
        let values = |argument: &Argument| match argument {
            Argument::List(values) => values.iter().map(text).collect::<Vec<_>>().join(","),
            value => text(value),
        };
        let words =
            QueryKey::ALL.iter().filter_map(|&key| Some(format!("{key}={}", values(self.raw.get(key)?))));
        words.collect::<Vec<_>>().join(" ")
    }

    fn read(matches: &ArgMatches) -> Result<Self, String> {
        let wrong = |error: QueryError| error.to_string();
        let mut query = Self::default();
        let now = Zoned::now();
        for key in keys() {
            match matches.get_one::<String>(key.name()) {
                Some(names) if key == QueryKey::Fields => query.choose(names)?,
                Some(values) => {
                    query.raw.add(key, &values_of(key, values, &now).map_err(wrong)?).map_err(wrong)?;
                }
                None => {}
            }
        }
        for word in matches.get_many::<String>(WORDS).into_iter().flatten() {
            check_key(word)?;
            match word.strip_prefix("fields=") {
                Some(names) => query.choose(names)?,
                None => add_word(&mut query.raw, word, &now).map_err(wrong)?,
            }
        }
        match ParsedQuery::parse(&query.raw, &SourceNames::default()) {
            // The daemon's configuration may name more sources: it has the last word.
            Err(QueryError::Value { key, .. }) if key == QueryKey::Source.name() => Ok(query),
            // Both are times: the error shows them as such, and not as the microseconds that they became.
            Err(QueryError::Value { key, .. }) if key == QueryKey::Until.name() => {
                Err("until is a time before since".to_owned())
            }
            other => other.map(|_| query).map_err(wrong),
        }
    }

    /// Takes the names of fields.
    fn choose(&mut self, names: &str) -> Result<(), String> {
        if !self.fields.is_empty() {
            return Err("fields is given twice".to_owned());
        }
        for name in names.split(',') {
            let unknown = || format!("there is no field {name:?}; there are {}", Field::names().join(", "));
            self.fields.push(Field::parse(name).ok_or_else(unknown)?);
        }
        Ok(())
    }
}

/// Adds a word `key=value` or `key!=value`. All relative times of a query count from the same `now`, so that
/// `since=10m until=10m` is one instant.
pub(crate) fn add_word(raw: &mut RawQuery, word: &str, now: &Zoned) -> Result<(), QueryError> {
    let Some((name, values)) = word.split_once('=') else { return raw.add_word(word) };
    let (name, excluded) = name.strip_suffix('!').map_or((name, false), |name| (name, true));
    match QueryKey::parse(&spelt(name)) {
        Some(key) if excluded => raw.exclude(key, &values_of(key, values, now)?),
        Some(key) => raw.add(key, &values_of(key, values, now)?),
        None => raw.add_word(word),
    }
}

/// The values as the daemon takes them: times, services and users as numbers.
fn values_of<'a>(key: QueryKey, values: &'a str, now: &Zoned) -> Result<Cow<'a, str>, QueryError> {
    let number: &dyn Fn(&str) -> Option<String> = match key {
        QueryKey::Since | QueryKey::Until => &|value| moment::parse(value, now).map(|usec| usec.to_string()),
        QueryKey::Uid => &|value| names::uid(value).map(|uid| uid.to_string()),
        _ if is_port(key) => &|value| {
            let ports: Vec<_> = names::ports(value).iter().map(u16::to_string).collect();
            (!ports.is_empty()).then(|| ports.join(","))
        },
        _ => return Ok(values.into()),
    };
    let of_one = |value: &str| {
        let (sign, name) = value.strip_prefix('!').map_or(("", value), |name| ("!", name));
        match number(name) {
            // A service may have several ports.
            Some(numbers) => {
                Ok(numbers.split(',').map(|number| format!("{sign}{number}")).collect::<Vec<_>>().join(","))
            }
            None if is_time(key) => Err(QueryError::Value {
                key: key.name(),
                takes: moment::TAKES.to_owned(),
                value: Argument::Text(value.to_owned()).to_string(),
            }),
            // A number, or what the check refuses.
            None => Ok(value.to_owned()),
        }
    };
    Ok(values.split(',').map(of_one).collect::<Result<Vec<_>, _>>()?.join(",").into())
}

const fn is_port(key: QueryKey) -> bool {
    matches!(
        key,
        QueryKey::Sport
            | QueryKey::Dport
            | QueryKey::ReplySport
            | QueryKey::ReplyDport
            | QueryKey::NatSport
            | QueryKey::NatDport
            | QueryKey::Port
    )
}

fn is_time(key: QueryKey) -> bool {
    matches!(key, QueryKey::Since | QueryKey::Until)
}

/// Refuses a word whose key is none of flowctl's, and names those that are.
fn check_key(word: &str) -> Result<(), String> {
    let Some((name, _)) = word.split_once('=') else { return Ok(()) };
    let name = spelt(name.strip_suffix('!').unwrap_or(name));
    if keys().any(|key| key.name() == name) {
        return Ok(());
    }
    if QueryKey::parse(&name).is_some() {
        return Err(format!(
            "{name} is for programs: flowctl turns pages and opens streams itself; `| head` shows the first lines"
        ));
    }
    let nearest =
        keys().map(|key| (levenshtein(&name, key.name()), key)).min_by_key(|(distance, _)| *distance);
    if let Some((1..=2, key)) = nearest.filter(|_| name.len() > 2) {
        return Err(format!("unknown key {name:?}; did you mean {key}?"));
    }
    let known: Vec<_> = keys().map(QueryKey::name).collect();
    Err(format!("unknown key {name:?}; there are {}", known.join(", ")))
}

/// A key as D-Bus spells it: options have hyphens.
fn spelt(name: &str) -> String {
    name.replace('-', "_")
}

/// The keys that are options. Pages are turned by flowctl itself.
fn keys() -> impl Iterator<Item = QueryKey> {
    let is_option = |key: &QueryKey| matches!(key.part(), QueryPart::Filter | QueryPart::Answer);
    QueryKey::ALL.iter().copied().filter(is_option)
}

/// The option of a key: with hyphens as options have them, and as it is spelt everywhere else.
fn option(key: QueryKey) -> Arg {
    let takes = match key {
        _ if is_time(key) => moment::TAKES.into(),
        QueryKey::Uid => format!("{}, or the name of a user", key.takes()),
        _ if is_port(key) => format!("{}, or the name of a service such as https", key.takes()),
        _ => key.takes().to_owned(),
    };
    let arg = Arg::new(key.name())
        .long(key.name().replace('_', "-"))
        .alias(key.name())
        .value_name("VALUE,...")
        .help(key.description().trim_end_matches('.'))
        .long_help(format!("{}\n\nTakes {}.", key.description(), takes))
        .help_heading("Which connections, and what of them");
    match key {
        QueryKey::Refresh => {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("true|false")
        }
        QueryKey::Fields => arg.value_name("FIELD,...").long_help(format!(
            "{}\n\nThere are the keys of D-Bus, the columns of tables, and what is known of owners: {}.",
            key.description(),
            Field::names().join(", ")
        )),
        QueryKey::MinBytes => arg.value_name("NUMBER"),
        QueryKey::Since | QueryKey::Until => arg.value_name("TIME"),
        _ => arg,
    }
}

impl Args for Query {
    fn augment_args(command: Command) -> Command {
        let words = Arg::new(WORDS).value_name("KEY=VALUE,...").num_args(0..).help(
            "The same keys as words: source=CHROME dport=80,443 src=198.18.0.0/15 state!=TIME_WAIT. A connection must \
             match every key; with several values, any one of them. KEY!=VALUE and a value that begins with ! exclude",
        );
        command.arg(words).args(keys().map(option))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Query {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Self::read(matches).map_err(|error| clap::Error::raw(ErrorKind::ValueValidation, error))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use flowbus_interfaces::Key;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        query: Query,
    }

    fn query(line: &str) -> Query {
        Line::try_parse_from(line.split(' ')).unwrap().query
    }

    fn checked(line: &str) -> ParsedQuery {
        ParsedQuery::parse(&query(line).raw, &SourceNames::default()).unwrap()
    }

    fn refusal(line: &str) -> String {
        let error = Line::try_parse_from(line.split(' ')).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn options_and_words_say_the_same() {
        let words = checked(
            "list source=chrome dport=80,443 status=!assured reply_src=198.18.0.0/15 mark=0x100/0x3f00",
        );
        let options = checked(
            "list --source chrome --dport 80,443 --status !assured --reply-src 198.18.0.0/15 --mark 0x100/0x3f00",
        );
        assert_eq!(words, options);
        assert_eq!(
            checked("list --dport=80,443 status=!assured"),
            checked("list status=!assured dport=80,443")
        );
        assert_eq!(checked("list --min_bytes 5"), checked("list --min-bytes 5"));
        assert!(query("list").is_for_all() && query("list fields=id refresh=true").is_for_all());
        assert!(!query("list --port 53").is_for_all());
    }

    #[test]
    fn every_filter_key_is_an_option() {
        let command = Query::augment_args(Command::new("list"));
        command.clone().debug_assert();
        for key in QueryKey::ALL.iter().filter(|key| key.part() == QueryPart::Filter) {
            let name = key.name().replace('_', "-");
            assert!(command.get_arguments().any(|arg| arg.get_long() == Some(name.as_str())), "{name}");
        }
    }

    #[test]
    fn a_refresh_needs_no_value_and_takes_no_word() {
        assert!(checked("list --refresh source=USER").refresh);
        assert!(checked("list --refresh=true").refresh && checked("list refresh=true").refresh);
        assert!(!checked("list --refresh=false").refresh && !checked("list").refresh);
    }

    #[test]
    fn times_reach_the_daemon_as_microseconds() {
        let at = |query: &Query, key| match query.raw.get(key) {
            Some(Argument::Text(text)) => text.parse::<u64>().unwrap(),
            other => panic!("{other:?}"),
        };
        const NOON: u64 = 1_795_348_800_000_000;
        for line in ["list --since 2026-11-22T12:00Z", "list since=2026-11-22T12:00Z"] {
            assert_eq!(at(&query(line), QueryKey::Since), NOON, "{line}");
        }
        assert_eq!(at(&query("list until=5"), QueryKey::Until), 5);
        let both = query("list until=10m since=10m");
        assert_eq!(at(&both, QueryKey::Since), at(&both, QueryKey::Until));
        assert!(at(&both, QueryKey::Since) > at(&query("list --since 3d"), QueryKey::Since));
        assert_eq!(checked("list since=7 until=8"), checked("list --since 7 --until 8"));
        let wrong = refusal("list --since soon");
        assert!(
            wrong.contains("since takes how long ago it was, such as 30s") && wrong.contains("not \"soon\""),
            "{wrong}"
        );
        assert!(refusal("list since=5m until=2h").contains("until is a time before since"));
        assert!(refusal("list since=5m since=2h").contains("since is given twice"));
    }

    #[test]
    fn what_begins_with_an_exclamation_mark_is_excluded() {
        assert_eq!(checked("list dport!=22,80"), checked("list --dport !22,!80"));
        assert_eq!(checked("list dport=1-1023 dport!=22"), checked("list dport=!22,1-1023"));
        assert_eq!(checked("list orig-zone!=5"), checked("list orig_zone=!5"));
        let since = query("list since!=2026-11-22T12:00Z");
        assert_eq!(since.raw.get(QueryKey::Since), Some(&Argument::Text("!1795348800000000".to_owned())));
        assert!(refusal("list dport!=22 dport!=23").contains("dport is given twice"));
        assert!(refusal("list dport!=x").contains("not \"!x\""));
    }

    #[test]
    fn services_and_users_are_numbers_to_the_daemon() {
        assert_eq!(checked("list uid=root,!nobody"), checked("list uid=0,!65534"));
        assert_eq!(checked("list protocol=ESP"), checked("list protocol=50"));
        assert!(refusal("list dport=nosuch").contains("dport takes a port"));
        assert!(refusal("list uid=no-such-user").contains("uid takes"));
    }

    #[test]
    fn fields_keep_their_order() {
        assert_eq!(
            query("list --fields dport,src,id").fields(),
            [Key::Dport, Key::Src, Key::Id].map(Field::Key)
        );
        assert_eq!(query("list fields=id").fields(), [Field::Key(Key::Id)]);
        assert_eq!(query("list --fields to,initiator.pid").fields().len(), 2);
        assert_eq!(query("list").fields(), []);
    }

    #[test]
    fn what_is_wrong_is_told_before_the_daemon_is_asked() {
        assert!(refusal("list sorce=CHROME").contains("unknown key \"sorce\"; did you mean source?"));
        assert!(refusal("list dprt=443").contains("did you mean dport?"));
        assert!(refusal("list colour=red").contains("unknown key \"colour\"; there are family"));
        assert_eq!(checked("list orig-zone=5"), checked("list orig_zone=5"));
        assert!(refusal("list 443").contains("\"443\" is not a condition"));
        assert!(refusal("list --dport 90-80").contains("dport takes a port from 0 to 65535"));
        assert!(refusal("list --dport 80 dport=443").contains("dport is given twice"));
        let wrong = refusal("list --fields colour");
        assert!(
            wrong.contains("no field \"colour\"; there are time, proto, ") && wrong.contains("dport"),
            "{wrong}"
        );
        assert!(refusal("list --fields id fields=src").contains("fields is given twice"));
        assert!(refusal("list dprt!=443").contains("did you mean dport?"));
        for word in ["snapshot=true", "limit=5", "after=5"] {
            assert!(refusal(&format!("list {word}")).contains("is for programs"), "{word}");
        }
        assert!(!refusal("list colour=red").contains("limit"), "what is refused is not offered");
        // A source that only the daemon's configuration names.
        assert!(!query("list --source GUEST").is_for_all());
    }
}
