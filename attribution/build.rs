//! Compiles the BPF programs where there is a clang for it, and takes the committed object where there is none.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=bpf");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf");
    let compiled = format!("{}/attribution.bpf.o", std::env::var("OUT_DIR").unwrap_or_default());
    let has_clang =
        Command::new("clang").arg("--version").output().is_ok_and(|output| output.status.success());
    let object = if has_clang && compile(&sources, &compiled) {
        compiled
    } else {
        sources.join("attribution.bpf.o").display().to_string()
    };
    println!("cargo::rustc-env=BPF_OBJECT={object}");
}

/// Whether it went well; else a warning says that the committed object is used.
fn compile(sources: &Path, output: &str) -> bool {
    let compiled = match Command::new(sources.join("compile")).arg(output).output() {
        Ok(result) if result.status.success() => return true,
        Ok(result) => String::from_utf8_lossy(&result.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    println!(
        "cargo::warning=the BPF programs do not compile here, taking the committed object: {}",
        compiled.trim()
    );
    false
}
