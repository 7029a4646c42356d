//! A wire between two network namespaces on which frames take their time: what the kernel's netem
//! does, for kernels that are built without it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::run;
use crate::tap::tap;

/// Frames on the way in one direction; of more, the newest are lost, as a switch loses them.
const QUEUE_LEN_MAX: usize = 8192;
/// Longest frame.
const FRAME_MAX_BYTES: usize = 65_536;
/// How often an idle wire looks whether it is taken away.
const GLANCE: Duration = Duration::from_millis(100);

/// An interface in each of two namespaces; what goes in at one comes out at the other, later. Dropped,
/// both are gone.
#[derive(Debug)]
pub struct SlowWire {
    delay_us: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl SlowWire {
    /// Makes the interfaces, named `[namespace, interface]`, and joins them. Each way takes
    /// `delay`; the interfaces are still down.
    ///
    /// # Errors
    /// Without root, iproute2 or /dev/net/tun.
    pub fn between(ends: [[&str; 2]; 2], delay: Duration) -> Result<Self> {
        let mut wire = Self {
            delay_us: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        wire.set_delay(delay);
        let end = |[netns, name]: [&str; 2]| -> Result<Arc<OwnedFd>> {
            // Names of the caller's are its namespaces' own: here, two tests may use one.
            static MADE: AtomicUsize = AtomicUsize::new(0);
            let number = MADE.fetch_add(1, Ordering::Relaxed);
            let own = format!("lzw{}x{number}", std::process::id());
            let device = tap(&own)?;
            let args = ["link", "set", &own, "netns", netns, "name", name];
            run(Command::new("ip").args(args))?;
            Ok(Arc::new(device))
        };
        let ends = [end(ends[0])?, end(ends[1])?];
        for way in [[0, 1], [1, 0]] {
            let [from, to] = way.map(|end| Arc::clone(&ends[end]));
            let (delay_us, stop) = (Arc::clone(&wire.delay_us), Arc::clone(&wire.stop));
            let carry = move || carry(&from, &to, &delay_us, &stop);
            wire.threads.push(thread::spawn(carry));
        }
        Ok(wire)
    }

    /// What comes in from now on takes so long.
    pub fn set_delay(&self, delay: Duration) {
        let delay_us = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.delay_us.store(delay_us, Ordering::Relaxed);
    }
}

impl Drop for SlowWire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("a slow wire: {error}"),
                Err(_) => eprintln!("a slow wire panicked"),
            }
        }
    }
}

/// One direction, until told to stop.
fn carry(from: &OwnedFd, to: &OwnedFd, delay_us: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    let mut on_the_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; FRAME_MAX_BYTES];
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        while let Some((_, frame)) = on_the_way.pop_front_if(|(due, _)| *due <= now) {
            // An interface that is down loses what comes.
            let _lost = rustix::io::write(to, &frame);
        }
        let next = on_the_way.front().map(|(due, _)| *due - now);
        if !has_frame(from, next.unwrap_or(GLANCE).min(GLANCE))? {
            continue;
        }
        let Ok(length) = rustix::io::read(from, &mut buffer) else {
            continue;
        };
        if on_the_way.len() < QUEUE_LEN_MAX {
            let delay = Duration::from_micros(delay_us.load(Ordering::Relaxed));
            on_the_way.push_back((Instant::now() + delay, buffer[..length].to_vec()));
        }
    }
    Ok(())
}

/// Waits for a frame.
fn has_frame(from: &OwnedFd, wait: Duration) -> io::Result<bool> {
    let wait = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(wait.subsec_nanos()),
    };
    let mut fds = [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)];
    match poll(&mut fds, Some(&wait)) {
        Ok(_) => Ok(fds[0].revents().contains(PollFlags::IN)),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
