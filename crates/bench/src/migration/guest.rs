//! The guest: our agent, and a shell that writes and opens files all the time.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use testbed::{Console, GuestAgent, GuestTree, samples};

use super::hosts::Hosts;

/// The domain's name.
pub(super) const NAME: &str = "opener";

/// How often its agent measures, in seconds: more often than it ships (60), so that a run with lost
/// events does not take all day. What a correction takes is up to this and a moment.
pub(super) const MEASURE_S: u64 = 10;

/// What the guest has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Good files opened.
    pub(super) opens: u64,
    /// Good files that could not be opened.
    pub(super) failed: u64,
    /// Malicious files that could not be opened.
    pub(super) denied: u64,
    /// Malicious files that were opened.
    pub(super) let_through: u64,
}

/// On the network of the hosts.
const NETWORK: &str = "ip addr add 10.77.0.50/24 dev eth0; ip link set eth0 up";

/// Writes and opens files for ever.
const INIT: &str = r#"
n=0; failed=0; denied=0; through=0
while :; do
  n=$((n+1)); f=/data/f$((n%200))
  echo "content $n of $RANDOM" > $f || failed=$((failed+1))
  read -r line < $f || failed=$((failed+1))
  if [ $((n%50)) = 0 ]; then
    cat /etc/sample > /data/bad 2>/dev/null
    if read -r line < /data/bad; then through=$((through+1)); else denied=$((denied+1)); fi
  fi 2>/dev/null
  if [ $((n%10)) = 0 ]; then echo "LZ $n $failed $denied $through."; fi
  if [ $((n%100)) = 0 ]; then
    echo "LZ-STATUS $(lazaret-agent status --json --config /etc/agent.toml | tr -d '\n')."
  fi
done
"#;

/// A booted guest.
pub(super) struct Guest {
    console: Console,
}

impl Guest {
    /// Boots it on the first host; returns when its agent has a link.
    pub(super) fn boot(dir: &Path, hosts: &Hosts) -> Result<Self> {
        let agent = GuestAgent {
            server: &hosts.server,
            network: NETWORK,
            measure_s: MEASURE_S,
        };
        let tree = GuestTree::with_agent(&dir.join("guest"), &agent, INIT)?;
        tree.write("etc/sample", samples::eicar(), 0o644)?;
        let image = tree.pack()?;

        let console = Console::at(dir.join("serial.log"));
        let xml = dir.join("guest.xml");
        let text = domain(&image.kernel, &image.initrd, console.path());
        std::fs::write(&xml, text)?;
        let guest = Self { console };
        hosts.create(&xml)?;
        guest
            .console
            .wait(super::PATIENCE, "its agent has no link", |text| {
                text.lines()
                    .any(|line| line.starts_with("LZ-READY"))
                    .then_some(())
            })?;
        Ok(guest)
    }

    /// Its own kernel says that its memory is corrupt: QEMU's emulation may lose writes of a guest that
    /// is live-migrated, where the machine is busy. It says nothing of what is measured here.
    pub(super) fn is_broken(&self) -> bool {
        is_broken(&self.console.text())
    }

    fn wait<T>(
        &self,
        patience: Duration,
        otherwise: &str,
        mut found: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let found = self.console.wait(patience, otherwise, |text| {
            let found = found(text).map(Some);
            found.or_else(|| is_broken(text).then_some(None))
        })?;
        found.context("the guest's kernel is broken")
    }

    /// Waits until it has opened so many more files, and gives what it counted.
    pub(super) fn progress(&self, opens: u64, patience: Duration) -> Result<Tally> {
        let before = last_tally(&self.console.text()).unwrap_or_default();
        self.wait(patience, "it opens no files", |text| {
            last_tally(text).filter(|tally| tally.opens >= before.opens + opens)
        })
    }

    /// The status of its agent, asked for after now.
    pub(super) fn status(&self, patience: Duration) -> Result<Value> {
        let statuses = |text: &str| -> Vec<String> {
            let lines = text
                .lines()
                .filter_map(|line| line.strip_prefix("LZ-STATUS "));
            let whole = lines.filter_map(|line| line.trim_end().strip_suffix('.'));
            whole.map(str::to_owned).collect()
        };
        let before = statuses(&self.console.text()).len();
        // The one that is being made now may be from before.
        let status = self.wait(patience, "no status", |text| {
            statuses(text).get(before + 1).cloned()
        })?;
        serde_json::from_str(&status).context("the agent's status")
    }
}

fn is_broken(console: &str) -> bool {
    let words = [
        "BUG: ",
        "Oops: ",
        "general protection fault",
        "Kernel panic",
    ];
    let is_kernels = |line: &&str| line.starts_with('[');
    let mut lines = console.lines().filter(is_kernels);
    lines.any(|line| words.iter().any(|word| line.contains(word)))
}

/// The last whole line of counts.
fn last_tally(text: &str) -> Option<Tally> {
    text.lines().rev().find_map(|line| {
        let counts = line.strip_prefix("LZ ")?.trim_end().strip_suffix('.')?;
        let counts: Vec<u64> = counts
            .split(' ')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        let [opens, failed, denied, let_through] = counts[..] else {
            return None;
        };
        Some(Tally {
            opens,
            failed,
            denied,
            let_through,
        })
    })
}

fn domain(kernel: &Path, initrd: &Path, serial: &Path) -> String {
    let (kernel, initrd, serial) = (kernel.display(), initrd.display(), serial.display());
    format!(
        "<domain type='qemu'><name>{NAME}</name>\
         <memory unit='MiB'>256</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel>\
         <initrd>{initrd}</initrd><cmdline>console=ttyS0 quiet no_timer_check</cmdline></os>\
         <features><acpi/></features><cpu mode='maximum'/>\
         <on_poweroff>destroy</on_poweroff><on_crash>destroy</on_crash>\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
         <interface type='bridge'><mac address='52:54:00:77:00:50'/><source bridge='br0'/>\
         <model type='virtio'/><rom enabled='no'/></interface>\
         <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\
         <channel type='unix'><target type='virtio' name='org.lazaret.0'/></channel>\
         <serial type='file'><source path='{serial}' append='on'/></serial>\
         <memballoon model='none'/></devices></domain>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_kernel_says_so() {
        assert!(is_broken(
            "LZ 1\n[   53.8] BUG: Bad page map in process x\r\n"
        ));
        assert!(!is_broken(
            "[    0.1] clocksource: tsc\nLZ 1 0 0 0.\necho BUG: \n"
        ));
    }

    #[test]
    fn only_whole_lines_count() {
        let tally = last_tally("LZ 10 0 1 0.\r\nLZ 20 0 1 0.\r\nLZ 30 0 1");
        let expected = Tally {
            opens: 20,
            failed: 0,
            denied: 1,
            let_through: 0,
        };
        assert_eq!(tally, Some(expected));
        assert_eq!(last_tally("kernel: LZ\nLZ 1 2\n"), None);
    }
}
