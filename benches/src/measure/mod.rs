//! What is measured, a file each.

mod attribution;
mod burst;
mod capacity;
mod export;
mod idle;
mod latency;
mod listing;
mod memory;
mod restart;
mod sender;
mod start;
mod steady;

use crate::document::Section;
use crate::size::Size;

/// A measure: takes how much to do, returns what it found.
type Measure = fn(Size) -> Section;

/// The measures by the names that `--only` takes, in the order of the document.
pub(crate) const MEASURES: [(&str, Measure); 12] = [
    ("burst", burst::measure),
    ("capacity", capacity::measure),
    ("steady", steady::measure),
    ("memory", memory::measure),
    ("listing", listing::measure),
    ("start", start::measure),
    ("latency", latency::measure),
    ("idle", idle::measure),
    ("restart", restart::measure),
    ("attribution", attribution::measure),
    ("sender", sender::measure),
    ("export", export::measure),
];
