//! What a shell offers after TAB: commands, options, and values that exist right now.
//!
//! The scripts of `flowctl completion` run flowctl itself with COMPLETE set, so that they never grow old.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use clap::{Arg, Command, CommandFactory};
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{self, EnvCompleter, Shells};
use flowbus_interfaces::{
    BusAddress, Key, OwnedFlow, OwnedValue, QueryKey, QueryMap, QueryPart, SourceNames,
};

use crate::arguments::{Arguments, Shell};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::stdout;

/// The variable that says which shell asks.
const VARIABLE: &str = "COMPLETE";

/// How long the daemon is waited for; one that takes longer has nothing to offer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Answers a shell that asks for completions, and ends.
pub(crate) fn answer() {
    CompleteEnv::with_factory(command).var(VARIABLE).shells(Shells(&[&BASH, &ZSH, &env::Fish])).complete();
}

/// Prints the script that teaches a shell to complete.
pub(crate) fn completion(shell: Shell) -> Result<(), Error> {
    let completer: &dyn EnvCompleter = match shell {
        Shell::Bash => &BASH,
        Shell::Zsh => &ZSH,
        Shell::Fish => &env::Fish,
    };
    let mut out = stdout();
    completer.write_registration(VARIABLE, "flowctl", "flowctl", "flowctl", &mut out)?;
    Ok(out.flush()?)
}

/// The command line, with what its values can be.
fn command() -> Command {
    Arguments::command().mut_subcommands(|command| {
        let of_show = command.get_name() == "show";
        command.mut_args(|arg| with_values(arg, of_show))
    })
}

fn with_values(arg: Arg, of_show: bool) -> Arg {
    let name = arg.get_id().as_str().to_owned();
    if name == "words" {
        return arg.add(ArgValueCompleter::new(words));
    }
    match QueryKey::parse(&name) {
        Some(key) if arg.get_long().is_some() || of_show => {
            arg.add(ArgValueCompleter::new(move |current: &OsStr| values(key, &current.to_string_lossy())))
        }
        _ => arg,
    }
}

/// Completes a word: `key=` first, then values of the key.
fn words(current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let keys = || {
        let is_condition = |key: &&QueryKey| matches!(key.part(), QueryPart::Filter | QueryPart::Answer);
        QueryKey::ALL.iter().filter(is_condition)
    };
    match current.split_once('=') {
        Some((name, typed)) => {
            let key = keys().find(|key| key.name() == name);
            let values = key.map(|&key| values(key, typed)).unwrap_or_default();
            values.into_iter().map(|value| value.add_prefix(format!("{name}="))).collect()
        }
        None => keys()
            .filter(|key| key.name().starts_with(&*current))
            .map(|key| CompletionCandidate::new(format!("{key}=")).help(Some(key.description().into())))
            .collect(),
    }
}

/// The values of a key that begin as the last of those that were typed, between commas.
fn values(key: QueryKey, typed: &str) -> Vec<CompletionCandidate> {
    let (before, last) = match typed.rfind(',') {
        Some(comma) => typed.split_at(comma + 1),
        None => ("", typed),
    };
    // Names are matched without regard to case, shells match exactly: offer them as they are being typed.
    let small = last.contains(|letter: char| letter.is_ascii_lowercase());
    let fit = |value: &String| value.get(..last.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(last));
    let spelt = |value: String| if small { value.to_ascii_lowercase() } else { value };
    let candidates = known(key).into_iter().map(|(value, help)| (spelt(value), help));
    candidates
        .filter(|(value, _)| fit(value))
        .map(|(value, help)| CompletionCandidate::new(format!("{before}{value}")).help(help.map(Into::into)))
        .collect()
}

