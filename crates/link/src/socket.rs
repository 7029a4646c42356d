//! What both halves ask of the kernel for their connection.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Bytes that the kernel may hold unsent: an urgent frame waits behind no more than that.
const NOTSENT_LOWAT_BYTES: u32 = 64 * 1024;
/// Silence after which the kernel asks whether the other side's machine is still there, how often
/// it asks again, and after how many silences it gives the connection up: 30 s in all.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// Small frames leave at once, and the kernel looks after an idle connection without waking anybody.
pub(crate) fn set_up(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)
}
