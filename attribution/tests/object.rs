//! The committed object, which machines without clang use.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

#[test]
fn the_committed_object_is_made_of_these_sources() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf");
    let output = Command::new(sources.join("compile")).arg("--hash").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let hash = output.stdout.trim_ascii();
    let object = std::fs::read(sources.join("attribution.bpf.o")).unwrap();
    assert!(
        hash.len() == 64 && object.windows(hash.len()).any(|bytes| bytes == hash),
        "attribution.bpf.o is of other sources: attribution/bpf/compile attribution/bpf/attribution.bpf.o"
    );
}
