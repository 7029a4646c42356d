//! A server that speaks clamd's protocol and answers as the test wants.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// What it says.
#[derive(Clone)]
pub(crate) struct Script {
    /// To VERSION.
    pub(crate) version: String,
    /// To each FILDES but the first of a session, `#` being its number. Empty: nothing, for ever.
    pub(crate) answer: String,
}

pub(crate) struct FalseClamd {
    folder: tempfile::TempDir,
    pub(crate) script: Arc<Mutex<Script>>,
}

/// What an honest clamd says to the engine's self-test.
pub(crate) const LIMIT: &str = "#: fd[9]: Heuristics.Limits.Exceeded.MaxRecursion FOUND\0";

impl FalseClamd {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("opened");
        let path = folder.path().join("clamd.sock");
        let listener = UnixListener::bind(&path).expect("bound");
        let everyone = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(&path, everyone).expect("opened");
        let script = Arc::new(Mutex::new(Script {
            version: "ClamAV 1.0.0/1/today".to_owned(),
            answer: LIMIT.to_owned(),
        }));
        let shared = Arc::clone(&script);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let script = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &script));
            }
        });
        Self { folder, script }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("clamd.sock")
    }

    pub(crate) fn answer(&self, text: &str) {
        self.script.lock().expect("script").answer = text.to_owned();
    }
}

/// Plain reads drop the descriptors that come along, which is fine here.
fn serve(mut stream: UnixStream, script: &Mutex<Script>) {
    let mut pending = Vec::new();
    let mut files = 0;
    let mut buffer = [0; 256];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        pending.extend_from_slice(&buffer[..count]);
        while let Some(end) = pending.iter().position(|byte| *byte == 0) {
            let command: Vec<u8> = pending.drain(..=end).collect();
            let script = script.lock().expect("script").clone();
            let answer = match &command[..end] {
                b"zVERSION" => format!("{}\0", script.version),
                b"zFILDES" => {
                    files += 1;
                    let answer = match files {
                        // The engine's self-test comes first.
                        1 => LIMIT,
                        _ => script.answer.as_str(),
                    };
                    answer.replace('#', &files.to_string())
                }
                // The session's start, and the byte that comes with a descriptor.
                _ => continue,
            };
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}
