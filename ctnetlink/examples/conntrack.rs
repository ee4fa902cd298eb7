//! A small conntrack: `cargo run -p ctnetlink --example conntrack -- list`, `expect`, or `delete PROTOCOL DESTINATION-PORT`. As root.

use std::error::Error;

use ctnetlink::{Conntrack, End, FlowFilter};

#[expect(clippy::print_stdout, reason = "this is a command line")]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut table = Conntrack::open()?;
    match words.as_slice() {
        ["list"] => table.dump(None, |flow| println!("{flow}"))?,
        ["expect"] => table.expectations(None, |expectation| {
            println!("{} for {}", expectation.tuple, expectation.master);
        })?,
        ["delete", protocol, port] => {
            let mut filter = FlowFilter::default();
            filter.protocol(protocol.parse()?)?;
            filter.port(End::OriginalDestination, port.parse()?)?;
            println!("{:?}", table.delete_matching(None, &[filter])?);
        }
        _ => return Err("list, expect, or delete PROTOCOL DESTINATION-PORT, both as numbers".into()),
    }
    Ok(())
}
