//! Which file systems may be guarded, and where a verdict may be cached.

use std::io;
use std::os::fd::AsFd;

use crate::without::is_off;

/// What a file system means for the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilesystemKind {
    /// All writers are on this kernel and the lease test sees each of them.
    Local,
    /// Local as far as is known, but not on the list of those where the lease test is known to
    /// hold: guarded, verdicts not cached.
    Unknown,
    /// A file system over another (overlayfs, eCryptfs). Opening its file opens the one below.
    Stacked,
    /// Served by another machine, or shared with one: its writers are invisible.
    Network,
    /// Served by a process or a host (FUSE): an open asks that process.
    Fuse,
}

impl FilesystemKind {
    /// The kind of the file system that `fd` (an `O_PATH` one will do) is on.
    ///
    /// # Errors
    /// As `fstatfs`. It may wait for the server of a network or FUSE file system.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        // Magic numbers are 32 bits; the field is wider and sign-extended on some machines.
        let magic = rustix::fs::fstatfs(fd)?.f_type as u32;
        Ok(Self::from_magic(magic))
    }

    /// Whether it may be marked. On the others the reader itself would wait: for a guest's
    /// process, for a server, or for its own answer.
    #[must_use]
    pub fn may_be_guarded(self) -> bool {
        matches!(self, Self::Local | Self::Unknown)
            || self == Self::Stacked && is_off(12)
            || self == Self::Fuse && is_off(17)
    }

    /// Whether a verdict on an unwritten file (see [`crate::lease`]) stays true until the kernel
    /// says otherwise.
    ///
    /// Not so on stacked ones: a shared mapping made through overlayfs holds the *lower* file for
    /// writing, which a lease on the upper one does not see.
    #[must_use]
    pub fn verdicts_may_be_cached(self) -> bool {
        self == Self::Local
    }

    fn from_magic(magic: u32) -> Self {
        if LOCAL.contains(&magic) {
            Self::Local
        } else if STACKED.contains(&magic) {
            Self::Stacked
        } else if NETWORK.contains(&magic) {
            Self::Network
        } else if magic == FUSE {
            Self::Fuse
        } else {
            Self::Unknown
        }
    }
}

/// `FUSE_SUPER_MAGIC`: fuse, fuseblk and virtiofs.
const FUSE: u32 = 0x6573_5546;

const STACKED: [u32; 2] = [
    0x794c_7630, // overlayfs
    0xf15f,      // eCryptfs
];

const LOCAL: [u32; 14] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0xf2f5_2010, // f2fs
    0x3153_464a, // jfs
    0x4d44,      // vfat
    0x2011_bab0, // exfat
    0x7366_746e, // ntfs3
    0x9660,      // iso9660
    0x1501_3346, // udf
    0x7371_7368, // squashfs
    0xe0f5_e1e2, // erofs
];

const NETWORK: [u32; 14] = [
    0x6969,      // nfs
    0x517b,      // smbfs
    0xff53_4d42, // cifs
    0xfe53_4d42, // smb2, smb3
    0x0102_1997, // 9p
    0x00c3_6400, // ceph
    0x5346_414f, // afs (kafs)
    0x6b41_4653, // afs
    0x7375_7245, // coda
    0x0bd0_0bd0, // lustre
    0x0116_1970, // gfs2: a disk shared with other machines
    0x7461_636f, // ocfs2: the same
    0x786f_4256, // vboxsf: the host writes
    0xbacb_acbc, // vmhgfs: the host writes
];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(magic: i64, expected: FilesystemKind) {
        assert_eq!(FilesystemKind::from_magic(magic as u32), expected);
    }

    #[test]
    fn kinds_by_the_kernels_numbers() {
        check(libc::EXT4_SUPER_MAGIC, FilesystemKind::Local);
        check(libc::XFS_SUPER_MAGIC, FilesystemKind::Local);
        check(libc::BTRFS_SUPER_MAGIC, FilesystemKind::Local);
        check(libc::TMPFS_MAGIC, FilesystemKind::Local);
        check(libc::OVERLAYFS_SUPER_MAGIC, FilesystemKind::Stacked);
        check(libc::ECRYPTFS_SUPER_MAGIC, FilesystemKind::Stacked);
        check(libc::NFS_SUPER_MAGIC, FilesystemKind::Network);
        check(libc::SMB_SUPER_MAGIC, FilesystemKind::Network);
        check(libc::AFS_SUPER_MAGIC, FilesystemKind::Network);
        check(libc::CODA_SUPER_MAGIC, FilesystemKind::Network);
        check(libc::FUSE_SUPER_MAGIC, FilesystemKind::Fuse);
        check(libc::PROC_SUPER_MAGIC, FilesystemKind::Unknown);
    }

    #[test]
    fn only_local_ones_are_both_guarded_and_cached() {
        for (kind, guarded, cached) in [
            (FilesystemKind::Local, true, true),
            (FilesystemKind::Unknown, true, false),
            (FilesystemKind::Stacked, false, false),
            (FilesystemKind::Network, false, false),
            (FilesystemKind::Fuse, false, false),
        ] {
            assert_eq!(kind.may_be_guarded(), guarded, "{kind:?}");
            assert_eq!(kind.verdicts_may_be_cached(), cached, "{kind:?}");
        }
    }
}
