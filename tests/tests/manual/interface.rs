//! An interface's XML, and the tables of dbus-interfaces, as Markdown for manual pages.

use std::fmt::Write as _;

use flowbus_interfaces::{Error, Key, QueryKey, QueryPart, Statistic, StatisticKind};
use roxmltree::{Document, Node};
use zbus::DBusError;

/// A method, property or signal.
pub(crate) struct Member {
    /// `method`, `property` or `signal`.
    pub(crate) kind: String,
    pub(crate) name: String,
    /// The member's signature: `GetFlow(t id) → (a{sv} flow)`.
    pub(crate) signature: String,
    /// The comment before the member, in Markdown.
    description: String,
}

/// The members of the one interface of an XML.
pub(crate) fn members(xml: &str) -> Vec<Member> {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = Document::parse_with_options(xml, options).unwrap();
    let interface = document.descendants().find(|node| node.has_tag_name("interface")).unwrap();
    let mut members = Vec::new();
    let mut comment = "";
    for node in interface.children() {
        if node.is_comment() {
            comment = node.text().unwrap();
        } else if node.is_element() {
            let name = node.attribute("name").unwrap().to_owned();
            let mut description =
                comment.lines().map(str::trim).collect::<Vec<_>>().join("\n").trim().to_owned();
            assert!(!description.is_empty(), "{name} has no documentation");
            if node.has_tag_name("property") {
                write!(description, "\n\n{}", announced(node)).unwrap();
            }
            let signature = signature(&name, node);
            members.push(Member { kind: node.tag_name().name().to_owned(), name, signature, description });
            comment = "";
        }
    }
    members
}

fn signature(name: &str, node: Node<'_, '_>) -> String {
    let arguments = |direction: &str| {
        let of = |argument: &Node<'_, '_>| argument.attribute("direction").unwrap_or("out") == direction;
        let arguments = node.children().filter(|child| child.has_tag_name("arg")).filter(of);
        let written = arguments.map(|argument| {
            format!("{} {}", argument.attribute("type").unwrap(), argument.attribute("name").unwrap())
        });
        written.collect::<Vec<_>>().join(", ")
    };
    match node.tag_name().name() {
        "method" => match (arguments("in"), arguments("out")) {
            (taken, given) if given.is_empty() => format!("{name}({taken})"),
            (taken, given) => format!("{name}({taken}) → ({given})"),
        },
        "signal" => format!("{name}({})", arguments("out")),
        "property" => format!("{} {name}", node.attribute("type").unwrap()),
        other => panic!("what is a {other}?"),
    }
}

/// Whether PropertiesChanged says that a property has changed, as its annotation has it.
fn announced(property: Node<'_, '_>) -> &'static str {
    let annotation = property
        .children()
        .find(|child| child.attribute("name") == Some("org.freedesktop.DBus.Property.EmitsChangedSignal"));
    match annotation.and_then(|annotation| annotation.attribute("value")) {
        Some("false") => "Not announced: ask again, past the cache of a proxy.",
        Some("const") => "Constant.",
        None => "Announced by PropertiesChanged.",
        Some(other) => panic!("{other} is not explained"),
    }
}

/// All signatures.
pub(crate) fn synopsis(members: &[Member]) -> String {
    let mut text = String::from("```\n");
    for member in members {
        writeln!(text, "{:9} {}", member.kind, member.signature).unwrap();
    }
    text + "```"
}

/// A subsection for each member of a kind.
pub(crate) fn described(members: &[Member], kind: &str) -> String {
    let mut text = String::new();
    for member in members.iter().filter(|member| member.kind == kind) {
        write!(text, "### {}\n\n{}\n\n", member.signature, member.description).unwrap();
    }
    text
}

/// The keys of a flow.
pub(crate) fn flow_keys() -> String {
    let item = |key: &Key| format!("`{key}` ({})\n: {}\n\n", key.signature(), key.description());
    Key::ALL.iter().map(item).collect()
}

/// The keys of a query that are about one thing.
pub(crate) fn query_keys(part: QueryPart) -> String {
    let keys = QueryKey::ALL.iter().filter(|key| key.part() == part);
    keys.map(|key| format!("`{key}`\n: {} Takes {}.\n\n", key.description(), key.takes())).collect()
}

/// The keys of GetStatistics.
pub(crate) fn statistics() -> String {
    let kind = |statistic: &Statistic| match statistic.kind {
        StatisticKind::Counter => "counter",
        StatisticKind::Gauge => "gauge",
    };
    let item = |statistic: &Statistic| {
        format!("`{}` ({})\n: {}\n\n", statistic.name, kind(statistic), statistic.description)
    };
    Statistic::ALL.iter().map(item).collect()
}

/// The errors by name, with what they mean.
pub(crate) fn errors() -> Vec<(String, &'static str)> {
    let text = String::new;
    let all = [
        Error::InvalidArgument(text()),
        Error::NotFound(text()),
        Error::LimitExceeded(text()),
        Error::NotAuthorized(text()),
        Error::Unavailable(text()),
    ];
    let meaning = |error: &Error| match error {
        // No arm for the rest: whoever adds an error adds it here and above.
        Error::ZBus(_) => unreachable!("the bus's own errors have the bus's names"),
        Error::InvalidArgument(_) => {
            "An argument is unknown, repeated, of the wrong type or out of range; the text names it and what it takes."
        }
        Error::NotFound(_) => "There is no such flow: there never was one, or it is forgotten.",
        Error::LimitExceeded(_) => {
            "The caller or the service has reached a limit; the text names it. Try again later."
        }
        Error::NotAuthorized(_) => "The caller may not do this.",
        Error::Unavailable(_) => {
            "Something that the answer depends on does not respond, or is not ready yet. Try again later."
        }
    };
    all.iter().map(|error| (error.name().to_string(), meaning(error))).collect()
}

/// The errors as a list.
pub(crate) fn error_list() -> String {
    errors().iter().map(|(name, meaning)| format!("`{name}`\n: {meaning}\n\n")).collect()
}
