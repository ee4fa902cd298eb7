//! The group that a flow is in.

use std::borrow::Cow;

use flowbus_interfaces::{FlowRef, Key, OwnedValue};

use super::view::Grouping;
use crate::cell::owner_name;

/// Whether a process of this machine accepted the connection, and none of this machine opened it.
pub(super) fn is_accepted(flow: &FlowRef<'_>) -> bool {
    flow.json(Key::Responder).is_some() && flow.json(Key::Initiator).is_none()
}

/// The name of the group that the flow is in; empty where it is in none.
pub(super) fn group<'a>(flow: &FlowRef<'a>, grouping: Grouping) -> Cow<'a, str> {
    let text = |key| flow.text(key).unwrap_or_default();
    match grouping {
        Grouping::Flow => Cow::Borrowed(""),
        Grouping::Source => text(Key::Source),
        Grouping::Interface => text(Key::Interface),
        // A connection that a process of this machine accepted was opened by the far end.
        Grouping::Remote if is_accepted(flow) => text(Key::Src),
        Grouping::Remote => text(Key::Dst),
        Grouping::Process => {
            let owner = flow.value(Key::Initiator).or_else(|| flow.value(Key::Responder));
            owner.as_ref().map(owner_name).unwrap_or_default().into()
        }
        Grouping::Container => {
            let owners = [Key::Initiator, Key::Responder].into_iter().filter_map(|key| flow.value(key));
            owners.filter_map(|owner| container(&owner)).next().unwrap_or_default().into()
        }
    }
}

/// The condition of the filter line that chooses the flows of a group; `None` of those that are in none.
pub(super) fn condition(grouping: Grouping, name: &str) -> Option<String> {
    if name.is_empty() {
        return None;
    }
    match grouping {
        Grouping::Flow => None,
        Grouping::Source => Some(format!("source={name}")),
        Grouping::Interface => Some(format!("interface={name}")),
        Grouping::Remote => Some(format!("address={name}")),
        Grouping::Container => (!name.contains(char::is_whitespace)).then(|| format!("container={name}")),
        Grouping::Process => {
            let (comm, pid) = name.rsplit_once('[').unwrap_or((name, ""));
            match pid.strip_suffix(']') {
                Some(pid) => Some(format!("pid={pid}")),
                // A condition of the filter line has no blanks.
                None => (!comm.contains(char::is_whitespace)).then(|| format!("comm={comm}")),
            }
        }
    }
}

/// The container that a process is in.
fn container(owner: &OwnedValue) -> Option<String> {
    let OwnedValue::Dictionary(fields) = owner else { return None };
    fields.get("container").map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_group(grouping: Grouping, line: &str) -> String {
        group(&FlowRef::parse(line).unwrap(), grouping).into_owned()
    }

    #[test]
    fn a_flow_is_in_the_group_of_its_source_process_remote_address_or_interface() {
        let line = r#"{"type":"flow","id":7,"source":"CHROME","src":"198.18.0.2","dst":"2001:2::1","interface":"wlan0",
            "initiator":{"pid":12,"comm":"a \"b\"","uid":0,"confidence":"exact"}}"#;
        assert_eq!(in_group(Grouping::Source, line), "CHROME");
        assert_eq!(in_group(Grouping::Interface, line), "wlan0");
        assert_eq!(in_group(Grouping::Process, line), "a \"b\"[12]");
        assert_eq!(in_group(Grouping::Remote, line), "2001:2::1");
        let accepted = r#"{"src":"198.18.0.2","dst":"198.18.0.1","responder":{"comm":"sshd"}}"#;
        assert_eq!(in_group(Grouping::Remote, accepted), "198.18.0.2");
        assert_eq!(in_group(Grouping::Process, accepted), "sshd");
        assert_eq!(in_group(Grouping::Process, "{}"), "");
        let thread = r#"{"initiator":{"pid":12,"comm":"pool-3","leader_comm":"chrome"}}"#;
        assert_eq!(
            in_group(Grouping::Process, thread),
            "chrome[12]",
            "the threads of a process are one group"
        );
        assert_eq!(in_group(Grouping::Process, r#"{"initiator":{"pid":12}}"#), "?[12]");
        let served = r#"{"initiator":{"pid":12},"responder":{"pid":13,"container":"3f2a"}}"#;
        assert_eq!(in_group(Grouping::Container, served), "3f2a", "of either end");
        assert_eq!(in_group(Grouping::Container, thread), "");
    }

    #[test]
    fn a_group_is_chosen_by_a_condition() {
        assert_eq!(condition(Grouping::Source, "0x29").as_deref(), Some("source=0x29"));
        assert_eq!(condition(Grouping::Process, "a [b][12]").as_deref(), Some("pid=12"));
        assert_eq!(condition(Grouping::Process, "sshd").as_deref(), Some("comm=sshd"));
        assert_eq!(condition(Grouping::Remote, "2001:2::1").as_deref(), Some("address=2001:2::1"));
        assert_eq!(condition(Grouping::Interface, ""), None);
        assert_eq!(condition(Grouping::Container, "3f2a").as_deref(), Some("container=3f2a"));
    }
}
