//! flowctl.
fn main() {}
