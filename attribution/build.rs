//! Compiles the BPF programs where there is a clang for it, and takes the committed object where there is none.
//! `FLOWBUS_BPF=build` makes what keeps them from being compiled an error, `FLOWBUS_BPF=committed` does not try.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-env-changed=FLOWBUS_BPF");
    for (name, variable) in [("attribution.bpf.o", "BPF_OBJECT"), ("events.bpf.o", "EVENTS_BPF_OBJECT")] {
        if let Some(object) = object(name) {
            println!("cargo::rustc-env={variable}={object}");
        }
    }
}

/// Where the object is; `None` where that is an error.
fn object(name: &str) -> Option<String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf");
    let committed = sources.join(name).display().to_string();
    let compiled = format!("{}/{name}", std::env::var("OUT_DIR").unwrap_or_default());
    Some(match std::env::var("FLOWBUS_BPF").as_deref() {
        Ok("committed") => committed,
        Ok("build") => match compile(&sources, &compiled) {
            Ok(()) => compiled,
            Err(reason) => {
                println!(
                    "cargo::error=the BPF programs do not compile: {reason}; install clang and the headers of libbpf, or set \
                     FLOWBUS_BPF=committed to take the object in the repository"
                );
                return None;
            }
        },
        Ok(other) => {
            println!("cargo::error=FLOWBUS_BPF is \"build\" or \"committed\", not {other:?}");
            return None;
        }
        Err(_) if !has_clang() => committed,
        Err(_) => match compile(&sources, &compiled) {
            Ok(()) => compiled,
            Err(reason) => {
                println!(
                    "cargo::warning=the BPF programs do not compile here, taking the committed object: {reason}"
                );
                committed
            }
        },
    })
}

fn has_clang() -> bool {
    Command::new("clang").arg("--version").output().is_ok_and(|output| output.status.success())
}

fn compile(sources: &Path, output: &str) -> Result<(), String> {
    match Command::new(sources.join("compile")).arg(output).output() {
        Ok(result) if result.status.success() => Ok(()),
        Ok(result) => Err(String::from_utf8_lossy(&result.stderr).trim().replace('\n', " ")),
        Err(error) => Err(error.to_string()),
    }
}
