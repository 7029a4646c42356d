//! The file systems on which traps are tried.

use std::path::PathBuf;

use fanotify::MarkMask;

use crate::gate::Gate;
use crate::scratch::Scratch;

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
    Btrfs,
    Tmpfs,
    /// Files opened through it, its layers' file system guarded.
    Overlay,
    /// Served by a process.
    Fuse,
}

impl Kind {
    /// Those of the issue, all local.
    pub(crate) const LOCAL: [Self; 5] = [
        Self::Ext4,
        Self::Xfs,
        Self::Btrfs,
        Self::Tmpfs,
        Self::Overlay,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Tmpfs => "tmpfs",
            Self::Overlay => "overlay",
            Self::Fuse => "fuse",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        let all = Self::LOCAL.into_iter().chain([Self::Fuse]);
        { all }.find(|kind| kind.name() == name)
    }

    pub(crate) fn make(self) -> Ground {
        let (base, overlay) = match self {
            Self::Ext4 => (Scratch::ext4(), None),
            Self::Xfs => (Scratch::xfs(), None),
            Self::Btrfs => (Scratch::btrfs(), None),
            Self::Tmpfs => (Scratch::tmpfs(), None),
            Self::Overlay => {
                let layers = Scratch::ext4();
                let overlay = Scratch::overlay(&layers);
                (layers, Some(overlay))
            }
            Self::Fuse => (Scratch::unmounted(), None),
        };
        Ground { overlay, base }
    }
}

/// A file system of its own.
pub(crate) struct Ground {
    /// Unmounted first.
    overlay: Option<Scratch>,
    /// What is guarded.
    pub(crate) base: Scratch,
}

impl Ground {
    fn top(&self) -> &Scratch {
        self.overlay.as_ref().unwrap_or(&self.base)
    }

    /// Where files are opened.
    pub(crate) fn root(&self) -> PathBuf {
        self.top().root()
    }

    /// Writes a file, before anything is guarded.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        self.top().write(name, content)
    }

    /// Guards it; unanswered events are denied.
    pub(crate) fn guarded(&self) -> Gate {
        Gate::on(&self.base)
    }

    /// Adds to what is guarded.
    pub(crate) fn mark(&self, gate: &Gate, mask: MarkMask) {
        let marked = gate.group.mark_filesystem(&self.base.root(), mask);
        marked.expect("a mark");
    }
}
