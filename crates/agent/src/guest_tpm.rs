//! This machine's TPM, where the controller asks for it when it enrols.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use link::enrol::GuestTpm;
use proto::v1;
use rustix::event::{PollFd, PollFlags, Timespec};
use tpm::{Tpm, TpmError, Transport};

/// The kernel's own resource manager, or else the bare device of an older kernel, which one process
/// may open at a time.
const DEVICES: [&str; 2] = ["/dev/tpmrm0", "/dev/tpm0"];
/// For all that is asked of it. A controller waits longer than this for both answers.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the kernel's driver has room for.
const RESPONSE_MAX_BYTES: usize = 4096;

/// The TPM, which is opened when it is asked for.
pub(crate) struct MachineTpm {
    path: &'static Path,
    open: Option<Tpm<'static>>,
}

impl MachineTpm {
    /// `None`: there is none.
    pub(crate) fn find() -> Option<Self> {
        let path = DEVICES.map(Path::new).into_iter().find(|it| it.exists())?;
        Some(Self { path, open: None })
    }

    fn try_show(&mut self) -> Result<v1::EnrolTpm, TpmError> {
        let device = Device::open(self.path, Instant::now() + PATIENCE)?;
        let shown = self.open.insert(Tpm::new(device)).show()?;
        Ok(v1::EnrolTpm {
            ek_certificate: shown.certificate,
            intermediates: shown.intermediates,
            key_name: shown.key_name.to_vec(),
            ..v1::EnrolTpm::default()
        })
    }

    fn try_answer(&mut self, challenge: &[u8], csr: &[u8]) -> Result<v1::EnrolTpm, TpmError> {
        let tpm = self.open.as_mut();
        let tpm = tpm.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        let secret = tpm.open(challenge)?;
        Ok(v1::EnrolTpm {
            proof: tpm::proof(&secret, csr).to_vec(),
            ..v1::EnrolTpm::default()
        })
    }
}

impl GuestTpm for MachineTpm {
    fn show(&mut self) -> v1::EnrolTpm {
        self.try_show().unwrap_or_else(failed)
    }

    fn answer(&mut self, challenge: &[u8], csr: &[u8]) -> v1::EnrolTpm {
        self.try_answer(challenge, csr).unwrap_or_else(failed)
    }
}

/// It is said to whoever is to approve this machine now.
fn failed(error: TpmError) -> v1::EnrolTpm {
    v1::EnrolTpm {
        failed: error.to_string(),
        ..v1::EnrolTpm::default()
    }
}

/// A TPM's device file.
struct Device {
    file: File,
    until: Instant,
}

impl Device {
    fn open(path: &Path, until: Instant) -> io::Result<Self> {
        // A command that is written goes on by itself, and its answer can be waited for.
        let flags = rustix::fs::OFlags::NONBLOCK.bits();
        let flags = i32::try_from(flags).map_err(io::Error::other)?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(flags);
        Ok(Self {
            file: file.open(path)?,
            until,
        })
    }
}

impl Transport for Device {
    /// Commands and responses are written and read as one.
    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        if self.file.write(command)? != command.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let left = self.until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut sources = [PollFd::new(&self.file, PollFlags::IN)];
        let answered =
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut sources, Some(&left)))?;
        if answered == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut response = vec![0; RESPONSE_MAX_BYTES];
        let read = self.file.read(&mut response)?;
        response.truncate(read);
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn device(until: Instant) -> (Device, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let file = File::from(OwnedFd::from(ours));
        (Device { file, until }, theirs)
    }

    #[test]
    fn a_device_answers_a_command_or_is_given_up() {
        let (mut patient, mut tpm) = device(Instant::now() + PATIENCE);
        tpm.write_all(b"answer").unwrap();
        assert_eq!(patient.exchange(b"command").unwrap(), b"answer");
        let mut command = [0; 7];
        tpm.read_exact(&mut command).unwrap();
        assert_eq!(&command, b"command");
        let (mut late, _tpm) = device(Instant::now());
        let silent = late.exchange(b"command").unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn what_cannot_be_used_says_so() {
        let mut tpm = MachineTpm {
            path: Path::new("/dev/null"),
            open: None,
        };
        // It answers nothing.
        let shown = tpm.show();
        assert!(shown.failed.contains("makes no sense"), "{shown:?}");
        assert!(shown.ek_certificate.is_empty());
        let answer = tpm.answer(b"challenge", b"csr");
        assert!(!answer.failed.is_empty() && answer.proof.is_empty());
        tpm.path = Path::new("/nonexistent");
        assert!(tpm.show().failed.contains("cannot be used"));
        assert!(!tpm.answer(b"challenge", b"csr").failed.is_empty());
    }
}
