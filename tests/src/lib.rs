//! The test harness of flowbus: everything real, nothing simulated.
//!
//! A test makes a [`Network`] of namespaces, starts a private [`Bus`] and a [`Daemon`] in one of the namespaces, sends real
//! traffic with [`traffic`], and compares what the daemon says over D-Bus with what [`conntrack`] says about the same kernel
//! table. Calls go through `busctl` and listings through `conntrack`: implementations that share no code with flowbus.
//!
//! Everything here panics when the machine refuses something: for a test that is the failure, with its reason.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a harness: what fails here is a failed test")]

pub mod booted;
pub mod burst;
pub mod bus;
mod cgroup;
pub mod churn;
pub mod client;
pub mod companion;
pub mod conntrack;
pub mod daemon;
pub mod event_ring;
pub mod flow;
pub mod helper;
pub mod inject;
pub mod kept;
pub mod listener;
pub mod monitor;
pub mod namespace;
pub mod network;
pub mod process;
pub mod raw;
pub mod resolved;
pub mod screen;
pub mod sockets;
pub mod stores;
pub mod traffic;

pub use booted::{Machine, SystemBus};
pub use bus::{Bus, CallError};
pub use cgroup::{ControlGroup, UnitGroup};
pub use client::Client;
pub use daemon::Daemon;
pub use event_ring::EventRing;
pub use helper::Helper;
pub use kept::Kept;
pub use listener::Listener;
pub use monitor::Monitor;
pub use namespace::Namespace;
pub use network::Network;
pub use raw::RawConnection;
pub use resolved::Resolved;
pub use screen::Screen;
pub use sockets::Sockets;
pub use stores::Stores;
