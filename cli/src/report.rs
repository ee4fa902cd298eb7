//! `flowctl report`: what a log collector runs. It always has something to say.

use std::fmt::Write as _;
use std::future::Future;
use std::io::Write as _;
use std::time::Duration;

use flowbus_interfaces::{QueryMap, ReportOptions, fit};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::stdout;

/// A collector waits for 10 s; what is left of them is for the start and the text without a daemon.
const PATIENCE: Duration = Duration::from_secs(8);

/// Prints the daemon's report, or why there is none.
pub(crate) async fn report(
    daemon: impl Future<Output = Result<Daemon, Error>>,
    options: ReportOptions,
) -> Result<(), Error> {
    let text = match tokio::time::timeout(PATIENCE, ask(daemon, options)).await {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => without_daemon(&reason(&error)),
        Err(_) => without_daemon(&format!("no answer within {} s", PATIENCE.as_secs())),
    };
    let mut out = stdout();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

async fn ask(
    daemon: impl Future<Output = Result<Daemon, Error>>,
    options: ReportOptions,
) -> Result<String, Error> {
    let daemon = daemon.await?;
    // Options that have the daemon's default are left out.
    let ReportOptions { max_bytes, redact, processes, flows, since } = options;
    let mut map = QueryMap::new();
    if max_bytes != ReportOptions::MOST {
        map.insert("max_bytes", fit::<usize, u64>(max_bytes).into());
    }
    if !redact {
        map.insert("redact", false.into());
    }
    if processes {
        map.insert("processes", true.into());
    }
    if !flows {
        map.insert("flows", false.into());
    }
    if since > 0 {
        map.insert("since", since.into());
    }
    daemon.monitor.get_report(&map).await.map_err(|error| daemon.refused(error))
}

/// Why there is no report, without addresses: that of a bus may be one of the network.
fn reason(error: &Error) -> String {
    match error {
        Error::Bus { .. } => "there is no bus to ask it on".to_owned(),
        Error::NoDaemon { .. } => "it does not run".to_owned(),
        Error::Denied(_) => {
            "access denied: it answers root and members of the group flowbus, and root alone unredacted"
                .to_owned()
        }
        Error::Refused(text) => text.clone(),
        Error::Older(_) => "this version of it makes no reports".to_owned(),
        _ => "the bus failed".to_owned(),
    }
}

/// What there is to say without a daemon.
fn without_daemon(reason: &str) -> String {
    let mut text = format!(
        "flowbus report\ntime: {:.0}\nflowbusd cannot be asked: {reason}\n\nKernel:\n",
        jiff::Timestamp::now()
    );
    for name in ["nf_conntrack_acct", "nf_conntrack_timestamp", "nf_conntrack_count", "nf_conntrack_max"] {
        let value = std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}"));
        let value = value.as_deref().map_or("unknown", str::trim);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name}: {value}");
    }
    let _ = writeln!(
        text,
        "\nSummary: flowctl {}, flowbusd cannot be asked: {reason}; no flows are known.",
        env!("CARGO_PKG_VERSION")
    );
    text
}

#[cfg(test)]
mod tests {
    use zbus::fdo;

    use super::*;

    #[tokio::test]
    async fn without_a_daemon_a_report_says_why() {
        let bus = &"unix:path=/nonexistent/198.18.7.11".parse().unwrap();
        let error = ask(Daemon::connect(bus), ReportOptions::default()).await.unwrap_err();
        let text = without_daemon(&reason(&error));
        assert!(text.contains("Z\nflowbusd cannot be asked: there is no bus"), "{text}");
        assert!(text.starts_with("flowbus report\ntime: 20"), "{text}");
        assert!(text.contains("nf_conntrack_max: ") && !text.contains("198.18"), "{text}");
        assert!(text.lines().last().unwrap().starts_with("Summary: flowctl "), "{text}");
        report(Daemon::connect(bus), ReportOptions::default()).await.unwrap();
    }

    #[test]
    fn an_older_daemon_makes_no_reports() {
        let unknown = zbus::Error::FDO(Box::new(fdo::Error::UnknownMethod(String::new())));
        assert_eq!(reason(&Error::from_zbus("bus", unknown)), "this version of it makes no reports");
        let missing = Error::NoDaemon { bus: "tcp:host=198.18.7.11,port=1".into() };
        assert_eq!(reason(&missing), "it does not run");
    }
}
