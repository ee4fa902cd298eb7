//! Where flows are printed: a terminal, a pager in front of it, or a file.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, Stdio};

use anstream::ColorChoice;

use crate::output::terminal_width;

/// How much is written at once: as much as a pipe takes.
const BUFFER_BYTES: usize = 64 * 1024;

/// What a table looks like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// Characters that a line may have.
    pub(crate) width: Option<usize>,
    pub(crate) colors: bool,
    /// Numbers in place of names and of what is rounded for people.
    pub(crate) numeric: bool,
    /// Names in place of addresses, as they become known.
    pub(crate) resolve: bool,
    /// Titles above the columns, and what is to be said below them.
    pub(crate) legend: bool,
}

impl Look {
    /// The look of files.
    #[cfg(test)]
    pub(crate) const PLAIN: Self =
        Self { width: None, colors: false, numeric: false, resolve: false, legend: true };

    /// The look of standard output; colours are for terminals without NO_COLOR.
    pub(crate) fn new(numeric: bool) -> Self {
        let colors = anstream::AutoStream::choice(&io::stdout()) != ColorChoice::Never;
        Self { width: terminal_width(), colors, numeric, resolve: false, legend: true }
    }
}

/// Standard output, or a pager between it and us. A reader that has seen enough is no failure of ours.
pub(crate) struct Screen {
    out: BufWriter<Target>,
    pager: Option<Child>,
}

enum Target {
    /// Standard output without the line buffer of the standard library.
    Stdout(File),
    Pager(ChildStdin),
    /// The pager has ended and is waited for.
    Gone,
}

impl Screen {
    /// Standard output as it is.
    pub(crate) fn direct() -> io::Result<Self> {
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self::new(Target::Stdout(stdout.into()), None))
    }

    /// Standard output, with a pager on a terminal unless `paged` is false.
    pub(crate) fn open(paged: bool) -> io::Result<Self> {
        if !paged || !io::stdout().is_terminal() {
            return Self::direct();
        }
        let Some(mut command) = pager() else { return Self::direct() };
        match command.stdin(Stdio::piped()).spawn() {
            Ok(mut pager) => match pager.stdin.take() {
                Some(stdin) => Ok(Self::new(Target::Pager(stdin), Some(pager))),
                None => Self::direct(),
            },
            // Without a pager the terminal has to do.
            Err(_) => Self::direct(),
        }
    }

    fn new(target: Target, pager: Option<Child>) -> Self {
        Self { out: BufWriter::with_capacity(BUFFER_BYTES, target), pager }
    }

    /// Writes what is left and waits until the pager has been left.
    pub(crate) fn close(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Some(pager) = &mut self.pager {
            let _ = self.out.flush();
            // Its input ends here: it would wait for more otherwise.
            *self.out.get_mut() = Target::Gone;
            let _ = pager.wait();
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(stdout) => stdout.write(bytes),
            Self::Pager(stdin) => stdin.write(bytes),
            Self::Gone => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.flush(),
            Self::Pager(stdin) => stdin.flush(),
            Self::Gone => Ok(()),
        }
    }
}

/// The pager of systemd's tools: `$SYSTEMD_PAGER`, `$PAGER`, less; empty or `cat` for none. Whoever gained
/// privileges by sudo gets less without its commands that start others.
fn pager() -> Option<Command> {
    let variable = |name: &str| std::env::var(name).ok();
    let secure = match variable("SYSTEMD_PAGERSECURE") {
        Some(value) => matches!(value.as_str(), "1" | "yes" | "true" | "on"),
        None => variable("SUDO_UID").is_some(),
    };
    let chosen = variable("SYSTEMD_PAGER").or_else(|| variable("PAGER"));
    let command = match chosen.as_deref() {
        Some("" | "cat") => return None,
        Some(_) if secure => "less",
        Some(chosen) => chosen,
        None => "less",
    };
    let mut pager = Command::new("sh");
    pager.args(["-c", command]).env("LESS", variable("SYSTEMD_LESS").as_deref().unwrap_or("FRSXMK"));
    pager.env("LESSCHARSET", variable("SYSTEMD_LESSCHARSET").as_deref().unwrap_or("utf-8"));
    if secure {
        pager.env("LESSSECURE", "1");
    }
    Some(pager)
}
