//! A controller's enrolment that does what a test tells it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use link::tls;
use model::GuestId;
use pki::{Ca, JoinToken, LIFETIME, Validity};
use proto::v1;

use crate::puppet::{Fleet, PATIENCE};

/// What a guest is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Says {
    No,
    /// Ask again in a second.
    Wait,
    Yes {
        guest: GuestId,
        is_ephemeral: bool,
        /// How long the certificate is still good for.
        left: Duration,
    },
}

impl Says {
    pub(crate) fn yes(guest: GuestId) -> Self {
        Self::Yes {
            guest,
            is_ephemeral: false,
            left: LIFETIME,
        }
    }
}

struct Desk {
    ca: Arc<Ca>,
    appliance: String,
    says: Mutex<Says>,
    asked: Mutex<Vec<v1::EnrolRequest>>,
    changed: Condvar,
}

pub(crate) struct Office {
    pub(crate) address: SocketAddr,
    pub(crate) token: JoinToken,
    desk: Arc<Desk>,
}

impl Office {
    /// Opens one, whose guests are sent to this appliance. Its thread ends with the tests.
    pub(crate) fn open(fleet: &Fleet, appliance: &str, says: Says) -> Self {
        let validity = Validity::starting(SystemTime::now(), LIFETIME);
        let identity = fleet.ca.issue_appliance("office", validity).unwrap();
        let tls = tls::enrol_server_config(&identity).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let desk = Arc::new(Desk {
            ca: Arc::clone(&fleet.ca),
            appliance: appliance.to_owned(),
            says: Mutex::new(says),
            asked: Mutex::default(),
            changed: Condvar::new(),
        });
        let office = Self {
            address: listener.local_addr().unwrap(),
            token: JoinToken::generate(fleet.ca.fingerprint()).unwrap(),
            desk: Arc::clone(&desk),
        };
        std::thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                // Whoever goes away comes again.
                let _ = desk.serve(tcp, &tls);
            }
        });
        office
    }

    pub(crate) fn say(&self, says: Says) {
        *self.desk.says.lock().unwrap() = says;
    }

    pub(crate) fn asked(&self) -> Vec<v1::EnrolRequest> {
        self.desk.asked.lock().unwrap().clone()
    }

    /// Waits until it was asked so often.
    #[track_caller]
    pub(crate) fn wait(&self, times: usize) -> Vec<v1::EnrolRequest> {
        let give_up = Instant::now() + PATIENCE;
        let mut asked = self.desk.asked.lock().unwrap();
        while asked.len() < times {
            let left = give_up.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "asked {} times only", asked.len());
            asked = self.desk.changed.wait_timeout(asked, left).unwrap().0;
        }
        asked.clone()
    }
}

impl Desk {
    fn serve(&self, tcp: TcpStream, tls: &Arc<rustls::ServerConfig>) -> std::io::Result<()> {
        let connection = rustls::ServerConnection::new(Arc::clone(tls)).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, tcp);
        let mut plain = BytesMut::new();
        let mut buffer = [0; 4096];
        let request: v1::EnrolRequest = loop {
            if let Some(body) = proto::split(&mut plain).unwrap() {
                break proto::decode(body).unwrap();
            }
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            plain.extend_from_slice(&buffer[..read]);
        };
        let reply = self.reply(&request);
        // Before it is answered: whoever has the answer was seen to ask.
        self.asked.lock().unwrap().push(request);
        self.changed.notify_all();
        stream.write_all(&proto::encode(&reply).unwrap())?;
        stream.conn.send_close_notify();
        stream.flush()
    }

    fn reply(&self, request: &v1::EnrolRequest) -> v1::EnrolReply {
        match *self.says.lock().unwrap() {
            Says::No => v1::EnrolReply {
                refused: "no such token".to_owned(),
                ..v1::EnrolReply::default()
            },
            Says::Wait => v1::EnrolReply {
                pending_retry_s: 1,
                ..v1::EnrolReply::default()
            },
            Says::Yes {
                guest,
                is_ephemeral,
                left,
            } => {
                let validity = Validity {
                    not_before: SystemTime::now() + left - LIFETIME,
                    not_after: SystemTime::now() + left,
                };
                let cert = self.ca.sign_guest(&request.csr, guest, validity).unwrap();
                v1::EnrolReply {
                    chain: vec![cert.to_vec()],
                    trust_anchors: vec![self.ca.cert().to_vec()],
                    appliances: vec![self.appliance.clone()],
                    guest_id: guest.0.to_vec(),
                    ephemeral: is_ephemeral,
                    ..v1::EnrolReply::default()
                }
            }
        }
    }
}
