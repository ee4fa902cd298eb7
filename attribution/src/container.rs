//! Containers and pods by the control group that the process is in: what the engines call the groups that they make.

use std::borrow::Cow;

/// The id of the container that a control group belongs to, in full: 64 hexadecimal digits of docker, containerd, CRI-O, podman
/// and Kubernetes; the name of LXC's and systemd-nspawn's.
///
/// The outermost container counts: a process within can make groups of any name below its own, and passes for no other.
#[must_use]
pub fn container_of(path: &str) -> Option<Cow<'_, str>> {
    let mut parent = "";
    for (depth, group) in groups(path).enumerate() {
        if let Some(id) = hexadecimal_id(group) {
            return Some(id.into());
        }
        if let Some(name) = group.strip_prefix("lxc.payload.").filter(|name| !name.is_empty()) {
            return Some(name.into());
        }
        // The first version of LXC's names: /lxc/NAME.
        if parent == "lxc" && depth == 1 || parent == "lxc.payload" {
            return Some(group.into());
        }
        if let Some(name) = machine(parent, group) {
            // systemd-nspawn itself is in the group `supervisor`.
            let is_inside = groups(path).nth(depth + 1) != Some("supervisor");
            return is_inside.then(|| unescaped(name));
        }
        parent = group;
    }
    None
}

/// The uid of the Kubernetes pod that a control group belongs to.
#[must_use]
pub fn pod_of(path: &str) -> Option<Cow<'_, str>> {
    for group in groups(path) {
        if let Some(uid) = pod(group) {
            return Some(uid);
        }
        // A group below a container's is the container's own business.
        if hexadecimal_id(group).is_some() {
            return None;
        }
    }
    None
}

fn groups(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}

/// The id in `<id>`, `docker-<id>.scope`, `cri-containerd-<id>.scope`, `crio-<id>`, `libpod-payload-<id>` or
/// `kubepods-pod<uid>.slice:cri-containerd:<id>`. The helper conmon has a group beside its container's, with the same id.
fn hexadecimal_id(group: &str) -> Option<&str> {
    const DIGITS: usize = 64;
    let name = group.strip_suffix(".scope").unwrap_or(group);
    let (engine, id) = name.rfind(['-', ':']).map_or(("", name), |at| (&name[..at], &name[at + 1..]));
    let is_id = id.len() == DIGITS && id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    (is_id && !engine.ends_with("conmon")).then_some(id)
}

/// The name in `machine-NAME.scope` or `systemd-nspawn@NAME.service` in `machine.slice`; virtual machines are there as well.
fn machine<'path>(parent: &str, group: &'path str) -> Option<&'path str> {
    if parent != "machine.slice" {
        return None;
    }
    let scope = || group.strip_prefix("machine-")?.strip_suffix(".scope");
    let service = || group.strip_prefix("systemd-nspawn@")?.strip_suffix(".service");
    scope().or_else(service).filter(|name| !name.is_empty() && !name.starts_with("qemu\\x2d"))
}

/// The uid in `pod<uid>` or, with `_` for `-`, in `kubepods-burstable-pod<uid>.slice` and what follows it where containerd has no slice.
fn pod(group: &str) -> Option<Cow<'_, str>> {
    let name = group.split_once(".slice").map_or(group, |(name, _)| name);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None => name.split_once("kubepods")?.1.rsplit_once("-pod")?.1,
    };
    let is_uid = uid.len() >= 32 && uid.bytes().all(|c| c.is_ascii_hexdigit() || matches!(c, b'-' | b'_'));
    is_uid.then(|| if uid.contains('_') { uid.replace('_', "-").into() } else { uid.into() })
}

