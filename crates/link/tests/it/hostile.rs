//! Peers that send junk, open connections and leave them, or break the rules.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use link::Priority;
use link::server::{self, RecvError};
use proto::v1;
use proto::v1::envelope::Body;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::rig::{Agent, Fleet, PATIENCE, blocking, check, envelope, eventually, reply, welcome};

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A guest with a right certificate and wrong manners.
fn raw_guest(tls: Arc<rustls::ClientConfig>, address: SocketAddr) -> Stream {
    let name = ServerName::try_from(pki::APPLIANCE_NAME).unwrap();
    let connection = ClientConnection::new(tls, name).unwrap();
    let tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    StreamOwned::new(connection, tcp)
}

fn say(stream: &mut Stream, envelope: &v1::Envelope) {
    stream.write_all(&proto::encode(envelope).unwrap()).unwrap();
}

fn hello(version_min: u32, version_max: u32) -> v1::Envelope {
    let hello = v1::Hello {
        version_min,
        version_max,
        ..v1::Hello::default()
    };
    envelope(0, Body::Hello(hello))
}

fn hear(stream: &mut Stream) -> v1::Envelope {
    let mut plain = BytesMut::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(body) = proto::split(&mut plain).unwrap() {
            return proto::decode(body).unwrap();
        }
        let read = stream.read(&mut buffer).unwrap();
        assert_ne!(read, 0, "ended without a word");
        plain.extend_from_slice(&buffer[..read]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_instead_of_tls_hurts_nobody() {
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let address = listener.local_addr();
    blocking(move || {
        for junk in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0xff; 5000],
            &[0x16, 3, 1, 0xff, 0xff],
        ] {
            let mut tcp = TcpStream::connect(address).unwrap();
            // The appliance may have closed it before all is written.
            let _ = tcp.write_all(junk);
            let _ = tcp.shutdown(std::net::Shutdown::Write);
        }
    })
    .await;
    eventually("all failed", || listener.stats().handshakes_failed == 3).await;
    let agent = Agent::start(fleet.config(&[address]));
    let _conn = listener.accept().await.welcome(welcome());
    agent.up();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_nobody_speaks_is_refused_with_the_reason() {
    let fleet = Fleet::new();
    let listener = fleet.listener(server::Limits::default()).await;
    let (tls, address) = (fleet.client_tls(), listener.local_addr());
    let answer = blocking(move || {
        let mut guest = raw_guest(tls, address);
        say(&mut guest, &hello(8, 9));
        hear(&mut guest)
    })
    .await;
    let Some(Body::Refused(refused)) = answer.body else {
        panic!("{answer:?}");
    };
    assert!(refused.reason.contains("8 to 9"), "{}", refused.reason);
    assert_eq!(listener.stats().accepted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_frame_that_is_no_hello_or_too_long_is_not_let_in() {
    let fleet = Fleet::new();
    let listener = fleet.listener(server::Limits::default()).await;
    let (tls, address) = (fleet.client_tls(), listener.local_addr());
    blocking(move || {
        let mut guest = raw_guest(Arc::clone(&tls), address);
        say(&mut guest, &check(1, None));
        let mut guest = raw_guest(tls, address);
        say(&mut guest, &check(1, Some(vec![0; 100_000])));
    })
    .await;
    eventually("both failed", || listener.stats().handshakes_failed == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_rules_end_the_session_with_the_reason() {
    let fleet = Fleet::new();
    let mut listener = fleet.listener(server::Limits::default()).await;
    let address = listener.local_addr();
    let junk_frame = [0, 0, 0, 2, 0xff, 0xff].to_vec();
    let long_frame = [0xff; 8].to_vec();
    let twice = [check(1, None), check(1, None)];
    let twice = twice
        .iter()
        .flat_map(|e| proto::encode(e).unwrap())
        .collect();
    let even = proto::encode(&check(2, None)).unwrap().to_vec();
    for (bytes, expected) in [
        (junk_frame, "decode"),
        (long_frame, "at most"),
        (twice, "in use"),
        (even, "odd"),
    ] {
        let tls = fleet.client_tls();
        let guest = tokio::task::spawn_blocking(move || {
            let mut guest = raw_guest(tls, address);
            say(&mut guest, &hello(1, 1));
            hear(&mut guest);
            guest.write_all(&bytes).unwrap();
            hear(&mut guest)
        });
        let mut conn = listener.accept().await.welcome(welcome());
        let violation = loop {
            match conn.recv().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("closed in good order"),
                Err(error) => break error,
            }
        };
        assert!(matches!(violation, RecvError::Violation(_)), "{violation}");
        let answer = guest.await.unwrap();
        let Some(Body::Refused(refused)) = answer.body else {
            panic!("{answer:?}");
        };
        assert!(refused.reason.contains(expected), "{}", refused.reason);
    }
    assert_eq!(listener.stats().violations, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_are_few_and_short_lived() {
    let fleet = Fleet::new();
    let limits = server::Limits {
        handshakes_per_address_max: 2,
        // Enough for all five to be there before the first is given up, on a busy machine.
        handshake_timeout: Duration::from_secs(3),
        ..server::Limits::default()
    };
    let mut listener = fleet.listener(limits).await;
    let address = listener.local_addr();
    let idle: Vec<_> = blocking(move || {
        let connect = |_| TcpStream::connect(address).unwrap();
        (0..5).map(connect).collect()
    })
    .await;
    eventually("three too many", || {
        listener.stats().over_address_limit == 3
    })
    .await;
    eventually("two timed out", || {
        listener.stats().handshakes_timed_out == 2
    })
    .await;
    drop(idle);
    let agent = Agent::start(fleet.config(&[address]));
    let _conn = listener.accept().await.welcome(welcome());
    agent.up();
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_without_reading_are_bounded() {
    let fleet = Fleet::new();
    let limits = server::Limits {
        queue_frames_max: 100,
        ..server::Limits::default()
    };
    let mut listener = fleet.listener(limits).await;
    let (tls, address) = (fleet.client_tls(), listener.local_addr());
    std::thread::spawn(move || {
        let mut guest = raw_guest(tls, address);
        say(&mut guest, &hello(1, 1));
        hear(&mut guest);
        let ping = proto::encode(&envelope(0, Body::Ping(v1::Ping { nonce: u64::MAX }))).unwrap();
        let many = ping.repeat(1000);
        // Until the appliance has had enough.
        while guest.write_all(&many).is_ok() {}
    });
    let mut conn = listener.accept().await.welcome(welcome());
    let ended = conn.recv().await.unwrap_err();
    assert!(matches!(ended, RecvError::Closed(_)), "{ended}");
    assert_eq!(listener.stats().slow_closed, 1);
}

/// Whoever still holds a sender (a scan that is under way) holds no place and no socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_left_leaves_its_place_whoever_still_owes_it_an_answer() {
    let fleet = Fleet::new();
    let limits = server::Limits {
        sessions_max: 1,
        ..server::Limits::default()
    };
    let mut listener = fleet.listener(limits).await;
    let agent = Agent::start(fleet.config(&[listener.local_addr()]));
    let mut owing = Vec::new();
    for _ in 0..3 {
        let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
        let conn = accepted.expect("no place is free").welcome(welcome());
        agent.up();
        owing.push(conn.sender());
        drop(conn);
        agent.down();
    }
    for sender in owing {
        let sent = sender.send(Priority::Open, reply(1));
        assert_eq!(sent, Err(server::SendError::Closed));
        assert!(sender.is_closed());
    }
}
