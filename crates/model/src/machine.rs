//! What tells a machine from a copy of it.

/// Network cards of a machine that are looked at.
pub const MACS_MAX: usize = 16;

/// Both are known and differ. What is not known tells nothing of whether two machines are one.
#[must_use]
pub fn differ<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one != other)
}

/// What a machine says that it is: evidence, never proof.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Machine {
    /// The generation id that the hypervisor changes when it copies or restores the machine
    /// (vmgenid). `None`: the hypervisor gives none.
    pub generation_id: Option<[u8; 16]>,
    /// SMBIOS system UUID. `None`: the firmware does not tell.
    pub system_uuid: Option<[u8; 16]>,
    /// MAC addresses of its network cards, rising, at most [`MACS_MAX`].
    pub macs: Vec<[u8; 6]>,
    /// The kernel's id of the present boot: a machine that restarts never comes back to an earlier
    /// one. `None`: unknown.
    pub boot_id: Option<[u8; 16]>,
}