/// Undoes systemd's escapes: `\x2d` is `-`.
fn unescaped(name: &str) -> Cow<'_, str> {
    if !name.contains("\\x") {
        return name.into();
    }
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let escaped = rest.strip_prefix(b"\\x").and_then(|rest| rest.split_at_checked(2));
        let digits = escaped.and_then(|(digits, behind)| Some((std::str::from_utf8(digits).ok()?, behind)));
        match digits.and_then(|(digits, behind)| Some((u8::from_str_radix(digits, 16).ok()?, behind))) {
            Some((byte, behind)) => {
                bytes.push(byte);
                rest = behind;
            }
            None => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::{container_of, pod_of};

    const ID: &str = "3f2a90b1c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f70819203a4b5c6d7e";
    const OTHER: &str = "0000000000000000000000000000000000000000000000000000000000000000";
    const UID: &str = "d7b1c2ab-1f2e-4a5b-9c8d-0a1b2c3d4e5f";

    #[test]
    fn a_container_is_named_as_its_engine_writes_it() {
        let systemd_uid = UID.replace('-', "_");
        let cases = [
            (format!("/docker/{ID}"), Some(ID), None),
            (format!("/system.slice/docker-{ID}.scope"), Some(ID), None),
            (format!("/system.slice/docker-{ID}.scope/init.scope"), Some(ID), None),
            (format!("/default/{ID}"), Some(ID), None),
            (format!("/system.slice/nerdctl-{ID}.scope"), Some(ID), None),
            (format!("/machine.slice/libpod-{ID}.scope/container"), Some(ID), None),
            (format!("/libpod_parent/libpod-{ID}"), Some(ID), None),
            (
                format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
                Some(ID),
                None,
            ),
            (format!("/system.slice/web.service/libpod-payload-{ID}"), Some(ID), None),
            (format!("/machine.slice/libpod-conmon-{ID}.scope"), None, None),
            (format!("/kubepods/burstable/pod{UID}/{ID}"), Some(ID), Some(UID)),
            (format!("/kubepods/pod{UID}/crio-{ID}"), Some(ID), Some(UID)),
            (format!("/kubepods/pod{UID}/crio-conmon-{ID}"), None, Some(UID)),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd_uid}.slice/cri-containerd-{ID}.scope"
                ),
                Some(ID),
                Some(UID),
            ),
            (
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{systemd_uid}.slice/crio-{ID}.scope"
                ),
                Some(ID),
                Some(UID),
            ),
            (
                format!(
                    "/system.slice/containerd.service/kubepods-besteffort-pod{systemd_uid}.slice:cri-containerd:{ID}"
                ),
                Some(ID),
                Some(UID),
            ),
            ("/lxc.payload.web-1/system.slice/ssh.service".into(), Some("web-1"), None),
            ("/lxc.monitor.web-1".into(), None, None),
            ("/lxc/web-1".into(), Some("web-1"), None),
            ("/machine.slice/machine-my\\x2dbox.scope/payload/init.scope".into(), Some("my-box"), None),
            ("/machine.slice/machine-box.scope/supervisor".into(), None, None),
            ("/machine.slice/systemd-nspawn@box.service/payload".into(), Some("box"), None),
            ("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope".into(), None, None),
            ("/user.slice/lxc/web".into(), None, None),
            (format!("/system.slice/{}.service", &ID[..32]), None, None),
            ("/system.slice/docker.service".into(), None, None),
            ("/kubepods/besteffort".into(), None, None),
            ("/".into(), None, None),
            (String::new(), None, None),
        ];
        for (path, container, pod) in cases {
            assert_eq!(container_of(&path).as_deref(), container, "{path}");
            assert_eq!(pod_of(&path).as_deref(), pod, "{path}");
        }
    }

    #[test]
    fn a_container_cannot_pass_for_another_by_groups_of_its_own() {
        let path = format!("/docker/{ID}/docker/{OTHER}/kubepods/pod{UID}");
        assert_eq!(container_of(&path).as_deref(), Some(ID));
        assert_eq!(pod_of(&path), None);
        let path = format!("/machine.slice/machine-box.scope/payload/docker-{OTHER}.scope");
        assert_eq!(container_of(&path).as_deref(), Some("box"));
    }
}
