//! Which container a process is in, by its control group, for people.
//!
//! The group's name is what every runtime makes up from the container's id; the image is in the
//! runtime's own files, where they are readable. Read only where nobody waits.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Bytes of a runtime's file that are read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a name that are kept.
const NAME_BYTES_MAX: usize = 256;

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    runtime: &'static str,
    id: String,
    /// Empty: not known.
    image: String,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.get(..12).unwrap_or(&self.id);
        write!(f, "{} container {id}", self.runtime)?;
        if self.image.is_empty() {
            return Ok(());
        }
        write!(f, " of {}", self.image)
    }
}

/// The container of a process; `None`: none that is known, or no such process any more.
pub(crate) fn of(pid: i32) -> Option<Container> {
    if pid <= 0 {
        return None;
    }
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mut container = in_groups(&groups)?;
    container.image = image_of(&container).unwrap_or_default();
    Some(container)
}

/// Names of groups as the runtimes make them: `docker-ID.scope`, `/docker/ID` and their like.
const RUNTIMES: [(&str, &str); 6] = [
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("nerdctl-", "containerd"),
    ("crio-", "cri-o"),
    ("libpod-", "podman"),
    ("lxc.payload.", "lxc"),
];
const FOLDERS: [(&str, &str); 4] = [
    ("docker", "docker"),
    ("lxc", "lxc"),
    ("containerd", "containerd"),
    ("machine.slice", "machine"),
];

/// By the innermost group that names one.
fn in_groups(groups: &str) -> Option<Container> {
    groups.lines().find_map(|line| {
        // `0::/path`, or `4:memory:/path` of the first version.
        let path = line.splitn(3, ':').nth(2)?;
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let of_part = |index: usize| {
            let part = *parts.get(index)?;
            let before = index.checked_sub(1).and_then(|before| parts.get(before));
            in_part(part, before.copied().unwrap_or_default())
        };
        (0..parts.len()).rev().find_map(of_part)
    })
}

fn in_part(part: &str, folder: &str) -> Option<Container> {
    let bare = part.strip_suffix(".scope").unwrap_or(part);
    let named = RUNTIMES.iter().find_map(|(prefix, runtime)| {
        let id = bare.strip_prefix(prefix)?;
        Some((*runtime, id))
    });
    let below = || {
        let (_, runtime) = FOLDERS.iter().find(|(name, _)| *name == folder)?;
        Some((*runtime, bare))
    };
    // Kubernetes with the first version of groups: only the id, below the pod.
    let bare_id = || (is_long_id(bare) && folder.starts_with("pod")).then_some(("cri", bare));
    let (runtime, id) = named.or_else(below).or_else(bare_id)?;
    let plain = id
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    (plain && !id.is_empty() && id.len() <= NAME_BYTES_MAX).then(|| Container {
        runtime,
        id: id.to_owned(),
        image: String::new(),
    })
}

fn is_long_id(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// From the files of the runtimes that keep them where they can be found by the id.
fn image_of(container: &Container) -> Option<String> {
    let id = &container.id;
    let containerd = Path::new("/run/containerd/io.containerd.runtime.v2.task");
    let places: Vec<(PathBuf, &str)> = match container.runtime {
        "docker" => vec![(
            format!("/var/lib/docker/containers/{id}/config.v2.json").into(),
            "/Config/Image",
        )],
        "containerd" | "cri" => ["k8s.io", "default"]
            .map(|space| {
                let config = containerd.join(space).join(id).join("config.json");
                (config, "/annotations/io.kubernetes.cri.image-name")
            })
            .to_vec(),
        "cri-o" => vec![(
            format!("/run/containers/storage/overlay-containers/{id}/userdata/config.json").into(),
            "/annotations/io.kubernetes.cri-o.ImageName",
        )],
        _ => Vec::new(),
    };
    places.iter().find_map(|(path, pointer)| {
        let mut text = Vec::new();
        let file = std::fs::File::open(path).ok()?;
        file.take(CONFIG_BYTES_MAX).read_to_end(&mut text).ok()?;
        let config: Value = serde_json::from_slice(&text).ok()?;
        let image = config.pointer(pointer)?.as_str()?;
        Some(image.chars().take(NAME_BYTES_MAX).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[track_caller]
    fn check(groups: &str, expected: Option<(&str, &str)>) {
        let found = in_groups(groups);
        let found = found.as_ref().map(|it| (it.runtime, it.id.as_str()));
        assert_eq!(found, expected, "{groups}");
    }

    #[test]
    fn runtimes_are_known_by_their_groups() {
        for (group, runtime) in [
            (format!("0::/system.slice/docker-{ID}.scope"), "docker"),
            (format!("0::/docker/{ID}"), "docker"),
            (format!("12:pids:/docker/{ID}\n0::/"), "docker"),
            (
                format!("0::/kubepods.slice/x.slice/cri-containerd-{ID}.scope"),
                "containerd",
            ),
            (format!("0::/kubepods/besteffort/pod1-2/{ID}"), "cri"),
            (format!("0::/kubepods.slice/crio-{ID}.scope/init"), "cri-o"),
            (
                format!("0::/machine.slice/libpod-{ID}.scope/container"),
                "podman",
            ),
        ] {
            check(&group, Some((runtime, ID)));
        }
        check("0::/lxc.payload.web/init.scope", Some(("lxc", "web")));
    }

    #[test]
    fn what_is_no_container_is_none() {
        for group in [
            "",
            "0::/",
            "0::/user.slice/user-0.slice/session-1.scope",
            "0::/system.slice/docker.service",
            "0::/docker/a b",
            "junk",
        ] {
            check(group, None);
        }
        assert_eq!(of(0), None);
    }

    #[test]
    fn people_see_the_short_id_and_the_image() {
        let container = Container {
            runtime: "docker",
            id: ID.to_owned(),
            image: "debian:12".to_owned(),
        };
        assert_eq!(
            container.to_string(),
            "docker container 0123456789ab of debian:12"
        );
    }
}
