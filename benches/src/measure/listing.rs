//! The whole table to a process that reads it from a pipe, against `conntrack -L`.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Instant;

use flowbus_interfaces::QueryMap;

use crate::client::Client;
use crate::document::{Chart, Section};
use crate::figure::{Bar, Figure, show};
use crate::size::Size;
use crate::world::World;

/// The time that is allowed, as a part of conntrack's.
const BAR: f64 = 0.5;

pub(crate) fn measure(size: Size) -> Section {
    let world = World::with_flows(size.flows);
    let mut times: [Vec<f64>; 3] = Default::default();
    for _ in 0..size.rounds {
        let runs =
            [&|| stream(&world.client, size.flows), &|| conntrack(&world, &["-L"], size.flows), &|| {
                conntrack(&world, &["-L", "-o", "xml"], size.flows)
            }] as [&dyn Fn() -> f64; 3];
        for (run, times) in runs.iter().zip(&mut times) {
            times.push(run());
        }
    }
    world.daemon.stop();
    let ratios = times[0].iter().zip(&times[1]).map(|(ours, theirs)| ours / theirs).collect();
    let names = ["OpenStream, all fields", "conntrack -L", "conntrack -L -o xml"];
    let figures: Vec<_> =
        names.into_iter().zip(times).map(|(name, times)| Figure::new(name, "s", times)).collect();
    let mut section = Section::new(
        "Listing",
        format!(
            "All {} flows through a pipe to `wc -l`, from the call to its end.",
            show(f64::from(size.flows))
        ),
    );
    section.charts.push(Chart::new(
        "listing",
        "The whole table to a reading process, in seconds",
        figures.clone(),
    ));
    section.figures.extend(figures);
    section.figures.push(Figure::new("OpenStream against conntrack -L", "x", ratios).bar(Bar::AtMost(BAR)));
    section
}

fn stream(client: &Client, flows: u32) -> f64 {
    let started = Instant::now();
    let query = QueryMap::from([("follow", false.into())]);
    let lines = lines(client.open_stream(&query));
    let time = started.elapsed().as_secs_f64();
    assert_eq!(lines, flows + 3, "begin, the flows, snapshot-end and end");
    time
}

fn conntrack(world: &World, arguments: &[&str], flows: u32) -> f64 {
    let started = Instant::now();
    let mut command = world.namespace.command("conntrack");
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("conntrack is installed");
    let lines = lines(child.stdout.take().expect("it is piped").into());
    let _ = child.wait();
    let time = started.elapsed().as_secs_f64();
    assert!(lines >= flows, "{lines} lines of {flows} flows");
    time
}

/// The process that reads: how many lines came out of the pipe.
fn lines(pipe: OwnedFd) -> u32 {
    let mut command = Command::new("wc");
    let output = command.arg("-l").stdin(File::from(pipe)).output().expect("wc is installed");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("wc counts")
}
