//! The helper, the loader, the package, and what each is allowed, on booted systems, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod attacks;
mod booted;
mod changes;
mod control;
mod documents;
mod export;
mod frozen;
mod handover;
mod hardship;
mod packages;
mod polkit;
mod powers;
mod service;
mod sockets;
mod units;
