//! Flows that no event reports, where flowbus-control reads settings and rules for a flowbusd that sees neither.

use super::{BOTH, Machine, Value, inject, wait_for};

fn statistics(machine: &Machine) -> Value {
    machine.monitor_call("GetStatistics", &[]).unwrap()[0].clone()
}

fn journal_has(machine: &Machine, text: &str) {
    wait_for(&format!("{text:?} in the journal"), || {
        let entries = machine.journal(&["--identifier=flowbusd"]);
        entries.iter().any(|entry| entry["MESSAGE"].as_str().unwrap().contains(text)).then_some(())
    });
}

/// The table is empty, and flowbusd waits for a notice.
fn idle(machine: &Machine) {
    machine.run("conntrack -F");
    machine.wait_until_synchronized();
    assert_eq!(machine.property("ActiveCount").unwrap(), 0);
    wait_for("nothing that hides flows", || {
        let statistics = statistics(machine);
        (statistics["kernel_events"] != 0 && statistics.get("event_masks").is_none()).then_some(())
    });
}

#[test]
fn what_hides_flows_is_noticed_while_the_table_is_empty_and_the_flows_are_found() {
    for bus in BOTH {
        let machine = Machine::installed(bus);
        idle(&machine);
        // Set in the machine, as people do: inotify reports what is written by way of the same /proc.
        machine.run("sysctl --write net.netfilter.nf_conntrack_events=0");
        journal_has(&machine, "nf_conntrack_events is 0");
        inject::udp(machine.namespace(), 53, 5);
        machine.wait_until_synchronized();
        assert_eq!(machine.property("ActiveCount").unwrap(), 5);
        assert_eq!(statistics(&machine)["kernel_events"], 0);
        machine.run("sysctl --write net.netfilter.nf_conntrack_events=1");
        idle(&machine);
        journal_has(&machine, "nf_conntrack_events is no longer 0");

        machine.namespace().nft(
            "table inet masking {\nchain mask {\ntype filter hook output priority mangle\nct state new ct event set new\n}\n}\n",
        );
        journal_has(&machine, "table masking, chain mask");
        assert_eq!(statistics(&machine)["event_masks"], "table masking, chain mask");
        machine.namespace().run("nft delete table inet masking");
        idle(&machine);
        journal_has(&machine, "no rule masks events any more");
    }
}

#[test]
fn a_table_with_hidden_flows_that_cannot_be_compared_is_not_synchronized_and_says_why() {
    for bus in BOTH {
        let machine = Machine::installed(bus);
        machine.namespace().nft(
            "table inet masking {\nchain mask {\ntype filter hook output priority mangle\nct state new ct event set new\n}\n}\n",
        );
        inject::udp(machine.namespace(), 53, 5);
        journal_has(&machine, "table masking, chain mask");
        machine.run("systemctl mask --now flowbus-control");
        let reason = wait_for("a reason", || statistics(&machine).get("not_synchronized").cloned());
        assert_eq!(machine.property("Synchronized").unwrap(), false, "{reason}");
        machine.run("systemctl unmask flowbus-control");
        machine.wait_until_synchronized();
        wait_for("no reason", || statistics(&machine).get("not_synchronized").is_none().then_some(()));
    }
}
