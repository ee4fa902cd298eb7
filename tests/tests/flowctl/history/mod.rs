//! `flowctl history`: what the log has is found, and what it does not have is said. Neither a daemon nor a bus is there.

mod answers;
mod hostile;
mod incomplete;
mod log;
