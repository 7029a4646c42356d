//! Walking trees: every file once, in an order that stays the same, without following symbolic
//! links, with as much memory for millions of files as for a few.
//!
//! In each directory names go up in byte order, and a directory's content comes where its name is.
//! So a path says exactly what came before it: that is the position of a resumed scan.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::directory::{Batch, NAMES_MAX};
use super::exclude::Glob;

/// Deepest nesting that is walked; what lies deeper is reported as an error.
pub(crate) const DEPTH_MAX: usize = 4096;
/// Most names held for all directories on the way down; beyond that they are read again.
const HELD_NAMES_MAX: usize = 4 * NAMES_MAX;

/// What to walk.
#[derive(Debug, Clone, Default)]
pub(crate) struct WalkOptions {
    /// Files or directories, absolute and free of symbolic links.
    pub(crate) roots: Vec<PathBuf>,
    /// Paths to leave out, with all below them.
    pub(crate) excludes: Vec<Glob>,
    /// Stay on each root's file system.
    pub(crate) one_file_system: bool,
    /// Directories never entered, by (device, inode): the quarantine.
    pub(crate) never: Vec<FileId>,
}

/// Device and inode.
pub(crate) type FileId = (u64, u64);

/// How far a walk has come: everything up to and with this path is done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Position {
    /// Index of the root.
    pub(crate) root: usize,
    /// The path within it; empty where that is the root itself.
    pub(crate) path: PathBuf,
}

/// Something on the way.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Met {
    /// A regular file; [`Walk::open`] opens it.
    File,
    /// Not looked at, for this reason.
    Skipped(Skip),
    /// Cannot be looked at.
    Failed(Errno),
    /// A directory deeper than [`DEPTH_MAX`].
    TooDeep,
}

/// Why something is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skip {
    Excluded,
    Symlink,
    /// A device, a FIFO or a socket.
    Special,
    /// Another file system, with `one_file_system`.
    OtherFileSystem,
    /// procfs, sysfs and the like: no files but the kernel's views of itself.
    KernelFileSystem,
    /// The quarantine, or a directory that contains itself.
    Never,
}

/// A directory on the way down to the current one.
struct Frame {
    id: FileId,
    batch: Batch,
}

/// A walk under way.
pub(crate) struct Walk {
    options: WalkOptions,
    /// Index of the root after the current one.
    next_root: usize,
    /// From the root down to the current directory.
    frames: Vec<Frame>,
    /// The current directory; `None` where it cannot be reached (any more).
    dir: Option<OwnedFd>,
    dir_path: PathBuf,
    /// What was met last, in the current directory; empty: the directory itself.
    met: OsString,
    resume: Option<Position>,
    names_max: usize,
}

impl Walk {
    /// Starts behind that position.
    pub(crate) fn new(options: WalkOptions, after: Option<Position>) -> Self {
        Self {
            next_root: after.as_ref().map_or(0, |position| position.root),
            options,
            frames: Vec::new(),
            dir: None,
            dir_path: PathBuf::new(),
            met: OsString::new(),
            resume: after,
            names_max: NAMES_MAX,
        }
    }

    /// The path of what was met last.
    pub(crate) fn path(&self) -> PathBuf {
        if self.met.is_empty() {
            self.dir_path.clone()
        } else {
            self.dir_path.join(&self.met)
        }
    }

    /// The position of what was met last.
    pub(crate) fn position(&self) -> Position {
        let root = self.next_root.saturating_sub(1);
        let path = self.path();
        let within = self
            .options
            .roots
            .get(root)
            .map(|root| path.strip_prefix(root));
        Position {
            root,
            path: within
                .and_then(Result::ok)
                .unwrap_or(Path::new(""))
                .to_owned(),
        }
    }

    /// Opens the file met last, for reading and without moving its access time; `None`: it is a
    /// regular file no more.
    pub(crate) fn open(&self) -> Result<Option<(File, Stat)>, Errno> {
        let dir = self.dir.as_ref().ok_or(Errno::NOENT)?;
        // A FIFO that took the name meanwhile must not block.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = |flags| rustix::fs::openat(dir, &self.met, flags, Mode::empty());
        let fd = match open(flags | OFlags::NOATIME) {
            // Only owner and root may leave the access time alone.
            Err(Errno::PERM) => open(flags)?,
            Err(Errno::LOOP | Errno::NXIO) => return Ok(None),
            other => other?,
        };
        let stat = rustix::fs::fstat(&fd)?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(regular.then(|| (File::from(fd), stat)))
    }

