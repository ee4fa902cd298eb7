//! flowbusd by hand: the table is the kernel's, and what it says of it on the bus.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod bus;
mod connections;
mod expectations;
mod export;
mod frozen;
mod guards;
mod harness;
mod introspection;
mod life;
mod links;
mod loss;
mod main_job;
mod occupied;
mod owners;
mod protocols;
mod queries;
mod report;
mod restart;
mod silent;
mod streams;
