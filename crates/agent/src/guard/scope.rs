//! Which opens are judged: by path, by process.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use agent_config::Guard;

/// Processes that may be excluded by registration at once: on-demand scans.
const REGISTERED_MAX: usize = 16;

/// Includes and excludes, tested for each event.
pub(crate) struct Scope {
    include: Vec<Vec<u8>>,
    exclude: Vec<Vec<u8>>,
    programs: Vec<Vec<u8>>,
    registered: Arc<Registered>,
}

/// Process ids whose opens are let through; 0: a free place.
#[derive(Debug, Default)]
pub(crate) struct Registered([AtomicI32; REGISTERED_MAX]);

/// A process's exclusion; ends with its drop.
#[derive(Debug)]
pub(crate) struct Registration {
    registered: Arc<Registered>,
    place: usize,
}

impl Scope {
    pub(crate) fn new(guard: &Guard) -> Self {
        Self {
            include: prefixes(&guard.include),
            exclude: prefixes(&guard.exclude),
            programs: guard
                .exclude_programs
                .iter()
                .map(|path| path.as_os_str().as_bytes().to_vec())
                .collect(),
            registered: Arc::default(),
        }
    }

    /// True if every path is guarded, so that none needs to be asked for.
    pub(crate) fn is_everything(&self) -> bool {
        self.exclude.is_empty() && self.include.iter().any(Vec::is_empty)
    }

    /// True if this path is guarded.
    pub(crate) fn holds(&self, path: &[u8]) -> bool {
        let below = |prefixes: &[Vec<u8>]| prefixes.iter().any(|prefix| is_below(path, prefix));
        below(&self.include) && !below(&self.exclude)
    }

    /// True if this process's opens are let through unseen.
    pub(crate) fn passes_process(&self, pid: i32) -> bool {
        self.registered.holds(pid) || self.passes_program(pid)
    }

    fn passes_program(&self, pid: i32) -> bool {
        if self.programs.is_empty() || pid == 0 {
            return false;
        }
        // A link in /proc: reading it opens no file of a guarded file system.
        let exe = rustix::fs::readlink(format!("/proc/{pid}/exe"), Vec::new());
        exe.is_ok_and(|exe| self.programs.iter().any(|path| path == exe.as_bytes()))
    }

    pub(crate) fn registered(&self) -> Arc<Registered> {
        Arc::clone(&self.registered)
    }
}

impl Registered {
    fn holds(&self, pid: i32) -> bool {
        pid != 0 && self.0.iter().any(|p| p.load(Ordering::Relaxed) == pid)
    }

    /// Lets a process's opens through until the registration is dropped; `None`: no place left.
    pub(crate) fn add(self: &Arc<Self>, pid: i32) -> Option<Registration> {
        let taken = |place: &AtomicI32| {
            let taken = place.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed);
            taken.is_ok()
        };
        let place = self.0.iter().position(taken)?;
        Some(Registration {
            registered: Arc::clone(self),
            place,
        })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(place) = self.registered.0.get(self.place) {
            place.store(0, Ordering::Release);
        }
    }
}

/// Without trailing slash, so that `/` is empty and everything is below it.
fn prefixes(paths: &[PathBuf]) -> Vec<Vec<u8>> {
    let prefix = |path: &PathBuf| {
        let bytes = path.as_os_str().as_bytes();
        let end = bytes.iter().rposition(|b| *b != b'/').map_or(0, |i| i + 1);
        bytes.get(..end).unwrap_or_default().to_vec()
    };
    paths.iter().map(prefix).collect()
}

fn is_below(path: &[u8], prefix: &[u8]) -> bool {
    let rest = path.strip_prefix(prefix);
    rest.is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(include: &[&str], exclude: &[&str]) -> Scope {
        Scope::new(&Guard {
            include: include.iter().map(PathBuf::from).collect(),
            exclude: exclude.iter().map(PathBuf::from).collect(),
            ..Guard::default()
        })
    }

    #[test]
    fn whole_components_count() {
        let scope = scope(&["/srv/", "/home"], &["/srv/cache"]);
        assert!(!scope.is_everything());
        for (path, expected) in [
            ("/srv", true),
            ("/srv/a", true),
            ("/srv2/a", false),
            ("/srv/cache/a", false),
            ("/srv/cache2", true),
            ("/home/x/\n", true),
            ("/etc", false),
            ("", false),
        ] {
            assert_eq!(scope.holds(path.as_bytes()), expected, "{path:?}");
        }
    }

    #[test]
    fn the_root_holds_everything() {
        assert!(scope(&["/"], &[]).is_everything());
        let all_but = scope(&["/"], &["/proc"]);
        assert!(!all_but.is_everything());
        assert!(all_but.holds(b"/x") && !all_but.holds(b"/proc/1"));
    }

    #[test]
    fn registrations_end_and_are_bounded() {
        let scope = scope(&["/"], &[]);
        let registered = scope.registered();
        assert!(!scope.passes_process(0));
        let one = registered.add(77).unwrap();
        assert!(scope.passes_process(77) && !scope.passes_process(78));
        drop(one);
        assert!(!scope.passes_process(77));
        let all: Vec<_> = (0..REGISTERED_MAX)
            .filter_map(|_| registered.add(5))
            .collect();
        assert_eq!(all.len(), REGISTERED_MAX);
        assert!(registered.add(6).is_none());
    }

    #[test]
    fn programs_are_known_by_their_executable() {
        let own = std::env::current_exe().unwrap();
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let passes = |programs: Vec<PathBuf>| {
            let guard = Guard {
                exclude_programs: programs,
                ..Guard::default()
            };
            Scope::new(&guard).passes_process(pid)
        };
        assert!(passes(vec!["/bin/other".into(), own]));
        assert!(!passes(vec!["/bin/other".into()]));
    }
}
