//! What keeps flows from sending all their events, and what ends that.

use crate::cell::{clean, counted};
use crate::daemon::{Statistics, Texts};

/// The reasons, one sentence each; none while every flow sends all its events.
pub(crate) fn reasons(statistics: &Statistics, texts: &Texts) -> Vec<String> {
    let mut reasons = Vec::new();
    if statistics.get("kernel_events") == Some(&0) {
        reasons.push(
            "nf_conntrack_events is 0, so new flows send no events and are seen up to 16 s late; \
             set it with `sysctl -w net.netfilter.nf_conntrack_events=2`"
                .to_owned(),
        );
    }
    if let Some(place) = texts.get("event_masks") {
        reasons.push(format!(
            "a rule in {} masks events (ct event set, or CT --ctevents), so changes are seen up to 16 s late; \
             remove the mask from the rule",
            clean(place.as_str().into())
        ));
    }
    if reasons.is_empty()
        && let Some(&silent @ 1..) = statistics.get("silent")
    {
        let flows = counted(silent, "flow");
        reasons.push(format!("{flows} older than the first listener, or masked: compared with the kernel's table every 2 to 16 s"));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_and_the_mask_are_named_with_their_cure() {
        let off = Statistics::from([("kernel_events".into(), 0), ("silent".into(), 4)]);
        let mask = Texts::from([("event_masks".into(), "table m, chain p".into())]);
        let [setting, rule] = &reasons(&off, &mask)[..] else { panic!("two reasons") };
        assert!(setting.contains("sysctl -w net.netfilter.nf_conntrack_events=2"), "{setting}");
        assert!(rule.contains("table m, chain p"), "{rule}");
        let old = Statistics::from([("kernel_events".into(), 2), ("silent".into(), 1)]);
        assert!(reasons(&old, &Texts::new())[0].starts_with("1 flow older"));
        assert!(reasons(&Statistics::new(), &Texts::new()).is_empty());
    }
}