    /// Bytes of the file met last; 0 where it cannot be told.
    pub(crate) fn size(&self) -> u64 {
        let stat = self
            .dir
            .as_ref()
            .map(|dir| rustix::fs::statat(dir, &self.met, AtFlags::SYMLINK_NOFOLLOW));
        match stat {
            Some(Ok(stat)) => u64::try_from(stat.st_size).unwrap_or(0),
            _ => 0,
        }
    }

    /// Goes on to the next thing; `None` after the last.
    pub(crate) fn next(&mut self) -> Option<Met> {
        loop {
            let Some(frame) = self.frames.last_mut() else {
                let root = self.options.roots.get(self.next_root)?.clone();
                self.next_root += 1;
                if let Some(met) = self.begin(&root) {
                    return Some(met);
                }
                continue;
            };
            let name = match &self.dir {
                Some(dir) => frame.batch.next(dir, self.names_max),
                None => Ok(None),
            };
            match name {
                Ok(Some(name)) => {
                    self.met = name.name;
                    if let Some(met) = self.look(name.kind) {
                        return Some(met);
                    }
                }
                Ok(None) => {
                    if let Err(error) = self.leave() {
                        return Some(Met::Failed(error));
                    }
                }
                Err(error) => {
                    frame.batch.abandon();
                    self.met.clear();
                    return Some(Met::Failed(error));
                }
            }
        }
    }

    /// Starts with a root; `None`: it is a directory, and was entered.
    fn begin(&mut self, root: &Path) -> Option<Met> {
        let resume = self.resume.take().map(|position| position.path);
        if resume
            .as_ref()
            .is_some_and(|path| path.as_os_str().is_empty())
        {
            return None;
        }
        let (parent, name) = match (root.parent(), root.file_name()) {
            (Some(parent), Some(name)) => (parent, name),
            _ => (root, OsStr::new(".")),
        };
        self.dir_path = parent.to_owned();
        self.met = name.to_owned();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(parent, flags, Mode::empty()) {
            Ok(dir) => self.dir = Some(dir),
            Err(error) => return Some(Met::Failed(error)),
        }
        let Some(resume) = resume else {
            return self.look(FileType::Unknown);
        };
        // Down again along the position, each directory behind the name that was done or begun.
        for component in resume.iter() {
            if let Some(met) = self.enter(Some(component.to_owned())) {
                // A directory on the way is gone; what comes after it is not. The root itself is
                // the only one whose absence must be told.
                return self.frames.is_empty().then_some(met);
            }
            self.met = component.to_owned();
        }
        None
    }

    /// What the name met last stands for; `None`: a directory, and it was entered.
    fn look(&mut self, kind: FileType) -> Option<Met> {
        if self.is_excluded() {
            return Some(Met::Skipped(Skip::Excluded));
        }
        let kind = match (kind, &self.dir) {
            (FileType::Unknown, Some(dir)) => {
                match rustix::fs::statat(dir, &self.met, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(error) => return Some(Met::Failed(error)),
                }
            }
            (kind, _) => kind,
        };
        match kind {
            FileType::Directory => self.enter(None),
            FileType::RegularFile => Some(Met::File),
            FileType::Symlink => Some(Met::Skipped(Skip::Symlink)),
            _ => Some(Met::Skipped(Skip::Special)),
        }
    }

    fn is_excluded(&self) -> bool {
        if self.options.excludes.is_empty() {
            return false;
        }
        let path = self.path();
        let path = path.as_os_str().as_bytes();
        self.options.excludes.iter().any(|glob| glob.matches(path))
    }

    /// Enters the directory met last, behind that name; `None`: done.
    fn enter(&mut self, after: Option<OsString>) -> Option<Met> {
        if self.frames.len() >= DEPTH_MAX {
            return Some(Met::TooDeep);
        }
        let dir = self.dir.as_ref()?;
        let (dir, id) = match open_directory(dir, &self.met) {
            Ok(opened) => opened,
            Err(error) => return Some(Met::Failed(error)),
        };
        let never = self.options.never.contains(&id);
        if never || self.frames.iter().any(|frame| frame.id == id) {
            return Some(Met::Skipped(Skip::Never));
        }
        let above = self.frames.last().map(|frame| frame.id.0);
        if above != Some(id.0) {
            if self.options.one_file_system && above.is_some() {
                return Some(Met::Skipped(Skip::OtherFileSystem));
            }
            if is_kernel_file_system(&dir) {
                return Some(Met::Skipped(Skip::KernelFileSystem));
            }
        }
        let held: usize = self.frames.iter().map(|frame| frame.batch.len()).sum();
        if held > HELD_NAMES_MAX {
            self.frames
                .iter_mut()
                .for_each(|frame| frame.batch.forget());
        }
        self.frames.push(Frame {
            id,
            batch: Batch::after(after),
        });
        self.dir = Some(dir);
        if self.met != "." {
            self.dir_path.push(&self.met);
        }
        self.met.clear();
        None
    }

