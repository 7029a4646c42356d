//! A directory with a file in it, and a vault beside it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use model::{Detection, Digest};
use quarantine::{ItemInfo, Limits, Listed, Steps, Vault};
use rustix::fs::XattrFlags;
use tempfile::TempDir;

pub(crate) struct Scene {
    dir: TempDir,
    pub(crate) content: Vec<u8>,
}

/// Everything about a file that a restore must bring back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Everything {
    content: Digest,
    uid: u32,
    gid: u32,
    mode: u32,
    /// Of the last write: reading the content for this moves the access time.
    mtime: (i64, i64),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A POSIX ACL as the kernel stores it: owner rwx, user 1234 r--, group r--, mask r--, others ---.
const ACL: &[u8] = &[
    2, 0, 0, 0, // version 2
    1, 0, 7, 0, 0xff, 0xff, 0xff, 0xff, // owner
    2, 0, 4, 0, 0xd2, 4, 0, 0, // user 1234
    4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, // group
    0x10, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, // mask
    0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, // others
];
/// cap_net_raw+ep, revision 2.
const CAPABILITY: &[u8] = &[
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

impl Scene {
    pub(crate) fn new(content: &[u8]) -> Self {
        let scene = Self {
            dir: tempfile::tempdir().unwrap(),
            content: content.to_vec(),
        };
        fs::create_dir(scene.home()).unwrap();
        fs::write(scene.file(), content).unwrap();
        scene
    }

    /// A file with everything on it that a file can have.
    pub(crate) fn ornate(content: &[u8]) -> Self {
        let scene = Self::new(content);
        let file = scene.file();
        chown(&file, Some(1234), Some(4321)).unwrap();
        let xattrs: [(&str, &[u8]); 5] = [
            ("user.note", b"bin\0ary"),
            ("user.empty", b""),
            ("trusted.lazaret", b"root's"),
            ("system.posix_acl_access", ACL),
            ("security.capability", CAPABILITY),
        ];
        for (name, value) in xattrs {
            rustix::fs::lsetxattr(&file, name, value, XattrFlags::empty()).unwrap();
        }
        let mut permissions = fs::metadata(&file).unwrap().permissions();
        permissions.set_mode(0o6740);
        fs::set_permissions(&file, permissions).unwrap();
        let mtime = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
        let atime = SystemTime::UNIX_EPOCH + Duration::new(1_100_000_000, 987_654_321);
        let times = fs::FileTimes::new().set_modified(mtime).set_accessed(atime);
        fs::File::open(&file).unwrap().set_times(times).unwrap();
        scene
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.home().join("file")
    }

    pub(crate) fn vault_dir(&self) -> PathBuf {
        self.dir.path().join("vault")
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.content)
    }

    pub(crate) fn vault(&self) -> Vault {
        Vault::open(&self.vault_dir(), limits()).unwrap()
    }

    pub(crate) fn vault_with(&self, steps: impl Steps + 'static) -> Vault {
        Vault::open_stepwise(&self.vault_dir(), limits(), Box::new(steps)).unwrap()
    }

    pub(crate) fn take(&self, vault: &Vault) -> Result<quarantine::Taken, quarantine::TakeError> {
        vault.take(&self.file(), self.digest(), &[eicar()], SystemTime::now())
    }

    /// Names in the guest's directory.
    pub(crate) fn names(&self) -> Vec<String> {
        names(&self.home())
    }

    /// Fails where the vault has anything under way.
    pub(crate) fn expect_nothing_under_way(&self) {
        for dir in ["incoming", "intents"] {
            let left = names(&self.vault_dir().join(dir));
            assert!(left.is_empty(), "left in {dir}: {left:?}");
        }
        let names = self.names();
        let ours = names.iter().find(|name| name.starts_with(".lazaret"));
        assert_eq!(ours, None);
    }
}

pub(crate) fn limits() -> Limits {
    Limits {
        free_bytes_min: 0,
        ..Limits::default()
    }
}

pub(crate) fn eicar() -> Detection {
    Detection {
        name: "Eicar".into(),
        engine: "yara".into(),
        path_inside: vec![b"a.zip".to_vec(), b"\xff\n".to_vec()],
    }
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| {
        String::from_utf8_lossy(entry.unwrap().file_name().as_bytes()).into_owned()
    };
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(name).collect();
    names.sort();
    names
}

/// The items of a vault; fails where one is damaged.
pub(crate) fn items(vault: &Vault) -> Vec<ItemInfo> {
    let intact = |listed| match listed {
        Listed::Item(info) => *info,
        Listed::Damaged { id, why } => panic!("item {id} is damaged: {why}"),
    };
    vault.list().unwrap().into_iter().map(intact).collect()
}

pub(crate) fn everything(path: &Path) -> Everything {
    let metadata = fs::symlink_metadata(path).unwrap();
    let mut list = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let mut xattrs = BTreeMap::new();
    for name in list[..len]
        .split(|byte| *byte == 0)
        .filter(|n| !n.is_empty())
    {
        let mut value = vec![0; 65536];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        xattrs.insert(name.to_vec(), value[..len].to_vec());
    }
    Everything {
        content: Digest::of(&fs::read(path).unwrap()),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mode: metadata.mode(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        xattrs,
    }
}
