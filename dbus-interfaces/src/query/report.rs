//! What a report is asked for.

use super::parse::{self, one};
use super::{QueryError, QueryKey, RawQuery};

/// The options of `GetReport`, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportOptions {
    /// The longest text, [`ReportOptions::LEAST`] to [`ReportOptions::MOST`] bytes.
    pub max_bytes: usize,
    /// Whether addresses and the like are hidden. The service lets root alone do without.
    pub redact: bool,
    /// Whether names of processes are shown.
    pub processes: bool,
    /// Whether flows are listed. The totals count them in any case.
    pub flows: bool,
    /// Flows that ended earlier are passed over, in the totals too. Microseconds since 1970; 0 for all that are remembered.
    pub since: u64,
}

/// The longest text, redacted, with flows and without processes.
impl Default for ReportOptions {
    fn default() -> Self {
        Self { max_bytes: Self::MOST, redact: true, processes: false, flows: true, since: 0 }
    }
}

impl ReportOptions {
    /// The least value of `max_bytes`.
    pub const LEAST: usize = 4 * 1024;
    /// The greatest value of `max_bytes`, which is the default.
    pub const MOST: usize = 512 * 1024;

    /// Checks options: `max_bytes`, `redact`, `processes`, `flows` and `since`.
    ///
    /// # Errors
    /// For a key that is unknown or repeated, and for a value of the wrong type or range.
    pub fn parse(raw: &RawQuery) -> Result<Self, QueryError> {
        let mut options = Self::default();
        for (key, value) in raw.option_pairs(&["max_bytes", "redact", "processes", "flows", "since"])? {
            let flag = || one(key, "true or false", value, parse::boolean);
            match key {
                "redact" => options.redact = flag()?,
                "processes" => options.processes = flag()?,
                "flows" => options.flows = flag()?,
                "since" => options.since = one(key, QueryKey::Since.takes(), value, parse::integer)?,
                _ => {
                    let takes = format!("an integer from {} to {}", Self::LEAST, Self::MOST);
                    options.max_bytes = one(key, &takes, value, parse::within(Self::LEAST..=Self::MOST))?;
                }
            }
        }
        Ok(options)
    }
}
