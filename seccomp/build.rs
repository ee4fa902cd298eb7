//! Compiles the policies to the programs that the kernel runs, as Rust arrays.
#![allow(clippy::expect_used, reason = "a build that cannot go on")]

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

/// System calls that x86-64 alone has: younger architectures begin with their successors `epoll_pwait`, `ppoll` and `readlinkat`,
/// which the policies name too.
const X86_64_ALONE: [&str; 3] = ["epoll_wait", "poll", "readlink"];

fn main() {
    let architecture = std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let target = architecture.as_str().try_into().expect("an architecture that seccompiler knows");
    let mut code = String::new();
    for policy in ["flowbusd", "flowbus-control"] {
        let path = format!("{policy}.json");
        println!("cargo::rerun-if-changed={path}");
        let text = fs::read_to_string(&path).expect("the policy is there");
        let mut rules: Value = serde_json::from_str(&text).expect("the policy is JSON");
        if architecture != "x86_64" {
            let filter = rules[policy]["filter"].as_array_mut().expect("a policy is a list of rules");
            filter.retain(|rule| !X86_64_ALONE.iter().any(|name| rule["syscall"] == *name));
        }
        let programs = seccompiler::compile_from_json(rules.to_string().as_bytes(), target)
            .expect("the policy is right");
        let program = programs.get(policy).expect("the policy is named after its file");
        let name = policy.to_uppercase().replace('-', "_");
        writeln!(code, "const {name}: &[(u16, u8, u8, u32)] = &[").expect("text grows");
        for instruction in program {
            let seccompiler::sock_filter { code: operation, jt, jf, k } = instruction;
            writeln!(code, "    ({operation}, {jt}, {jf}, {k}),").expect("text grows");
        }
        code.push_str("];\n");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("policies.rs"), code).expect("the output directory takes files");
}
