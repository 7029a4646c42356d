//! The one thread that reads the kernel's events: it answers what needs no thought and hands on
//! the rest. It opens no file, resolves no name and never waits for anybody. A small file that is in
//! memory, and behind which no other event waits, it hashes itself.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use agent_core::Input;
use daemon::notify::Progress;
use fanotify::filesystem::FilesystemKind;
use fanotify::limits::Reserve;
use fanotify::{
    Answer, CloseEvent, Event, EventBuffer, FileIdentity, FileKind, Group, OpenKind,
    PermissionEvent, ReadError, lease,
};
use model::{AccessClass, UnscannedReason};
use supervisor::Inherited;

use super::Gate;
use super::content::{Content, key_of};
use super::look::{Look, Medium};
use super::workers::{AtOnce, is_for_at_once};
use crate::guard::scope::Scope;

/// Events taken in one read. Each costs a descriptor before it is looked at.
pub(crate) const BATCH: usize = 64;
/// File systems whose properties are remembered; a guest that mounts more has them asked again.
const MEDIA_MAX: usize = 256;

/// Reads events until the group is interrupted.
pub(crate) struct Reader<'a> {
    gate: &'a Gate,
    group: &'a Group,
    scope: &'a Scope,
    own_pid: i32,
    media: HashMap<u64, Medium>,
    /// Of what is mounted, when the media were last looked at.
    mount_changes_seen: u64,
    fine_kernel: bool,
    reserve: Reserve,
    shedding: bool,
    /// What small files are read into.
    buffer: Vec<u8>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        gate: &'a Gate,
        group: &'a Group,
        scope: &'a Scope,
        reserve: Reserve,
    ) -> Self {
        Self {
            gate,
            group,
            scope,
            own_pid: rustix::process::getpid().as_raw_nonzero().get(),
            media: HashMap::new(),
            mount_changes_seen: 0,
            fine_kernel: has_fine_stamps(),
            reserve,
            shedding: false,
            buffer: Vec::new(),
        }
    }

    /// # Errors
    /// The group can no longer be read; whoever waits is let go when it is dropped.
    pub(crate) fn run(&mut self, progress: &Arc<Progress>) -> Result<(), ReadError> {
        let mut buffer = EventBuffer::new(BATCH);
        loop {
            match self.group.read(&mut buffer) {
                Ok(mut events) => {
                    let _work = progress.work();
                    while let Some(event) = events.next() {
                        self.look_at(event, events.len() == 0);
                    }
                    self.recover();
                }
                Err(ReadError::Interrupted) => return Ok(()),
                Err(ReadError::Unopenable(_)) => self.gate.tally.unopenable.add(1),
                Err(ReadError::OutOfDescriptors(_)) => self.shed(),
                Err(error @ (ReadError::Failed(_) | ReadError::Malformed(_))) => {
                    return Err(error);
                }
            }
        }
    }

    /// What an earlier worker left: openers that wait, and files that nobody could judge.
    pub(crate) fn inherit(&mut self, left: Inherited) {
        let gate = self.gate;
        let (file, owed) = match left {
            Inherited::Opener(event) => return self.look_at(event, false),
            Inherited::File { file, owed } => (file, owed),
        };
        if let Some((pid, age)) = owed {
            let path = fanotify::path_of(&file).unwrap_or_default();
            gate.books.add(&path, UnscannedReason::Deadline);
            if let Ok(identity) = FileIdentity::of(file.as_fd()) {
                gate.suspect(pid, key_of(&identity), age);
            }
        }
        let is_owed = owed.is_some();
        let looked = catch_unwind(AssertUnwindSafe(|| self.judge(Arc::new(file), is_owed)));
        if looked.is_err() {
            gate.tally.panics.add(1);
        }
    }

    /// Judges a file that nobody waits for.
    fn judge(&mut self, file: Arc<OwnedFd>, owed: bool) {
        let unwritten = lease::is_unwritten(file.as_fd());
        let Ok(identity) = FileIdentity::of(file.as_fd()) else {
            return;
        };
        if identity.kind != FileKind::Regular || identity.size == 0 {
            return;
        }
        let class = if owed {
            AccessClass::Ledger
        } else {
            AccessClass::CloseWrite
        };
        if let Some(content) = self.content(file, &identity, class, 0) {
            let writer_free = unwritten && content.medium.cacheable;
            self.gate.take_in(content, writer_free);
        }
    }

    /// A panic costs one event, which its drop answers. Behind the last nobody waits.
    fn look_at(&mut self, event: Event, is_last: bool) {
        let gate = self.gate;
        let looked = catch_unwind(AssertUnwindSafe(|| match event {
            Event::Permission(event) => self.opening(event, is_last),
            Event::CloseWrite(event) => self.closed(event),
            Event::Overflow => self.overflowed(),
        }));
        if looked.is_err() {
            gate.tally.panics.add(1);
        }
    }

    fn opening(&mut self, event: PermissionEvent, is_last: bool) {
        let tally = &self.gate.tally;
        let class = match event.kind {
            OpenKind::Open => AccessClass::Open,
            OpenKind::OpenExec => AccessClass::Exec,
        };
        match class {
            AccessClass::Exec => tally.events_exec.add(1),
            _ => tally.events_open.add(1),
        }
        if self.scope.passes_process(event.pid) {
            tally.passed_process.add(1);
            return pass(event);
        }
        if self.shedding {
            let reason = UnscannedReason::Overloaded;
            return self.gate.answer_directly(event, reason);
        }
        let Ok(look) = Look::at(&event.file()) else {
            let reason = UnscannedReason::ReadFailed;
            return self.gate.answer_directly(event, reason);
        };
        // What is not hashed at once is let go first: who is answered may want to write.
        let (unwritten, identity) = (look.is_unwritten(), look.identity);
        let look = (is_last && is_for_at_once(&identity)).then_some(look);
        if identity.kind != FileKind::Regular {
            tally.passed_kind.add(1);
            return pass(event);
        }
        if identity.size == 0 {
            tally.passed_empty.add(1);
            return pass(event);
        }
        let content = self.content(event.file(), &identity, class, event.pid);
        let Some(content) = content else {
            self.gate.tally.passed_path.add(1);
            drop(look);
            return pass(event);
        };
        let writer_free = unwritten && content.medium.cacheable;
        let buffer = &mut self.buffer;
        let at_once = look.map(|look| AtOnce { buffer, look });
        self.gate.take_opener(event, content, writer_free, at_once);
    }

    fn closed(&mut self, event: CloseEvent) {
        self.gate.tally.events_close.add(1);
        let pid = event.pid;
        let unwritten = lease::is_unwritten(event.fd());
        let Ok(identity) = event.identity() else {
            // Which file it was cannot be told.
            return self.gate.input(Input::EventsLost);
        };
        if identity.kind != FileKind::Regular {
            return;
        }
        let node = key_of(&identity).node;
        self.gate.input(Input::Written { node });
        let seen = pid != self.own_pid && !self.scope.passes_process(pid);
        if !seen || identity.size == 0 || !self.gate.scans_on_close() || self.shedding {
            return;
        }
        let file = Arc::new(event.into_file());
        // Nobody waits, so nobody is named as the opener.
        let content = self.content(file, &identity, AccessClass::CloseWrite, 0);
        if let Some(content) = content {
            let writer_free = unwritten && content.medium.cacheable;
            self.gate.take_in(content, writer_free);
        }
    }

    /// `None`: its path is not guarded.
    fn content(
        &mut self,
        file: Arc<OwnedFd>,
        identity: &FileIdentity,
        class: AccessClass,
        pid: i32,
    ) -> Option<Content> {
        let medium = self.medium(identity.dev, &file);
        let mut content = Content::new(file, identity, class, pid);
        content.medium = medium;
        if !self.scope.is_everything() && !self.scope.holds(content.path()) {
            return None;
        }
        if self.gate.is_context_sensitive() {
            content.context_hash = content.hash_context();
        }
        Some(content)
    }

    fn medium(&mut self, dev: u64, file: &OwnedFd) -> Medium {
        let mount_changes = self.gate.mount_changes();
        if mount_changes != self.mount_changes_seen {
            self.mount_changes_seen = mount_changes;
            self.media.clear();
        }
        if let Some(medium) = self.media.get(&dev) {
            return *medium;
        }
        if self.media.len() >= MEDIA_MAX {
            self.media.clear();
        }
        let by_kind = || {
            let kind = FilesystemKind::of(file).unwrap_or(FilesystemKind::Unknown);
            Medium {
                cacheable: kind.verdicts_may_be_cached(),
                fine_stamps: self.fine_kernel && stamps_finely(file),
                stands: false,
            }
        };
        let medium = self.gate.medium_of(dev).unwrap_or_else(by_kind);
        self.media.insert(dev, medium);
        medium
    }

    fn overflowed(&mut self) {
        let gate = self.gate;
        gate.tally.events_overflow.add(1);
        gate.input(Input::EventsLost);
        gate.books.overflowed();
        gate.send_alert("queue_overflow", "the kernel let opens pass unseen", b"");
        if let Some(suppressed) = gate.lines.lost.allow(Instant::now()) {
            tracing::warn!(suppressed, "event queue overflow: opens passed unseen");
        }
    }

    /// No descriptor for the next event: everything is answered by policy until there are some.
    fn shed(&mut self) {
        self.gate.tally.descriptors_exhausted.add(1);
        self.gate.books.overflowed();
        self.reserve.release();
        self.gate.input(Input::DescriptorsScarce);
        self.shedding = true;
        if let Some(suppressed) = self.gate.lines.lost.allow(Instant::now()) {
            tracing::error!(
                suppressed,
                "out of file descriptors: the kernel denied an open"
            );
        }
    }

    fn recover(&mut self) {
        if self.shedding && self.reserve.retake().is_ok() {
            self.shedding = false;
        }
    }
}

fn pass(event: PermissionEvent) {
    // An error means that nobody waits any more.
    let _ = event.answer(Answer::Allow);
}

/// Since 6.13 some file systems stamp so finely that any two changes differ.
fn has_fine_stamps() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    version_of(&release).is_some_and(|version| version >= (6, 13))
}

fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Those with multigrain time stamps: ext4, xfs, btrfs, tmpfs.
fn stamps_finely(file: &OwnedFd) -> bool {
    const MULTIGRAIN: [u32; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994];
    let magic = rustix::fs::fstatfs(file.as_fd()).map(|stat| stat.f_type as u32);
    magic.is_ok_and(|magic| MULTIGRAIN.contains(&magic))
}

#[cfg(test)]
mod tests {
    use super::version_of;

    #[test]
    fn kernel_versions() {
        assert_eq!(version_of("6.18.44-fc-v769"), Some((6, 18)));
        assert_eq!(version_of("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version_of("strange"), None);
    }
}
