//! The test harness of flowbus.
