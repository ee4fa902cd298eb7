//! `flowctl status`.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use crate::cell::{clean, counted};
use crate::daemon::{Daemon, Statistics, Texts};
use crate::error::Error;
use crate::json::Json;
use crate::output::stdout;
use crate::silence;

/// What the daemon says of itself.
struct Status {
    version: String,
    epoch: String,
    synchronized: bool,
    attribution: String,
    event_source: String,
    closed_capacity: u32,
    sequence: u64,
    active: u32,
    closed: u32,
    received: u64,
    lost: u64,
    resyncs: u64,
    accounting: bool,
    timestamping: bool,
    statistics: Statistics,
    texts: Texts,
}

/// Prints the properties of the daemon and its counters.
pub(crate) async fn status(daemon: &Daemon, json: Json) -> Result<(), Error> {
    let status = ask(daemon).await?;
    let mut out = stdout();
    if json.is_on() {
        json.print(&mut out, &status.json())?;
    } else {
        status.print(&mut out, daemon.bus())?;
    }
    Ok(out.flush()?)
}

async fn ask(daemon: &Daemon) -> Result<Status, Error> {
    let monitor = &daemon.monitor;
    let failed = |error| daemon.failed(error);
    let (statistics, texts) = daemon.statistics_and_texts().await?;
    Ok(Status {
        version: monitor.version().await.map_err(failed)?,
        epoch: monitor.epoch().await.map_err(failed)?,
        synchronized: monitor.synchronized().await.map_err(failed)?,
        attribution: monitor.attribution().await.map_err(failed)?,
        event_source: monitor.event_source().await.map_err(failed)?,
        closed_capacity: monitor.closed_capacity().await.map_err(failed)?,
        sequence: monitor.sequence().await.map_err(failed)?,
        active: monitor.active_count().await.map_err(failed)?,
        closed: monitor.closed_count().await.map_err(failed)?,
        received: monitor.events_received().await.map_err(failed)?,
        lost: monitor.events_lost().await.map_err(failed)?,
        resyncs: monitor.resyncs().await.map_err(failed)?,
        accounting: monitor.accounting_enabled().await.map_err(failed)?,
        timestamping: monitor.timestamping_enabled().await.map_err(failed)?,
        statistics,
        texts,
    })
}

impl Status {
    fn json(&self) -> Value {
        let numbers = self.statistics.iter().map(|(name, value)| (name.clone(), (*value).into()));
        let texts = self.texts.iter().map(|(name, text)| (name.clone(), text.as_str().into()));
        let statistics: Map<String, Value> = numbers.chain(texts).collect();
        json!({
            "version": self.version,
            "epoch": self.epoch,
            "synchronized": self.synchronized,
            "attribution": self.attribution,
            "event_source": self.event_source,
            "closed_capacity": self.closed_capacity,
            "sequence": self.sequence,
            "active_count": self.active,
            "closed_count": self.closed,
            "events_received": self.received,
            "events_lost": self.lost,
            "resyncs": self.resyncs,
            "accounting_enabled": self.accounting,
            "timestamping_enabled": self.timestamping,
            "statistics": statistics,
        })
    }

    fn print(&self, out: &mut dyn Write, bus: &str) -> io::Result<()> {
        let kernel = match (self.statistics.get("kernel_count"), self.statistics.get("kernel_max")) {
            (Some(count), Some(maximum)) => format!("; the kernel has {count} of at most {maximum}"),
            (Some(count), None) => format!("; the kernel has {count}"),
            _ => String::new(),
        };
        let synchronized = match self.texts.get("not_synchronized") {
            _ if self.synchronized => "yes".to_owned(),
            Some(reason) => format!("no: {}", clean(reason.as_str().into())),
            None => "no: the kernel's table has not been read since the start or the last loss".to_owned(),
        };
        let lines = [
            ("flowbusd", format!("{} on {bus}", self.version)),
            ("synchronized", synchronized),
            ("active", format!("{}{kernel}", self.active)),
            ("closed", format!("{} remembered, at most {}", self.closed, self.closed_capacity)),
            (
                "events",
                format!(
                    "{} received by {}, {} lost, {}",
                    self.received,
                    self.event_source,
                    self.lost,
                    counted(self.resyncs, "resync")
                ),
            ),
            ("signals", self.signals()),
            ("counters", self.switch(self.accounting, "kernel_acct", "nf_conntrack_acct")),
            ("timestamps", self.switch(self.timestamping, "kernel_timestamp", "nf_conntrack_timestamp")),
            ("processes", self.attribution.clone()),
            ("epoch", format!("{}, at change {}", self.epoch, self.sequence)),
        ];
        lines.iter().try_for_each(|(name, value)| writeln!(out, "{name:12}  {value}"))?;
        let silence = silence::reasons(&self.statistics, &self.texts);
        silence.iter().try_for_each(|reason| writeln!(out, "{:12}  {reason}", "silent flows"))
    }

    /// Whether a setting of the kernel is on. The property is false, too, where it is not known.
    fn switch(&self, on: bool, statistic: &str, setting: &str) -> String {
        match self.statistics.get(statistic) {
            _ if on => "on".to_owned(),
            Some(_) => format!("off; for new flows: sysctl -w net.netfilter.{setting}=1"),
            None => format!("not known: flowbusd could not read {setting}"),
        }
    }

    fn signals(&self) -> String {
        let number = |name| self.statistics.get(name);
        let sent = number("signals_sent").map_or_else(|| "unknown".to_owned(), ToString::to_string);
        match number("signals_lost") {
            None | Some(0) => format!("{sent} sent"),
            // Programs that want every change read a stream: that signals are limited is no loss to them.
            Some(&lost) => {
                format!("{sent} sent; limited, so {} left out (streams have all)", counted(lost, "change"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Status {
        Status {
            version: "0.1.0".into(),
            epoch: "00ff".into(),
            synchronized: true,
            attribution: "none".into(),
            event_source: "ring".into(),
            closed_capacity: 20_000,
            sequence: 9,
            active: 3,
            closed: 1,
            received: 12,
            lost: 0,
            resyncs: 1,
            accounting: true,
            timestamping: false,
            statistics: Statistics::from([
                ("kernel_count".into(), 3),
                ("kernel_max".into(), 262_144),
                ("kernel_acct".into(), 1),
                ("kernel_timestamp".into(), 0),
            ]),
            texts: Texts::new(),
        }
    }

    #[test]
    fn a_status_is_readable() {
        let mut out = Vec::new();
        example().print(&mut out, "the system bus").unwrap();
        let expected = "\
flowbusd      0.1.0 on the system bus
synchronized  yes
active        3; the kernel has 3 of at most 262144
closed        1 remembered, at most 20000
events        12 received by ring, 0 lost, 1 resync
signals       unknown sent
counters      on
timestamps    off; for new flows: sysctl -w net.netfilter.nf_conntrack_timestamp=1
processes     none
epoch         00ff, at change 9
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let mut early = example();
        early.statistics.clear();
        early.accounting = false;
        let mut out = Vec::new();
        early.print(&mut out, "the system bus").unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("counters      not known: flowbusd could not read nf_conntrack_acct\n"),
            "{text}"
        );
    }

    #[test]
    fn json_has_properties_and_statistics() {
        let json = example().json();
        assert_eq!((&json["active_count"], &json["statistics"]["kernel_max"]), (&3.into(), &262_144.into()));
    }
}
