//! The flowbus daemon.
fn main() {}
