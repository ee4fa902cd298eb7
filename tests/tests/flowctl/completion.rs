//! Completion in real shells.

use std::process::{Command, Stdio};

use flowbus_tests::daemon::binary;
use flowbus_tests::process::{Directory, output_of, unique, wait_for};
use flowbus_tests::{Bus, Daemon, Namespace, UnitGroup};

/// A shell that finds flowctl.
fn shell(name: &str) -> Command {
    let mut shell = Command::new(name);
    let flowctl = binary("flowctl");
    let path = format!("{}:{}", flowctl.parent().unwrap().display(), std::env::var("PATH").unwrap());
    shell.env("PATH", path).env("TERM", "dumb");
    shell
}

/// What bash offers for these words; readline breaks them at `=` and `:`.
fn bash(words: &[&str]) -> Vec<String> {
    const COMPLETE: &str = r#"
source <(flowctl completion bash)
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_TYPE=9
current=${COMP_WORDS[COMP_CWORD]}
[[ $current == = ]] && current=
_flowctl flowctl "$current" "${COMP_WORDS[COMP_CWORD - 1]}"
((${#COMPREPLY[@]} == 0)) || printf '%s\n' "${COMPREPLY[@]}"
"#;
    let text = output_of(shell("bash").args(["--norc", "-c", COMPLETE, "bash"]).args(words));
    text.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_values() {
    assert_eq!(bash(&["flowctl", "so"]), ["sources"]);
    assert_eq!(bash(&["flowctl", "list", "--source", "ch"]), ["chrome"]);
    assert_eq!(bash(&["flowctl", "list", "--source", "=", "CH"]), ["CHROME"]);
    assert_eq!(bash(&["flowctl", "list", "source", "=", "chrome,up"]), ["chrome,update_engine"]);
    assert_eq!(bash(&["flowctl", "list", "--interface", "l"]), ["lo"]);
    assert_eq!(bash(&["flowctl", "list", "routing_t"]), ["routing_table="]);
    assert_eq!(bash(&["flowctl", "list", "--source", "nothing"]), [""; 0]);
    assert_eq!(bash(&["flowctl", "list", "state", "=", "est"]), ["established"]);
    let states = bash(&["flowctl", "list", "state", "="]);
    for state in ["ESTABLISHED", "UNREPLIED", "TIME_WAIT"] {
        assert!(states.contains(&state.to_owned()), "{states:?}");
    }
    assert!(bash(&["flowctl", "list", "status", "="]).contains(&"seen-reply".to_owned()));
    assert!(bash(&["flowctl", "completion", ""]).starts_with(&["bash", "zsh", "fish"].map(str::to_owned)));
}

#[test]
fn ids_and_the_sources_that_a_configuration_names_come_from_the_daemon() {
    let (namespace, bus) = (Namespace::tracked("host"), Bus::start());
    let directory = Directory::new("completion");
    let config = directory.file("flowbusd.toml", "[sources]\nBACKUP = 0x29\n");
    let daemon = Daemon::start_with(&namespace, &bus, &["--config", config.to_str().unwrap()]);
    for port in [1000, 1001, 1002] {
        namespace.run(&format!(
            "conntrack -I -p udp -s 198.18.0.1 -d 198.18.0.2 --sport {port} --dport 53 -t 600 -m 0x2900"
        ));
    }
    let flows = wait_for("the marks", || {
        let flows = bus.list("ListActive", &[["source", "s", "BACKUP"]]).unwrap();
        (flows.len() == 3).then_some(flows)
    });
    let address = bus.address();
    // As readline breaks it: unix:path=/tmp/...
    let (scheme, path) = address.split_once(':').unwrap();
    let (key, path) = path.split_once('=').unwrap();
    let on_the_bus = |more: &[&str]| {
        let mut words = vec!["flowctl", "--bus", scheme, ":", key, "=", path];
        words.extend(more);
        bash(&words)
    };
    let mut ids: Vec<_> = flows.iter().map(|flow| flow["id"].to_string()).collect();
    ids.sort();
    // A shell is not kept waiting for a daemon that has no time.
    wait_for("the ids to be offered", || {
        let mut offered = on_the_bus(&["show", ""]);
        offered.retain(|word| !word.starts_with('-'));
        offered.sort();
        (offered == ids).then_some(())
    });
    // fish shows what each id stands for.
    let line = format!("flowctl completion fish | source; complete -C 'flowctl --bus {address} show '");
    wait_for("the flows of the ids to be offered", || {
        let offered = output_of(shell("fish").args(["--no-config", "-c", &line]));
        let has_flow = |id: &String| offered.contains(&format!("{id}\tudp 198.18.0.1 to 198.18.0.2 53"));
        ids.iter().all(has_flow).then_some(())
    });
    wait_for("the source to be offered", || {
        (on_the_bus(&["list", "--source", "ba"]) == ["backup"]).then_some(())
    });
    daemon.stop();
}

#[test]
fn the_units_of_both_ends_come_from_the_daemon() {
    const SERVER: &str = "import socket; kept = socket.create_server(('127.0.0.1', 7000)).accept(); input()";
    const CLIENT: &str = "until exec 3<>/dev/tcp/127.0.0.1/7000; do sleep 0.1; done; read";
    let (namespace, bus) = (Namespace::tracked("host"), Bus::start());
    let daemon = Daemon::start_attributed(&namespace, &bus);
    let [asks, answers] = ["asks", "answers"].map(|end| UnitGroup::new(&format!("{}.service", unique(end))));
    let run = |group: &UnitGroup, program: &str, text: &str| {
        let mut command = namespace.command("bash");
        let script = format!("{}; exec \"$@\"", group.entering());
        command.args(["-c", &script, "bash", program, "-c", text]).stdin(Stdio::piped()).spawn().unwrap()
    };
    let ends = [run(&answers, "python3", SERVER), run(&asks, "bash", CLIENT)];
    let line = format!(
        "flowctl completion fish | source; complete -C 'flowctl --bus {} list unit=fl'",
        bus.address()
    );
    // A shell is not kept waiting for a daemon that has no time.
    wait_for("the units to be offered", || {
        let offered = output_of(shell("fish").args(["--no-config", "-c", &line]));
        let is_offered =
            |group: &UnitGroup| offered.lines().any(|line| line == format!("unit={}", group.unit()));
        (is_offered(&asks) && is_offered(&answers)).then_some(())
    });
    // Their input ends.
    for mut end in ends {
        drop(end.stdin.take());
        end.wait().unwrap();
    }
    daemon.stop();
}

#[test]
fn fish_and_zsh_complete_a_source() {
    let fish = shell("fish")
        .args([
            "--no-config",
            "-c",
            "flowctl completion fish | source; complete -C 'flowctl list --source ch'",
        ])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&fish.stdout).starts_with("chrome"), "{fish:?}");
    // In a terminal of its own, as someone types it, until it shows the rest: zsh completes nowhere else.
    const ZSH: &str = r#"
zmodload zsh/zpty
zpty terminal zsh -f -i
zpty -w terminal 'autoload -U compinit; compinit -u -D; source <(flowctl completion zsh); PS1=; echo rea""dy'
zpty -r terminal line '*ready*'
zpty -w -n terminal $'flowctl list --source ch\t'
zpty -r terminal line '*rome*'
zpty -w -n terminal $'\C-uflowctl list sou\t'
zpty -r terminal line '*rce=*'
zpty -w -n terminal $'up\t'
zpty -r terminal line '*date_engine*'
zpty -d terminal
echo "done"
"#;
    let zsh = output_of(shell("timeout").args(["30", "zsh", "-f", "-c", ZSH]));
    assert_eq!(zsh, "done\n");
}
