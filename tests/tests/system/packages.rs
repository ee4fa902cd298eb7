//! What packages are made of: the tree that packaging/install writes, and what is made of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use flowbus_tests::booted::package;
use flowbus_tests::daemon::binary;
use flowbus_tests::process::{Directory, output_of};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// What Debian alone has in a package.
const DEBIAN: [&str; 3] = [
    "usr/share/doc/flowbus/changelog.gz",
    "usr/share/doc/flowbus/copyright",
    "usr/share/lintian/overrides/flowbus",
];

fn binaries() -> PathBuf {
    binary("flowbusd").parent().unwrap().to_owned()
}

/// Installs into a new directory.
fn installed(label: &str) -> Directory {
    let tree = Directory::new(label);
    let mut install = Command::new(format!("{ROOT}/packaging/install"));
    output_of(install.arg(binaries()).arg(tree.path()).env("STRIP", "strip"));
    tree
}

/// Each file below a directory: its mode and what is in it.
fn files(root: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    use std::os::unix::fs::PermissionsExt;
    let list = output_of(Command::new("find").arg(root).args(["-type", "f", "-printf", "%P\n"]));
    let read = |name: &str| {
        let path = root.join(name);
        (path.metadata().unwrap().permissions().mode(), std::fs::read(path).unwrap())
    };
    list.lines().map(|name| (name.to_owned(), read(name))).collect()
}

#[test]
fn the_debian_package_has_what_packaging_install_writes() {
    let (tree, unpacked) = (installed("tree"), Directory::new("unpacked"));
    output_of(Command::new("dpkg-deb").arg("--extract").arg(package()).arg(unpacked.path()));
    // Debian compresses manual pages.
    output_of(
        Command::new("find")
            .arg(unpacked.path().join("usr/share/man"))
            .args(["-type", "f", "-exec", "gunzip", "{}", "+"]),
    );
    let (expected, mut found) = (files(tree.path()), files(unpacked.path()));
    for name in DEBIAN {
        assert!(found.remove(name).is_some(), "{name}");
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, file) in &expected {
        assert!(found[name] == *file, "{name} differs");
    }
}

#[test]
fn a_package_made_in_another_folder_is_the_same_bytes() {
    let (folder, one, two) = (Directory::new("folder"), Directory::new("one"), Directory::new("two"));
    // Newer files, without the repository's history.
    output_of(Command::new("sh").args([
        "-c",
        &format!(
            "cd {ROOT} && cp -r packaging systemd docs dbus-interfaces examples *.md LICENSE-* Cargo.toml {}",
            folder.path().display()
        ),
    ]));
    let make = |from: &str, to: &Directory| {
        let mut build = Command::new(format!("{from}/packaging/build"));
        build
            .arg(binaries())
            .arg(to.path())
            .env("SOURCE_DATE_EPOCH", "1750000000")
            .env("FLOWBUS_DEB_COMPRESSION", "none");
        std::fs::read(output_of(&mut build).trim()).unwrap()
    };
    assert!(make(ROOT, &one) == make(folder.path().to_str().unwrap(), &two));
}

#[test]
fn no_link_in_the_installed_documents_is_dead() {
    let tree = installed("tree");
    let documents = tree.path().join("usr/share/doc/flowbus");
    assert!(documents.join("README.md").is_file() && !documents.join("testing.md").exists());
    let mut links = 0;
    for (name, (_, text)) in files(&documents) {
        let text = String::from_utf8_lossy(&text);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let file = link.split('#').next().unwrap();
            if !name.ends_with(".md") || file.is_empty() || file.starts_with("https://") {
                continue;
            }
            links += 1;
            let path = match file.strip_prefix('/') {
                Some(absolute) => tree.path().join(absolute),
                None => documents.join(&name).parent().unwrap().join(file),
            };
            assert!(path.exists(), "{name} links to {link}");
        }
    }
    assert!(links > 10, "{links}");
}

#[test]
fn another_prefix_is_in_the_files_that_name_paths() {
    let tree = Directory::new("tree");
    let mut install = Command::new(format!("{ROOT}/packaging/install"));
    output_of(
        install
            .arg(binaries())
            .arg(tree.path())
            .env("prefix", "/opt/flowbus")
            .env("sysconfdir", "/opt/flowbus/etc"),
    );
    let unit =
        std::fs::read_to_string(tree.path().join("opt/flowbus/lib/systemd/system/flowbusd.service")).unwrap();
    assert!(unit.contains("ExecStart=/opt/flowbus/bin/flowbusd"), "{unit}");
    for (name, (_, text)) in files(&tree.path().join("opt/flowbus/lib")) {
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(
            !["/usr/bin/flow", "/usr/libexec/flow", "/usr/share/flowbus"]
                .iter()
                .any(|path| text.contains(path)),
            "{name}"
        );
    }
    assert!(!tree.path().join("usr").exists());
}

#[test]
fn rpmbuild_makes_a_package_of_the_same_tree() {
    let (top, tree) = (Directory::new("rpm"), installed("tree"));
    let version = env!("CARGO_PKG_VERSION");
    let line = format!(
        "mkdir -p {top}/SOURCES {top}/flowbus-{version} && cd {ROOT} && \
         tar c --exclude=./target --exclude=./.git --exclude=./fuzz . | tar x -C {top}/flowbus-{version} && cd {top} && \
         tar czf SOURCES/flowbus-{version}.tar.gz flowbus-{version} && \
         rpmbuild -bb --quiet --nodeps --define '_topdir {top}' --define 'binaries {binaries}' \
         flowbus-{version}/packaging/flowbus.spec >&2 && rpm -qlp RPMS/*/*.rpm",
        top = top.path().display(),
        binaries = binaries().display(),
    );
    let listed = output_of(Command::new("sh").args(["-c", &line]));
    for name in files(tree.path()).keys() {
        // Compressed, and completions are where other distributions have them.
        let name = name.replace("zsh/vendor-completions", "zsh/site-functions");
        assert!(
            listed.lines().any(|path| path.trim_start_matches('/').trim_end_matches(".gz") == name),
            "{name} is not in:\n{listed}"
        );
    }
}

#[test]
fn the_versions_of_the_packages_are_the_workspaces() {
    let version = env!("CARGO_PKG_VERSION");
    let spec = std::fs::read_to_string(format!("{ROOT}/packaging/flowbus.spec")).unwrap();
    assert!(spec.lines().any(|line| line.split_whitespace().eq(["Version:", version])));
    assert!(Path::new(&format!("{ROOT}/packaging/flowbus-{version}.ebuild")).is_file());
}

#[test]
fn the_policy_for_chromeos_is_what_the_unit_allows() {
    let example = format!("{ROOT}/examples/chromeos");
    let written = output_of(&mut Command::new(format!("{example}/seccomp-policy")));
    assert_eq!(
        written,
        std::fs::read_to_string(format!("{example}/flowbusd.policy")).unwrap(),
        "run examples/chromeos/seccomp-policy"
    );
    assert!(written.contains("\nppoll: 1\n") && written.contains("\ncapset: 1\n"));
}
