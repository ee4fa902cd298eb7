//! The commands of README, of docs/ and of the manual are run as they stand there, against the service of a booted machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use flowbus_tests::daemon::binary;
use flowbus_tests::namespace::TRACKING;
use flowbus_tests::process::{output_of, wait_for};
use flowbus_tests::traffic::UdpService;
use flowbus_tests::{Machine, SystemBus};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// How blocks begin that are run elsewhere, `./run` and packages, and by the test below, and those for other programs.
const ELSEWHERE: [&str; 6] = ["./run", "packaging/compile", "cargo", "zstdcat", "module(", "[SERVICE]"];
/// What is not in the machine is run beside it, on its bus.
const OUTSIDE: [&str; 3] = ["jq", "gdbus", "examples/"];
/// Whether a command ends when somebody ends it.
fn follows(command: &str) -> bool {
    let of_flowctl = ["monitor", "connections", "sources --interval"];
    of_flowctl.iter().any(|name| command.starts_with(&format!("flowctl {name}")))
        || command == "flowctl top"
        || command == "examples/monitor.sh"
        || command.contains(" monitor ")
}

/// The blocks without a language in these texts, each with the text's name.
fn blocks() -> Vec<(String, String)> {
    let mut texts: Vec<PathBuf> =
        ["README.md", "docs/install.md", "docs/integrate.md", "docs/collectors.md", "docs/fleet.md"]
            .map(PathBuf::from)
            .into();
    let pages = std::fs::read_dir(Path::new(ROOT).join("docs/man")).unwrap().flatten();
    texts.extend(pages.map(|page| Path::new("docs/man").join(page.file_name())));
    texts.retain(|text| text.extension().is_some_and(|extension| extension == "md"));
    let mut blocks = Vec::new();
    for text in texts {
        let name = text.display().to_string();
        let content = std::fs::read_to_string(Path::new(ROOT).join(&text)).unwrap();
        let fenced = content.split("\n```").skip(1).step_by(2);
        blocks.extend(fenced.filter_map(|block| Some((name.clone(), block.strip_prefix('\n')?.to_owned()))));
    }
    blocks
}

/// The block as a script that ends by itself: a command that follows has to be alive after two seconds.
fn script(block: &str) -> String {
    // A command goes on in lines that are indented.
    let block = block.replace("\\\n", " ").replace("\n  ", " ");
    // A transcript shows answers as well.
    let transcript = block.starts_with("$ ");
    let lines =
        block.lines().filter_map(|line| if transcript { line.strip_prefix("$ ") } else { Some(line) });
    let mut script =
        "set -euo pipefail; export SHELL=/bin/bash; collector() { cat; }; export -f collector\n".to_owned();
    for line in lines {
        let command = line.split(" #").next().unwrap().trim();
        if follows(command) {
            let command = command.replace('\'', r"'\''");
            script.push_str(&format!(
                "status=0; timeout --signal=KILL 2 script -qec '{command}' /dev/null || status=$?\n[ $status = 137 ]\n"
            ));
        } else if command.starts_with("flowctl delete") {
            // It asks on a terminal; and there need not be such a flow.
            script.push_str(&format!(
                "answer=$(echo y | script -qec '{command}' /dev/null) ||
                   {{ echo \"$answer\"; grep --quiet 'no connection matches' <<<\"$answer\"; }}\n"
            ));
        } else {
            script.push_str(line);
            script.push('\n');
        }
    }
    script.push_str("kill $(jobs -p) 2>/dev/null || true\n");
    script
}

#[test]
fn each_command_does_what_its_text_shows() {
    let machine = Machine::installed(SystemBus::Daemon);
    machine.wait_until_synchronized();
    machine.namespace().nft(TRACKING);
    let address = "127.0.0.1:443".parse().unwrap();
    UdpService::bind(machine.namespace(), address).exchange(machine.namespace(), address, 1);
    wait_for("a flow to show", || {
        machine.list("ListActive", &[]).unwrap().iter().any(|flow| flow["id"] == 1).then_some(())
    });
    machine.run("systemctl start flowbus-export@log");
    machine.run("mkdir -p /var/lib/prometheus/node-exporter /var/lib/collector");

    let path =
        format!("{}:{}", binary("flowctl").parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut run = 0;
    for (text, block) in blocks() {
        if ELSEWHERE.iter().any(|command| block.starts_with(command)) {
            continue;
        }
        let script = script(&block);
        let mut shell = if OUTSIDE.iter().any(|word| block.contains(word)) {
            let mut shell = Command::new("bash");
            shell.env("DBUS_SYSTEM_BUS_ADDRESS", machine.bus_address()).env("PATH", &path).current_dir(ROOT);
            shell
        } else {
            machine.command("bash")
        };
        let done = shell.args(["-c", &script]).output().unwrap();
        assert!(
            done.status.success(),
            "{text}:\n{block}\n{}\n{}{}",
            done.status,
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
        run += 1;
    }
    assert!(run >= 20, "{run} blocks");
}

#[test]
fn flowbusd_by_hand_serves_root_as_the_installation_says() {
    let machine = Machine::boot(SystemBus::Daemon);
    let (_, block) = blocks().into_iter().find(|(_, block)| block.starts_with("cargo")).unwrap();
    let block = block.lines().skip(1).collect::<Vec<_>>().join("\n");
    // A checkout that is built.
    let checkout = machine.root().join("root/flowbus");
    let programs = checkout.join("target/release");
    std::fs::create_dir_all(&programs).unwrap();
    for program in ["flowbusd", "flowbus-control", "flowctl"] {
        std::fs::copy(binary(program), programs.join(program)).unwrap();
    }
    output_of(Command::new("cp").arg("-r").arg(format!("{ROOT}/systemd")).arg(&checkout));
    let (install, start) = block.rsplit_once('\n').unwrap();
    assert_eq!(start, "flowbusd");
    machine.shell(&format!("cd /root/flowbus\n{install}\nflowbusd >/root/log 2>&1 &"));
    wait_for("flowbusd to serve", || {
        machine.command("flowctl").arg("status").output().unwrap().status.success().then_some(())
    });
}
