//! Control groups: their paths, and the systemd units that they are.

use std::fmt::Write;
use std::fs::DirEntry;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The systemd unit of a control group's path, as `systemctl status PID` says it: the one of a user's manager where it
/// belongs to one (`app-firefox.scope`), else the system's (`cron.service`). `None` where systemd has not made the group.
///
/// Groups below a unit are the unit's own business: a container cannot pass for a unit of its host.
#[must_use]
pub fn unit_of(path: &str) -> Option<&str> {
    let mut names = path.split('/').filter(|name| !name.is_empty()).map(unescaped);
    let system = names.find(|name| !name.ends_with(".slice")).filter(|name| is_unit(name))?;
    if !system.starts_with("user@") {
        return Some(system);
    }
    let user = names.find(|name| !name.ends_with(".slice"));
    Some(user.filter(|name| is_unit(name)).unwrap_or(system))
}

/// systemd puts a `_` before names that would clash with files of the kernel.
fn unescaped(name: &str) -> &str {
    name.strip_prefix('_').unwrap_or(name)
}

fn is_unit(name: &str) -> bool {
    let kinds = ["service", "scope", "socket", "mount", "swap"];
    name.rsplit_once('.').is_some_and(|(stem, kind)| !stem.is_empty() && kinds.contains(&kind))
}

/// The directory that cgroup2 is mounted at: alone, or beside the first version.
pub(crate) fn root() -> std::io::Result<PathBuf> {
    let candidates = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let found = candidates.into_iter().find(|path| path.join("cgroup.controllers").exists());
    found.ok_or_else(|| std::io::Error::other("no cgroup2 at /sys/fs/cgroup or /sys/fs/cgroup/unified"))
}

/// All control groups: lines `NUMBER PATH`, the root's path being `/`.
pub(crate) fn list(root: &Path) -> std::io::Result<String> {
    let mut text = format!("{} /\n", std::fs::metadata(root)?.ino());
    let mut waiting = vec![(root.to_owned(), String::new())];
    while let Some((directory, path)) = waiting.pop() {
        // A group that was removed meanwhile has nobody in it.
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.filter_map(Result::ok).filter(is_directory) {
            let below = format!("{path}/{}", entry.file_name().to_string_lossy());
            if !below.contains('\n') {
                let _ = writeln!(text, "{} {below}", entry.ino());
            }
            waiting.push((entry.path(), below));
        }
    }
    Ok(text)
}

fn is_directory(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

#[cfg(test)]
mod tests {
    use super::unit_of;

    #[test]
    fn a_path_names_the_unit_that_systemd_made() {
        let cases = [
            ("/system.slice/cron.service", Some("cron.service")),
            ("/system.slice/system-getty.slice/getty@tty1.service", Some("getty@tty1.service")),
            ("/user.slice/user-1000.slice/session-3.scope", Some("session-3.scope")),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox.scope",
                Some("app-firefox.scope"),
            ),
            ("/user.slice/user-1000.slice/user@1000.service/init.scope", Some("init.scope")),
            ("/system.slice/docker.service/worker/1", Some("docker.service")),
            ("/machine.slice/machine-a.scope/payload/system.slice/ssh.service", Some("machine-a.scope")),
            ("/system.slice/_cpu.service", Some("cpu.service")),
            ("/user.slice/user-1000.slice/user@1000.service", Some("user@1000.service")),
            ("/docker/0123456789ab", None),
            ("/system.slice", None),
            ("/.service", None),
            ("/", None),
            ("", None),
        ];
        for (path, unit) in cases {
            assert_eq!(unit_of(path), unit, "{path}");
        }
    }
}
