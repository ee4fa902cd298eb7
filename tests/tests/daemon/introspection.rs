//! The interfaces as they are written down are those of the running daemon.

use flowbus_tests::{Bus, Daemon, Namespace};

#[test]
fn the_running_daemon_offers_what_the_committed_xml_says() {
    let namespace = Namespace::tracked("host");
    let bus = Bus::start();
    let daemon = Daemon::start(&namespace, &bus);
    for name in ["FlowMonitor1", "FlowEvents1"] {
        let bus_name = format!("org.flowbus.{name}");
        let path = format!("/org/flowbus/{name}");
        let reply =
            bus.call([&bus_name, &path, "org.freedesktop.DBus.Introspectable", "Introspect"], &[]).unwrap();
        let file = format!("{}/../dbus-interfaces/{bus_name}.xml", env!("CARGO_MANIFEST_DIR"));
        let committed = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        let live = interface(reply[0].as_str().unwrap(), &bus_name);
        let committed = interface(&committed, &bus_name);
        for (live, committed) in live.iter().zip(&committed) {
            assert_eq!(live, committed, "the running daemon differs from {file}");
        }
        assert_eq!(live.len(), committed.len(), "lines of the running daemon and of {file}");
        assert!(live.iter().any(|line| line.starts_with("<method ") || line.starts_with("<signal ")));
    }
    daemon.stop();
}

/// The lines of the interface's element without their indentation, which says nothing, and without what only generators of
/// code read (tools/test-generators).
fn interface(xml: &str, name: &str) -> Vec<String> {
    let start =
        xml.find(&format!("<interface name=\"{name}\">")).unwrap_or_else(|| panic!("no {name} in {xml}"));
    let length = xml[start..].find("</interface>").unwrap();
    let of_generator = |line: &str| {
        ["org.gtk.", "org.qtproject."]
            .iter()
            .any(|toolkit| line.contains(&format!("<annotation name=\"{toolkit}")))
    };
    let lines = xml[start..start + length].lines().filter(|line| !of_generator(line));
    lines.map(|line| line.trim().to_owned()).collect()
}
