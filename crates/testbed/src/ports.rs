//! Ports for daemons that cannot be told to choose one themselves.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

/// A free address of this machine alone, host:port.
///
/// # Errors
/// Where there is none.
pub fn free_address() -> Result<String> {
    Ok(format!("127.0.0.1:{}", free_port_on("127.0.0.1")?))
}

/// A TCP port on `address` that nobody uses now, and that this process has not given yet. It is below
/// those that the kernel gives to connections, so that none takes it before somebody listens there.
///
/// # Errors
/// The address is not this machine's, or every port is taken.
pub fn free_port_on(address: &str) -> Result<u16> {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(101);
    for _ in 0..COUNT {
        let number = start.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + number % COUNT)?;
        match TcpListener::bind((address, port)) {
            Ok(_) => return Ok(port),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("every port of {address} from {FIRST} on is taken")
}
