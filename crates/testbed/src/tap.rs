//! A network interface whose frames a process reads and writes. The crate's only unsafe code: the
//! kernel's one call for it has no safe form.
#![expect(unsafe_code, reason = "TUNSETIFF has no safe form")]

use std::fs::File;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use rustix::ioctl::{Setter, ioctl};

/// `TUNSETIFF` of linux/if_tun.h.
const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;
/// Frames of Ethernet, without a header of the driver's own.
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
/// Longest name of an interface, with its end.
const IFNAMSIZ: usize = 16;

/// `struct ifreq` of linux/if.h.
#[repr(C)]
struct Request {
    name: [u8; IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

/// Makes an interface in this network namespace; it goes away with the descriptor, to whatever
/// namespace it was moved.
///
/// # Errors
/// Without root, or where there is one of that name.
pub(crate) fn tap(name: &str) -> Result<OwnedFd> {
    ensure!(name.len() < IFNAMSIZ, "{name} is too long a name");
    let device = File::options().read(true).write(true).open("/dev/net/tun");
    let device = OwnedFd::from(device.context("/dev/net/tun")?);
    let mut request = Request {
        name: [0; IFNAMSIZ],
        flags: IFF_TAP | IFF_NO_PI,
        rest: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads a `struct ifreq`, of which `Request` has the size and the layout.
    let asked = unsafe { ioctl(&device, Setter::<TUNSETIFF, Request>::new(request)) };
    asked.with_context(|| format!("no interface {name}"))?;
    Ok(device)
}
