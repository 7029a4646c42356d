//! Processor time and memory of a process and its descendants, from `/proc`.

use std::collections::BTreeMap;

/// Kernel ticks a second in `/proc/PID/stat`; the same on every Linux this runs on.
const TICKS_PER_S: f64 = 100.0;

/// What processes have used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Processor time, user and system, in seconds; of ended children too, once waited for.
    pub cpu_s: f64,
    /// Resident memory now, in bytes; pages shared between processes count in each.
    pub rss_bytes: u64,
}

impl Usage {
    /// Of one process; zero where it is gone.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        Stat::read(pid).map_or_else(Self::default, |stat| stat.usage)
    }

    /// Of a process and all its descendants.
    #[must_use]
    pub fn of_tree(pid: u32) -> Self {
        let all = all_processes();
        let mut sum = Self::default();
        let mut todo = vec![pid];
        while let Some(pid) = todo.pop() {
            if let Some(stat) = all.get(&pid) {
                sum.cpu_s += stat.usage.cpu_s;
                sum.rss_bytes += stat.usage.rss_bytes;
            }
            let children = all.iter().filter(|(_, stat)| stat.parent == pid);
            todo.extend(children.map(|(child, _)| *child));
        }
        sum
    }
}

struct Stat {
    parent: u32,
    usage: Usage,
}

impl Stat {
    /// Fields as numbered in proc_pid_stat(5).
    fn read(pid: u32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name (field 2) may hold anything; what follows its last bracket is field 3.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = field(14)? + field(15)? + field(16)? + field(17)?;
        Some(Self {
            parent: u32::try_from(field(4)?).ok()?,
            usage: Usage {
                cpu_s: ticks as f64 / TICKS_PER_S,
                rss_bytes: field(24)? * rustix::param::page_size() as u64,
            },
        })
    }
}

fn all_processes() -> BTreeMap<u32, Stat> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, Stat::read(pid)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own() {
        let own = Usage::of_tree(std::process::id());
        assert!(own.rss_bytes > 100_000, "{own:?}");
        assert_eq!(Usage::of(u32::MAX), Usage::default());
    }
}