    /// Goes up to the directory above. Fails, having gone up all the same, where that is not the
    /// one that we came from; what is left in it is then not walked.
    fn leave(&mut self) -> Result<(), Errno> {
        self.frames.pop();
        let dir = self.dir.take();
        let Some(above) = self.frames.last() else {
            return Ok(());
        };
        self.dir_path.pop();
        self.met.clear();
        let through_parent = dir.map(|dir| open_directory(&dir, OsStr::new("..")));
        if let Some(Ok((dir, id))) = through_parent
            && id == above.id
        {
            self.dir = Some(dir);
            return Ok(());
        }
        // Moved away while we were in it; the directory above may still be where it was.
        let (dir, id) = open_directory(rustix::fs::CWD, self.dir_path.as_os_str())?;
        if id != above.id {
            return Err(Errno::STALE);
        }
        self.dir = Some(dir);
        Ok(())
    }
}

fn open_directory(
    parent: impl std::os::fd::AsFd,
    name: &OsStr,
) -> Result<(OwnedFd, FileId), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&dir)?;
    Ok((dir, (stat.st_dev, stat.st_ino)))
}

/// File systems whose files are made up by the kernel as they are read, by their magic numbers in
/// linux/magic.h.
fn is_kernel_file_system(dir: &OwnedFd) -> bool {
    const MAGICS: [i64; 13] = [
        0x9fa0,      // proc
        0x6265_6572, // sysfs
        0x6367_7270, // cgroup2
        0x0027_e0eb, // cgroup
        0x6462_6720, // debugfs
        0x7472_6163, // tracefs
        0x1cd1,      // devpts
        0x7363_6673, // securityfs
        0xcafe_4a11, // bpf
        0x6165_676c, // pstore
        0x6265_6570, // configfs
        0x1980_0202, // mqueue
        0xde5e_81e4, // efivarfs
    ];
    let magic = rustix::fs::fstatfs(dir).map(|stat| stat.f_type & 0xffff_ffff);
    magic.is_ok_and(|magic| MAGICS.contains(&magic))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn options(root: &Path) -> WalkOptions {
        WalkOptions {
            roots: vec![root.to_owned()],
            ..WalkOptions::default()
        }
    }

    /// The files that a walk meets, without the root's path.
    fn files(mut walk: Walk, root: &Path) -> Vec<String> {
        let mut files = Vec::new();
        while let Some(met) = walk.next() {
            if met == Met::File {
                let path = walk.path();
                files.push(
                    path.strip_prefix(root)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned(),
                );
            }
        }
        files
    }

    fn make(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
    }

    const TREE: [&str; 8] = ["a", "b/a", "b/b/a", "b/b/c", "b/c", "b.x", "c/z", "d"];

    /// In walking order: byte order of names, directories where their names are.
    fn sorted() -> Vec<String> {
        let mut sorted: Vec<_> = TREE.iter().map(|path| (*path).to_owned()).collect();
        sorted.sort_by(|a, b| Path::new(a).iter().cmp(Path::new(b).iter()));
        sorted
    }

    #[test]
    fn each_file_once_in_order() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &TREE);
        for names_max in [1, 2, NAMES_MAX] {
            let mut walk = Walk::new(options(dir.path()), None);
            walk.names_max = names_max;
            assert_eq!(files(walk, dir.path()), sorted());
        }
    }

    #[test]
    fn resumed_at_every_place() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &TREE);
        let all = sorted();
        let mut walk = Walk::new(options(dir.path()), None);
        let mut met = 0;
        while walk.next().is_some() {
            met += 1;
            let rest = Walk::new(options(dir.path()), Some(walk.position()));
            assert_eq!(
                files(rest, dir.path()),
                all[met..],
                "after {:?}",
                walk.path()
            );
        }
        assert_eq!(met, all.len());
    }

    #[test]
    fn resumed_though_the_place_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &TREE);
        let position = Position {
            root: 0,
            path: "b/b/a".into(),
        };
        fs::remove_dir_all(dir.path().join("b/b")).unwrap();
        let rest = || {
            files(
                Walk::new(options(dir.path()), Some(position.clone())),
                dir.path(),
            )
        };
        assert_eq!(rest(), ["b/c", "b.x", "c/z", "d"]);
        fs::remove_dir_all(dir.path().join("b")).unwrap();
        assert_eq!(rest(), ["b.x", "c/z", "d"]);
    }

    #[test]
    fn roots_of_all_kinds() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &TREE);
        let roots: Vec<_> = ["a", "nothing", "c", "d"]
            .map(|name| dir.path().join(name))
            .into();
        let options = WalkOptions {
            roots,
            ..WalkOptions::default()
        };
        let mut walk = Walk::new(options.clone(), None);
        let mut met = Vec::new();
        while let Some(what) = walk.next() {
            met.push((what, walk.position()));
        }
        let what: Vec<_> = met.iter().map(|(what, _)| what).collect();
        let missing = Met::Failed(Errno::NOENT);
        assert_eq!(what, [&Met::File, &missing, &Met::File, &Met::File]);
        for (done, (_, position)) in met.iter().enumerate() {
            let mut rest = Walk::new(options.clone(), Some(position.clone()));
            let mut left = 0;
            while rest.next().is_some() {
                left += 1;
            }
            assert_eq!(left, met.len() - done - 1, "{position:?}");
        }
    }

    #[test]
    fn what_is_not_walked() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &["file", "tmp/x", "vault/item", "sub/tmp/y"]);
        symlink("file", dir.path().join("link")).unwrap();
        symlink("sub", dir.path().join("sublink")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let (_, vault) =
            open_directory(rustix::fs::CWD, dir.path().join("vault").as_os_str()).unwrap();
        let mut walk = Walk::new(
            WalkOptions {
                excludes: vec!["tmp".parse().unwrap()],
                never: vec![vault],
                ..options(dir.path())
            },
            None,
        );
        let mut met = Vec::new();
        while let Some(what) = walk.next() {
            let name = walk.path().strip_prefix(dir.path()).unwrap().to_owned();
            met.push((name.into_os_string().into_string().unwrap(), what));
        }
        let expected = [
            ("file", Met::File),
            ("link", Met::Skipped(Skip::Symlink)),
            ("socket", Met::Skipped(Skip::Special)),
            ("sub/tmp", Met::Skipped(Skip::Excluded)),
            ("sublink", Met::Skipped(Skip::Symlink)),
            ("tmp", Met::Skipped(Skip::Excluded)),
            ("vault", Met::Skipped(Skip::Never)),
        ];
        assert_eq!(met, expected.map(|(name, what)| (name.to_owned(), what)));
    }

    #[test]
    fn kernel_file_systems() {
        let mut walk = Walk::new(options(Path::new("/proc")), None);
        assert_eq!(walk.next(), Some(Met::Skipped(Skip::KernelFileSystem)));
        assert_eq!(walk.next(), None);
    }

    #[test]
    fn deep_nesting_ends_in_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut parent: OwnedFd = File::open(dir.path()).unwrap().into();
        for _ in 0..DEPTH_MAX + 5 {
            rustix::fs::mkdirat(&parent, "d", Mode::RWXU).unwrap();
            parent = open_directory(&parent, OsStr::new("d")).unwrap().0;
        }
        make(dir.path(), &["e"]);
        let mut walk = Walk::new(options(dir.path()), None);
        assert_eq!(walk.next(), Some(Met::TooDeep));
        // All the way up again, past the longest path that a name may have.
        assert_eq!(walk.next(), Some(Met::File));
        assert_eq!(walk.path(), dir.path().join("e"));
        assert_eq!(walk.next(), None);
        // TempDir would open as many directories at once.
        let removed = std::process::Command::new("rm")
            .arg("-rf")
            .arg(dir.path())
            .status();
        assert!(removed.unwrap().success());
    }

    #[test]
    fn a_directory_moved_away_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &["a/b/1", "a/b/2", "a/c", "z", "other/x"]);
        let mut walk = Walk::new(options(dir.path()), None);
        assert_eq!(walk.next(), Some(Met::File));
        fs::rename(dir.path().join("a/b"), dir.path().join("other/b")).unwrap();
        let rest = files(walk, dir.path());
        // Seen through the directory that is still open, then on where the walk came from.
        assert_eq!(
            rest,
            ["a/b/2", "a/c", "other/b/1", "other/b/2", "other/x", "z"]
        );
    }
}
