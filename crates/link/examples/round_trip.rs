//! What a round trip and a byte cost: both ends in one process, over loopback. State the pinning:
//! `taskset -c 0 target/release/examples/round_trip`.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use link::Priority;
use link::client::{Client, Config, Handler, Limits};
use link::server::{self, Listener};
use link::tls;
use model::{GuestId, Policy};
use pki::{Ca, GuestKey, LIFETIME, Validity};
use proto::v1;
use proto::v1::envelope::Body;

const WARM_UP: usize = 2_000;
const ROUNDS: usize = 20_000;
const UPLOAD_BYTES: usize = 512 << 20;

/// Tells the moment at which a frame reached the agent's handler.
struct Clock(Mutex<SyncSender<Instant>>);

impl Handler for Clock {
    fn up(&self, _: &v1::Welcome) {
        self.frame(v1::Envelope::default());
    }
    fn down(&self, _: &str) {}
    fn frame(&self, _: v1::Envelope) {
        let now = Instant::now();
        // The main thread may be done.
        let _ = self.0.lock().expect("no panic").send(now);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let ca = Ca::init(dir.path())?;
    let validity = Validity::starting(SystemTime::now(), LIFETIME);
    let anchors = [ca.cert().clone()];
    let server_tls = tls::server_config(&ca.issue_appliance("bench", validity)?, &anchors)?;
    let key = GuestKey::generate()?;
    let cert = ca.sign_guest(key.csr(), GuestId([1; 16]), validity)?;
    let client_tls = tls::client_config(&key.certified(vec![cert])?, &anchors)?;

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let address = "127.0.0.1:0".parse()?;
    let listener = Listener::bind(address, server_tls, server::Limits::default());
    let listener = runtime.block_on(listener)?;
    let appliances = vec![listener.local_addr().to_string()];
    runtime.spawn(serve(listener));

    let (tell, told) = sync_channel(16);
    let config = Config {
        appliances,
        epoch: 0,
        tls: client_tls,
        hello: v1::Hello::default(),
        seed: 1,
        limits: Limits::default(),
    };
    let client = Client::start(config, Arc::new(Clock(Mutex::new(tell))))?;
    told.recv()?;
    round_trips(&client, &told)?;
    upload(&client, &told)?;
    client.stop();
    Ok(())
}

fn round_trips(
    client: &Client,
    told: &Receiver<Instant>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut times = Vec::new();
    for round in 0..WARM_UP + ROUNDS {
        let id = client.next_request_id();
        let begin = Instant::now();
        client.send(Priority::Open, check(id, 0))?;
        let end = told.recv()?;
        if round >= WARM_UP {
            times.push(end - begin);
        }
    }
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 1000].as_nanos() / 100;
    let micros = |tenths: u128| format!("{}.{}", tenths / 10, tenths % 10);
    println!(
        "round trip of a check: p50 {} µs, p99 {} µs",
        micros(at(500)),
        micros(at(990))
    );
    Ok(())
}

fn upload(client: &Client, told: &Receiver<Instant>) -> Result<(), Box<dyn std::error::Error>> {
    let id = client.next_request_id();
    client.send(Priority::OnDemand, check(id, UPLOAD_BYTES as u64))?;
    told.recv()?;
    let content = Bytes::from(vec![7; 1 << 20]);
    let begin = Instant::now();
    let give_up = begin + Duration::from_secs(120);
    for offset in (0..UPLOAD_BYTES).step_by(content.len()) {
        let piece = content.clone();
        client.send_data(id, Priority::OnDemand, offset as u64, piece, give_up)?;
    }
    let end = Body::DataEnd(v1::DataEnd::default());
    client.send(Priority::OnDemand, envelope(id, end))?;
    let took = told.recv()? - begin;
    let rate = UPLOAD_BYTES as f64 / 1e6 / took.as_secs_f64();
    println!("upload: {rate:.0} MB/s");
    Ok(())
}

fn envelope(request_id: u64, body: Body) -> v1::Envelope {
    v1::Envelope {
        request_id,
        body: Some(body),
    }
}

fn check(request_id: u64, size: u64) -> v1::Envelope {
    let check = v1::Check {
        blake3: vec![3; 32],
        size,
        ..v1::Check::default()
    };
    envelope(request_id, Body::Check(check))
}

/// Answers at once; asks for the content where there is any.
async fn serve(mut listener: Listener) {
    let mut conn = listener.accept().await.welcome(v1::Welcome {
        generation: vec![0; 16],
        policy: Some(v1::Policy::from(&Policy::default())),
        in_flight_max: 256,
        ..v1::Welcome::default()
    });
    let sender = conn.sender();
    while let Ok(Some(asked)) = conn.recv().await {
        let id = asked.request_id;
        let answer = match asked.body {
            Some(Body::Check(check)) if check.size > 0 => Body::Need(v1::Need {
                credit_bytes: 1 << 20,
                ..v1::Need::default()
            }),
            Some(Body::Data(data)) => Body::Credit(v1::Credit {
                bytes: data.bytes.len() as u32,
            }),
            Some(Body::Check(_) | Body::DataEnd(_)) => Body::CheckReply(v1::CheckReply::default()),
            _ => continue,
        };
        if sender.send(Priority::Open, envelope(id, answer)).is_err() {
            return;
        }
    }
}
