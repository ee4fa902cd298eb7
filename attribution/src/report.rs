//! How loading went, as text that stays with the programs.

use std::fmt::{self, Display, Write};

/// How the programs learn who accepts a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// At the end of the kernel's inet_accept.
    Function,
    /// At the end of the system calls accept and accept4.
    Syscall,
    /// The first process that reads from the connection is taken for the one that accepted.
    Reader,
    /// The process that listens is taken for the one that accepted.
    Inherited,
}

impl Accept {
    /// The name on D-Bus.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Function => "function",
            Self::Syscall => "syscall",
            Self::Reader => "reader",
            Self::Inherited => "inherited",
        }
    }
}

/// A program, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program's name in the object (`bpf/*.h`) and in `bpftool prog`.
    pub name: String,
    /// What became of the program.
    pub outcome: Outcome,
}

/// What became of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The program runs.
    Attached,
    /// The program was not tried: another one does its work, or none runs that needs it.
    NotNeeded,
    /// The program could not be loaded or attached.
    Failed(String),
}

/// The programs that take a snapshot: the first that the kernel takes is used.
pub(crate) const OPEN_SOCKETS: [&str; 2] = ["open_sockets", "open_sockets_plain"];

/// How loading went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The layout of the records (`LAYOUT` in record.rs).
    pub(crate) layout: u32,
    /// The size of the ring.
    pub ring_bytes: usize,
    /// The inode of the network namespace that the loader ran in. It is the one whose table the daemon keeps.
    pub network_namespace: u32,
    /// Each program, in the order in which they were tried.
    pub programs: Vec<Program>,
}

impl Report {
    /// Which way of learning who accepts is in use.
    #[must_use]
    pub fn accept(&self) -> Accept {
        let attached =
            |name: &str| self.programs.iter().any(|one| one.name == name && one.outcome == Outcome::Attached);
        match () {
            () if attached("accept_exact") => Accept::Function,
            () if attached("accept_syscall") && attached("accept4_syscall") => Accept::Syscall,
            () if attached("accept_reader") => Accept::Reader,
            () => Accept::Inherited,
        }
    }

    /// How many programs run; the one that takes snapshots has ended.
    pub(crate) fn attached(&self) -> usize {
        let runs =
            |one: &&Program| one.outcome == Outcome::Attached && !OPEN_SOCKETS.contains(&one.name.as_str());
        self.programs.iter().filter(runs).count()
    }

    /// Programs that failed, with the reason.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.programs.iter().filter_map(|program| match &program.outcome {
            Outcome::Failed(reason) => Some((program.name.as_str(), reason.as_str())),
            Outcome::Attached | Outcome::NotNeeded => None,
        })
    }

    /// Reads what `Display` wrote; `None` where it is something else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut number = |key| lines.next()?.strip_prefix(key)?.strip_prefix(' ')?.parse::<u32>().ok();
        let (layout, ring_bytes, network_namespace) =
            (number("layout")?, number("ring-bytes")?, number("network-namespace")?);
        Some(Self {
            layout,
            ring_bytes: usize::try_from(ring_bytes).ok()?,
            network_namespace,
            programs: lines.map(Program::parse).collect::<Option<_>>()?,
        })
    }
}

impl Program {
    fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.strip_prefix("program ")?.split_once(' ')?;
        let outcome = match rest.split_once(' ').unwrap_or((rest, "")) {
            ("attached", _) => Outcome::Attached,
            ("not-needed", _) => Outcome::NotNeeded,
            ("failed", reason) => Outcome::Failed(reason.to_owned()),
            _ => return None,
        };
        Some(Self { name: name.to_owned(), outcome })
    }
}

impl Display for Report {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(text, "layout {}", self.layout)?;
        writeln!(text, "ring-bytes {}", self.ring_bytes)?;
        writeln!(text, "network-namespace {}", self.network_namespace)?;
        for program in &self.programs {
            write!(text, "program {} ", program.name)?;
            match &program.outcome {
                Outcome::Attached => text.write_str("attached\n")?,
                Outcome::NotNeeded => text.write_str("not-needed\n")?,
                Outcome::Failed(reason) => {
                    text.write_str("failed ")?;
                    reason
                        .chars()
                        .map(|one| if one.is_control() { ' ' } else { one })
                        .try_for_each(|one| text.write_char(one))?;
                    text.write_str("\n")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Accept, Outcome, Program, Report};

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let program = |name: &str, outcome| Program { name: name.to_owned(), outcome };
        let report = Report {
            layout: 7,
            ring_bytes: 4096,
            network_namespace: 4_026_531_833,
            programs: vec![
                program("accept_exact", Outcome::Failed("Operation not permitted, in two words".to_owned())),
                program("accept_syscall", Outcome::Attached),
                program("accept4_syscall", Outcome::Attached),
                program("accept_reader", Outcome::NotNeeded),
            ],
        };
        assert_eq!(Report::parse(&report.to_string()), Some(report.clone()));
        assert_eq!(report.accept(), Accept::Syscall);
        assert_eq!(
            report.failures().collect::<Vec<_>>(),
            [("accept_exact", "Operation not permitted, in two words")]
        );
    }

    #[test]
    fn what_is_no_report_is_none() {
        for text in [
            "",
            "layout 1",
            "layout 1\nring-bytes x\nnetwork-namespace 1\n",
            "layout 1\nring-bytes 1\nnetwork-namespace 1\nprogram a ran\n",
        ] {
            assert_eq!(Report::parse(text), None, "{text:?}");
        }
    }
}
