//! The floor: a handler that says yes to everything. What it costs is the kernel's wake-up; a file
//! that was opened once before carries the verdict in the kernel, and costs what that does.

use std::path::Path;

use anyhow::Result;
use fanotify::standing::Breaks;
use fanotify::{Answer, Event, EventBuffer, Group, GroupOptions, MarkMask, limits};

/// Marks the file system and answers until the process is ended; `stand`: for good.
pub(crate) fn run(at: &Path, stand: bool) -> Result<()> {
    limits::raise_nofile()?;
    let group = Group::new(GroupOptions {
        default_answer: Answer::Allow,
    })?;
    group.mark_filesystem(at, MarkMask::ALL)?;
    let breaks = Breaks::here()?;
    let mut standing = Vec::new();
    let mut buffer = EventBuffer::new(64);
    loop {
        for event in group.read(&mut buffer)? {
            if let Event::Permission(event) = event {
                let file = event.file();
                event.answer(Answer::Allow)?;
                if stand {
                    standing.push(group.place(file, breaks.owner(), |_| true)?);
                }
            }
        }
    }
}
