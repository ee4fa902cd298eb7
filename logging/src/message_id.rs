//! What entries of one kind have as their `MESSAGE_ID`: `journalctl MESSAGE_ID=...` finds all of them.

/// flowbusd: events were lost.
pub const EVENTS_LOST: &str = "88d0caba6dc2ef420e00d49ccbdfeca3";
/// flowbusd: the table agrees with the kernel's again.
pub const SYNCHRONIZED: &str = "406298149fe3dfc00b2aa3d972f906a8";
/// flowbusd: the state of its last life was not taken over.
pub const STATE_REFUSED: &str = "9d25279dfa16b5eceb42fdbd58a630e7";
/// flowbusd: the error that ends it.
pub const CANNOT_SERVE: &str = "5173e599f2a87e1c75f0d9e612e7ae78";
/// flowbus-control: it changed the kernel's table for a caller.
pub const TABLE_CHANGED: &str = "4a1f6d0b7b0d4d5c9a2e3f8f52c7d641";
/// flowbus-control: the error that ends it.
pub const CONTROL_CANNOT_SERVE: &str = "9d7b1c6e0f5a4a3fb0c1f0a2d4c87e15";
