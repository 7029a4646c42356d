//! New versions of a file through the real gate: only what is new is sent, and it is judged whole.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Setup, System, open, scratch};
use testbed::{ServerOptions, wait_until};

const MARK: &str = "this-version-is-bad";
const SIZE: usize = 2 << 20;
/// A version sends the chunks around each change and the list.
const VERSION_BYTES_MAX: f64 = 400_000.0;

/// Bytes that do not compress.
fn document() -> Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let random = std::fs::File::open("/dev/urandom")?;
    random.take(SIZE as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn with(bytes: &[u8], at: usize, put_in: &[u8]) -> Vec<u8> {
    [&bytes[..at], put_in, &bytes[at..]].concat()
}

#[test]
fn of_a_new_version_only_what_is_new_is_sent() -> Result<()> {
    let dir = scratch("rules")?;
    let rules = dir.path().join("mark.yar");
    let rule = format!("rule Mark {{ strings: $a = \"{MARK}\" condition: $a }}\n");
    std::fs::write(&rules, rule)?;
    let system = System::start(Setup {
        server: ServerOptions {
            rules: vec![rules],
            extra: "[removal]\non_malicious = \"deny\"\n[policy]\nscan_on_close = false\n".into(),
            ..ServerOptions::default()
        },
        ..Setup::default()
    })?;
    let first = document()?;
    ensure!(open(&system.write("report", &first)?)?.allowed);
    let is_kept = || {
        let kept = system.server_metric("lazaret_chunk_store_bytes", "");
        kept.is_ok_and(|bytes| bytes >= SIZE as f64)
    };
    ensure!(
        wait_until(Duration::from_secs(60), is_kept),
        "nothing is kept"
    );

    let sent = || system.agent_metric("lazaret_agent_link_bytes_sent_total", "");
    let before = sent()?;
    let second = with(&first, SIZE / 3, b"a paragraph more");
    let opened = open(&system.write("report-2", &second)?)?;
    ensure!(opened.allowed, "{}", opened.said);
    let third = with(&second, SIZE / 2, MARK.as_bytes());
    let opened = open(&system.write("report-3", &third)?)?;
    ensure!(opened.denied, "a bad version was opened");
    let used = system.server_metric("lazaret_manifests_total", "used")?;
    ensure!(used == 2.0, "{used} lists were used");
    let bytes = sent()? - before;
    ensure!(bytes < 2.0 * VERSION_BYTES_MAX, "{bytes} bytes were sent");
    Ok(())
}