/// The values of a key that there are, with what is to be said of them.
fn known(key: QueryKey) -> Vec<(String, Option<String>)> {
    match key {
        QueryKey::Refresh => fixed(&["true", "false"]),
        QueryKey::Fields => {
            Key::ALL.iter().map(|key| (key.name().to_owned(), Some(key.description().to_owned()))).collect()
        }
        QueryKey::Interface => interfaces(),
        QueryKey::Source => {
            let mut names: Vec<_> =
                SourceNames::default().iter().map(|(_, name)| (name.to_owned(), None)).collect();
            // Sources that the configuration names are offered as far as they are in use.
            let used =
                live(&[Key::Source], |flow| flow.text(Key::Source).map(|name| (name.to_owned(), None)));
            names.extend(used.into_iter().filter(|(name, _)| !name.starts_with("0x")));
            names.sort();
            names.dedup();
            names
        }
        QueryKey::Zone => distinct(Key::Zone),
        QueryKey::Helper => distinct(Key::Helper),
        QueryKey::Unit => {
            let mut units: Vec<_> = live(&[Key::Initiator, Key::Responder], |flow| {
                let unit = |owner| match flow.get(owner)? {
                    OwnedValue::Dictionary(owner) => Some((owner.get("unit")?.to_string(), None)),
                    _ => None,
                };
                [Key::Initiator, Key::Responder].map(unit).into_iter().flatten()
            });
            units.sort();
            units.dedup();
            units
        }
        QueryKey::Id => live(&[Key::Id, Key::Protocol, Key::Src, Key::Dst, Key::Dport], |flow| {
            let text = |key| flow.get(key).map(ToString::to_string).unwrap_or_default();
            let help = format!(
                "{} {} to {} {}",
                text(Key::Protocol),
                text(Key::Src),
                text(Key::Dst),
                text(Key::Dport)
            );
            Some((text(Key::Id), Some(help.trim_end().to_owned())))
        }),
        _ => fixed(&key.names()),
    }
}

fn fixed(values: &[&str]) -> Vec<(String, Option<String>)> {
    let mut known = Vec::new();
    for &value in values {
        let value = (value.to_owned(), None);
        // Several protocols have a state of the same name.
        if !known.contains(&value) {
            known.push(value);
        }
    }
    known
}

/// The values of a field that flows have.
fn distinct(key: Key) -> Vec<(String, Option<String>)> {
    let mut values = live(&[key], |flow| Some((flow.get(key)?.to_string(), None)));
    values.sort();
    values.dedup();
    values
}

/// The names of network interfaces.
fn interfaces() -> Vec<(String, Option<String>)> {
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, None))).collect();
    names.sort();
    names
}

/// What one page of flows has to offer; nothing where the daemon cannot be asked, because a shell cannot show why.
fn live<T: Send, Offered: IntoIterator<Item = T>>(
    fields: &[Key],
    offer: impl Fn(&OwnedFlow) -> Offered + Send,
) -> Vec<T> {
    let ask = async {
        let daemon = Daemon::connect(&bus().ok()?).await.ok()?;
        let names: Vec<_> = fields.iter().map(|key| key.name()).collect();
        let query = QueryMap::from([("fields", names.into()), ("limit", 1000_u32.into())]);
        let (flows, _) = daemon.monitor.list_active(&query).await.ok()?;
        Some(flows.iter().flat_map(offer).collect())
    };
    // clap asks from within main's runtime: this one needs a thread of its own.
    let answer = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async { tokio::time::timeout(PATIENCE, ask).await.ok()? })
        });
        asking.join().ok().flatten()
    });
    answer.unwrap_or_default()
}

/// The bus of the command line that is being typed.
fn bus() -> Result<BusAddress, String> {
    let mut words = std::env::args().skip_while(|word| word != "--bus").skip(1);
    words.next().filter(|word| !word.is_empty()).as_deref().unwrap_or("system").parse()
}

/// A shell whose script is ours: clap's for bash leaves `key=value` in pieces, and its for zsh puts a space after `key=`.
struct Script {
    shell: &'static dyn EnvCompleter,
    text: &'static str,
}

const BASH: Script = Script { shell: &env::Bash, text: include_str!("completion.bash") };
const ZSH: Script = Script { shell: &env::Zsh, text: include_str!("completion.zsh") };

impl EnvCompleter for Script {
    fn name(&self) -> &'static str {
        self.shell.name()
    }

    fn is(&self, name: &str) -> bool {
        self.shell.is(name)
    }

    fn write_registration(&self, _: &str, _: &str, _: &str, _: &str, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(self.text.as_bytes())
    }

    fn write_complete(
        &self,
        command: &mut Command,
        words: Vec<OsString>,
        directory: Option<&Path>,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        self.shell.write_complete(command, words, directory, out)
    }
}
