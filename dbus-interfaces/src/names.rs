//! Bus names, object paths and interface names. Each digit is the version of its interface: members and keys are
//! added, a signature never changes.

/// The well-known name of the reading side.
pub const FLOW_MONITOR_NAME: &str = "org.flowbus.FlowMonitor1";
/// The only object of [`FLOW_MONITOR_NAME`].
pub const FLOW_MONITOR_PATH: &str = "/org/flowbus/FlowMonitor1";
/// The interface of [`FLOW_MONITOR_PATH`].
pub const FLOW_MONITOR_INTERFACE: &str = "org.flowbus.FlowMonitor1";

/// The well-known name of the connection that sends the signals: a separate one, so that a subscriber who stops
/// reading never delays a method call.
pub const FLOW_EVENTS_NAME: &str = "org.flowbus.FlowEvents1";
/// The only object of [`FLOW_EVENTS_NAME`].
pub const FLOW_EVENTS_PATH: &str = "/org/flowbus/FlowEvents1";
/// The interface of [`FLOW_EVENTS_PATH`].
pub const FLOW_EVENTS_INTERFACE: &str = "org.flowbus.FlowEvents1";

/// The introspection XML of [`FLOW_MONITOR_INTERFACE`], with documentation.
pub const FLOW_MONITOR_XML: &str = include_str!("../org.flowbus.FlowMonitor1.xml");
/// The introspection XML of [`FLOW_EVENTS_INTERFACE`], with documentation.
pub const FLOW_EVENTS_XML: &str = include_str!("../org.flowbus.FlowEvents1.xml");
