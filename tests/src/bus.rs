//! A private dbus-daemon, and method calls to it with `busctl`.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::process::{Directory, tied};

const MONITOR: &str = "org.flowbus.FlowMonitor1";
const MONITOR_PATH: &str = "/org/flowbus/FlowMonitor1";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// A bus of the test's own at an address that outlives a restart of its dbus-daemon.
#[derive(Debug)]
pub struct Bus {
    directory: Directory,
    process: Option<Child>,
}

/// An error reply, or what busctl found wrong itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallError {
    /// `org.flowbus.Error.InvalidArgument`; empty if the call never reached the bus.
    pub name: String,
    /// The text for people.
    pub message: String,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.message)
    }
}

impl Bus {
    /// Starts a bus that lets everyone of this user do everything, as the session bus does.
    ///
    /// # Panics
    /// If dbus-daemon cannot be started.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a bus with more elements in its configuration: limits of its own would come before those of the daemon.
    ///
    /// # Panics
    /// If dbus-daemon cannot be started.
    #[must_use]
    pub fn start_with(elements: &str) -> Self {
        let directory = Directory::new("bus");
        let mut bus = Self { directory, process: None };
        let configuration = format!(
            r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>{}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*"/> <allow receive_sender="*"/> <allow eavesdrop="true"/>
  </policy>
  {elements}
</busconfig>
"#,
            bus.address()
        );
        let _ = bus.directory.file("bus.conf", &configuration);
        bus.restart();
        bus
    }

    /// The bus's address, for `--bus` and `--address`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix:path={}/socket", self.directory.path().display())
    }

    /// Kills the bus, as a crash of it would.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts the bus again at the same address; everyone has to connect anew.
    ///
    /// # Panics
    /// If dbus-daemon cannot be started.
    pub fn restart(&mut self) {
        self.stop();
        let configuration = self.directory.path().join("bus.conf");
        let mut command = Command::new("dbus-daemon");
        command.arg(format!("--config-file={}", configuration.display()));
        let mut process = tied(command.args(["--nofork", "--nopidfile", "--print-address=1"]))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon is installed");
        let mut address = String::new();
        // The address is printed once the bus listens.
        BufReader::new(process.stdout.take().expect("stdout is piped"))
            .read_line(&mut address)
            .expect("it is text");
        assert!(address.starts_with("unix:"), "dbus-daemon did not start: {address:?}");
        self.process = Some(process);
    }

    /// A `busctl` that talks to this bus.
    #[must_use]
    pub fn busctl(&self) -> Command {
        let mut command = Command::new("busctl");
        command.arg(format!("--address={}", self.address())).arg("--json=short").stdin(Stdio::null());
        command
    }

    /// Calls a method on this bus; see [`call`].
    ///
    /// # Errors
    /// The error reply, by name.
    ///
    /// # Panics
    /// If busctl cannot be started or prints what is not JSON.
    pub fn call(&self, target: [&str; 4], arguments: &[&str]) -> Result<Value, CallError> {
        call(self.busctl(), target, arguments)
    }

    /// Calls a method of FlowMonitor1.
    ///
    /// # Errors
    /// The error reply, by name.
    pub fn monitor_call(&self, member: &str, arguments: &[&str]) -> Result<Value, CallError> {
        self.call([MONITOR, MONITOR_PATH, MONITOR, member], arguments)
    }

    /// A property of FlowMonitor1.
    ///
    /// # Errors
    /// The error reply, by name.
    pub fn property(&self, name: &str) -> Result<Value, CallError> {
        let reply = self.call([MONITOR, MONITOR_PATH, PROPERTIES, "Get"], &["ss", MONITOR, name])?;
        Ok(reply[0].clone())
    }

    /// All flows of ListActive or ListClosed on this bus; see [`list`].
    ///
    /// # Errors
    /// The error reply, by name.
    ///
    /// # Panics
    /// If a page is not what the contract says.
    pub fn list(&self, member: &str, query: &[[&str; 3]]) -> Result<Vec<Value>, CallError> {
        list(|arguments| self.monitor_call(member, arguments), query)
    }
}

/// Calls a method and returns the body of the reply: an array with one value an output, variants already unwrapped.
/// `busctl` is one that prints JSON and has no verb yet, `arguments` are busctl's: the signature, then the values.
///
/// # Errors
/// The error reply, by name.
///
/// # Panics
/// If busctl cannot be started or prints what is not JSON.
pub fn call(mut busctl: Command, target: [&str; 4], arguments: &[&str]) -> Result<Value, CallError> {
    // Only the debug log of busctl has the name of an error; the message alone goes to standard error otherwise.
    busctl.env("SYSTEMD_LOG_LEVEL", "debug").env("SYSTEMD_LOG_TARGET", "console").env("SYSTEMD_COLORS", "0");
    // After -- a negative number is a value and not an option.
    let output =
        busctl.args(["call", "--"]).args(target).args(arguments).output().expect("busctl is installed");
    if output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        if text.trim().is_empty() {
            return Ok(Value::Array(Vec::new()));
        }
        let mut reply: Value =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("busctl printed {text:?}: {e}"));
        return Ok(plain(reply["data"].take()));
    }
    let log = String::from_utf8_lossy(&output.stderr);
    let name = log
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("error-name="))
        .rfind(|name| *name != "n/a");
    let message = log.lines().find_map(|line| line.strip_prefix("Call failed: ")).unwrap_or(&log);
    Err(CallError { name: name.unwrap_or_default().to_owned(), message: message.to_owned() })
}

/// All flows of ListActive or ListClosed with this query (busctl's arguments for the dictionary's entries), page by page;
/// `call` makes one call with the arguments that it is given.
///
/// # Errors
/// The first one of `call`.
///
/// # Panics
/// If a page is not what the contract says.
pub fn list(
    call: impl Fn(&[&str]) -> Result<Value, CallError>,
    query: &[[&str; 3]],
) -> Result<Vec<Value>, CallError> {
    let mut flows = Vec::new();
    let mut after = None::<String>;
    loop {
        let mut entries = query.to_vec();
        if let Some(after) = &after {
            entries.push(["after", "t", after]);
        }
        let reply = call(&dictionary(&entries).iter().map(String::as_str).collect::<Vec<_>>())?;
        let page = reply[0].as_array().expect("the first output is an array of flows");
        flows.extend(page.iter().cloned());
        match reply[1].get("next") {
            Some(next) => after = Some(next.as_u64().expect("next is a number").to_string()),
            None => return Ok(flows),
        }
    }
}

/// busctl's arguments for one `a{sv}`: key, signature and value of each entry, whose value may be several words.
#[must_use]
pub fn dictionary(entries: &[[&str; 3]]) -> Vec<String> {
    let mut words = vec!["a{sv}".to_owned(), entries.len().to_string()];
    for [key, signature, value] in entries {
        words.extend([(*key).to_owned(), (*signature).to_owned()]);
        words.extend(value.split(' ').map(str::to_owned));
    }
    words
}

/// busctl's JSON without the `{"type":..,"data":..}` around each variant.
#[must_use]
pub fn plain(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(plain).collect(),
        Value::Object(mut fields)
            if fields.len() == 2 && fields.contains_key("type") && fields.contains_key("data") =>
        {
            plain(fields.remove("data").unwrap_or_default())
        }
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, plain(value))).collect(),
        other => other,
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.stop();
    }
}
