//! A terminal with a program in it: tmux, which draws as a terminal does and can be asked what it shows.

use std::path::Path;
use std::process::Command;

use crate::process::{output_of, unique, wait_for};

/// A terminal of 80 columns and 24 lines.
#[derive(Debug)]
pub struct Screen {
    socket: String,
}

impl Screen {
    /// Starts a terminal in which a shell runs `command`, then says how it ended and stays.
    ///
    /// # Panics
    /// If there is no tmux.
    #[must_use]
    pub fn start(command: &str) -> Self {
        let screen = Self { socket: unique("screen") };
        let script = format!("{command}; echo \"ended with $?\"; exec cat");
        let _ = output_of(
            screen
                .tmux(&["new-session", "-d", "-x", "80", "-y", "24", "/bin/sh", "-c"])
                .arg(script)
                .env("LC_ALL", "C.UTF-8")
                .env("TERM", "xterm-256color"),
        );
        screen
    }

    fn tmux(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        // Nobody's own configuration.
        command.args(["-L", &self.socket, "-f", "/dev/null", "-u"]).args(arguments).env_remove("TMUX");
        command
    }

    /// What the terminal shows, line by line.
    ///
    /// # Panics
    /// If the terminal is gone.
    #[must_use]
    pub fn text(&self) -> String {
        output_of(&mut self.tmux(&["capture-pane", "-p"]))
    }

    /// What the terminal shows, with the sequences that colour it.
    ///
    /// # Panics
    /// If the terminal is gone.
    #[must_use]
    pub fn coloured(&self) -> String {
        output_of(&mut self.tmux(&["capture-pane", "-p", "-e"]))
    }

    /// What the terminal is: a format of tmux, such as `#{alternate_on}`.
    ///
    /// # Panics
    /// If the terminal is gone.
    #[must_use]
    pub fn is(&self, format: &str) -> String {
        output_of(&mut self.tmux(&["display-message", "-p", format])).trim().to_owned()
    }

    /// Presses keys, each by the name that tmux has for it or as text.
    ///
    /// # Panics
    /// If the terminal is gone.
    pub fn press(&self, keys: &[&str]) {
        let _ = output_of(self.tmux(&["send-keys"]).args(keys));
    }

    /// Makes the terminal another size.
    ///
    /// # Panics
    /// If the terminal is gone.
    pub fn resize(&self, columns: u16, lines: u16) {
        let (columns, lines) = (columns.to_string(), lines.to_string());
        let _ = output_of(&mut self.tmux(&["resize-window", "-x", &columns, "-y", &lines]));
    }

    /// The process that runs in the terminal, if the shell has a child.
    #[must_use]
    pub fn child(&self) -> Option<u32> {
        let shell = self.is("#{pane_pid}");
        let children = std::fs::read_to_string(
            Path::new("/proc").join(&shell).join("task").join(&shell).join("children"),
        );
        children.ok()?.split_whitespace().next()?.parse().ok()
    }

    /// Waits until the terminal shows what is asked for, and returns all that it shows then.
    ///
    /// # Panics
    /// If it never does; the message has what it shows instead.
    pub fn wait(&self, what: &str, mut shows: impl FnMut(&str) -> bool) -> String {
        let mut last = String::new();
        wait_for(&format!("the screen to show {what}"), || {
            let text = self.text();
            if text != last {
                eprintln!("{text}");
                last.clone_from(&text);
            }
            shows(&text).then_some(text)
        })
    }

    /// Waits until the terminal shows these words.
    ///
    /// # Panics
    /// If it never does; the message has what it shows instead.
    pub fn wait_for(&self, words: &str) -> String {
        self.wait(words, |text| text.contains(words))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]).output();
    }
}
