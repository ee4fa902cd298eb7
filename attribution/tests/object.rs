//! The committed objects, which machines without clang use.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

#[test]
fn the_committed_objects_are_made_of_these_sources() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf");
    for name in ["attribution.bpf.o", "events.bpf.o"] {
        let output = Command::new(sources.join("compile")).args(["--hash", name]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let hash = output.stdout.trim_ascii();
        let object = std::fs::read(sources.join(name)).unwrap();
        assert!(
            hash.len() == 64 && object.windows(hash.len()).any(|bytes| bytes == hash),
            "{name} is of other sources: attribution/bpf/compile attribution/bpf/{name}"
        );
    }
}
