//! What a listing says besides its flows.

use zbus::{DeserializeDict, SerializeDict, Type};

/// The second result of `ListActive` and `ListClosed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct Page {
    /// Where the next page begins: pass it back as `after`. Absent on the last page and on an empty one.
    pub next: Option<u64>,
    /// All changes up to this number are in the page, later ones may be.
    pub sequence: u64,
    /// The table's epoch: flow ids and sequences of another one mean nothing in this.
    pub epoch: String,
    /// Whether the table has been brought in line with the kernel's since the last loss.
    pub synchronized: bool,
}
