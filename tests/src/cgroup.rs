//! Control groups: one for each booted machine, since two that share one would take each other's processes for theirs; and one that
//! a unit of systemd's would have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::process::{unique, wait_for};

/// Where the hierarchies that systemd uses may be mounted, together or alone.
const HIERARCHIES: [&str; 3] = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// The group in each hierarchy, gone with its owner.
#[derive(Debug)]
pub struct ControlGroup(Vec<PathBuf>);

impl ControlGroup {
    /// Makes the group.
    ///
    /// # Panics
    /// Without the privilege, or if systemd's hierarchy is not mounted here.
    #[must_use]
    pub fn new(label: &str) -> Self {
        Self::named(&unique(label))
    }

    /// Makes the group that systemd has for a container of nspawn, and its slice where that is missing.
    ///
    /// # Panics
    /// Without the privilege, or if systemd's hierarchy is not mounted here.
    #[must_use]
    pub fn of_container(name: &str) -> Self {
        Self::named(&format!("machine.slice/systemd-nspawn@{name}.service"))
    }

    fn named(name: &str) -> Self {
        let mounted = HIERARCHIES.iter().map(Path::new).filter(|path| path.join("cgroup.procs").exists());
        let groups: Vec<_> = mounted.map(|path| path.join(name)).collect();
        assert!(!groups.is_empty(), "no hierarchy of control groups is mounted at {HIERARCHIES:?}");
        for group in &groups {
            fs::create_dir_all(group).unwrap_or_else(|error| panic!("{}: {error}", group.display()));
        }
        Self(groups)
    }

    /// A command that runs a program in the group; its process id is the program's own.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let enter: String =
            self.0.iter().map(|group| format!("echo $$ >{}/cgroup.procs; ", group.display())).collect();
        let mut command = Command::new("sh");
        command.args(["-ec", &format!("{enter}exec \"$0\" \"$@\""), program]);
        command
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        for group in &self.0 {
            // The last process may still be on its way out.
            for _ in 0..100 {
                remove(group);
                if !group.exists() {
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
            // The last container takes its slice along.
            if let Some(slice) = group.parent().filter(|parent| parent.ends_with("machine.slice")) {
                let _ = fs::remove_dir(slice);
            }
        }
    }
}

/// A group in cgroup2 that a unit of systemd's would have, gone with its owner.
#[derive(Debug)]
pub struct UnitGroup(PathBuf);

impl UnitGroup {
    /// Makes the group.
    ///
    /// # Panics
    /// Without the privilege, or without cgroup2.
    #[must_use]
    pub fn new(unit: &str) -> Self {
        let mut roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from).into_iter();
        let root = roots.find(|root| root.join("cgroup.controllers").exists()).expect("a cgroup2");
        let path = root.join(unit);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    /// What a shell runs to be in the group.
    #[must_use]
    pub fn entering(&self) -> String {
        format!("echo $$ >{}/cgroup.procs", self.0.display())
    }

    /// The unit's name.
    #[must_use]
    pub fn unit(&self) -> String {
        self.0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl Drop for UnitGroup {
    fn drop(&mut self) {
        wait_for("the group to be empty", || fs::remove_dir(&self.0).ok());
    }
}

/// Removes a group, the innermost groups first. Its files cannot be removed and need not be.
fn remove(group: &Path) {
    let Ok(entries) = fs::read_dir(group) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&entry.path());
    }
    let _ = fs::remove_dir(group);
}
