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
/// What is sent and not acknowledged for so long is lost with the other side's machine: while something
/// is on its way the kernel asks nothing. So is what the other side has no room for.
const UNTAKEN_MAX: Duration = Duration::from_secs(30);

/// Small frames leave at once, and the kernel looks after an idle connection without waking anybody.
pub(crate) fn set_up(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNTAKEN_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sessions of one machine are a copy's after 75 s (decision 0020).
    #[test]
    fn a_dead_machine_is_noticed_well_before_its_next_session_is_doubted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = SockRef::from(&tcp);
        set_up(&socket).unwrap();
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        let asked =
            socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        let idle = socket.tcp_keepalive_time().unwrap() + asked;
        let busy = socket.tcp_user_timeout().unwrap();
        assert!(idle <= Duration::from_secs(30), "{idle:?}");
        assert_eq!(busy, Some(Duration::from_secs(30)));
    }
}
