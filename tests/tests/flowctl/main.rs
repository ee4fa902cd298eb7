//! What people and programs see: flowctl, the examples, the demo.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod changes;
mod commands;
mod completion;
mod conditions;
mod conntrack_output;
mod demo;
mod names;
mod programmers;
mod stats;
mod terminal;
mod top;
