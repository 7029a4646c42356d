//! Files and names made to break us: each gets one of the four outcomes and the system goes on.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use e2e::{Setup, System, open};
use testbed::{ServerOptions, run, samples};

fn system(policy: &str) -> Result<System> {
    System::start(Setup {
        server: ServerOptions {
            extra: format!("[removal]\non_malicious = \"deny\"\n[policy]\n{policy}\n"),
            ..ServerOptions::default()
        },
        ..Setup::default()
    })
}

#[test]
fn odd_names_are_judged_and_reported() -> Result<()> {
    let system = system("")?;
    let names: [&[u8]; 5] = [
        b"new\nline.com",
        b"bad\xff\xfeutf8.com",
        b"\x1b[31mred.com",
        b"-rf",
        b"<script>alert(1)<script>.com",
    ];
    for name in names {
        let path = system.mount.path().join(OsStr::from_bytes(name));
        std::fs::write(&path, samples::eicar())?;
        ensure!(open(&path)?.denied, "{name:?} was opened");
    }
    let plain = system.server.cli(&["detections"])?;
    ensure!(
        !plain.contains('\x1b') && !plain.contains("new\nline"),
        "{plain:?}"
    );
    ensure!(plain.contains("utf8.com"), "{plain}");
    Ok(())
}

#[test]
fn special_files_never_hang() -> Result<()> {
    let system = system("on_unscanned = \"deny\"")?;
    let fifo = system.path("fifo");
    run(Command::new("mkfifo").arg(&fifo))?;
    let null = system.path("null");
    run(Command::new("mknod").arg(&null).args(["c", "1", "3"]))?;
    // A reader and a writer of the FIFO meet through the gate.
    let mut writer = Command::new("sh")
        .args(["-c", "echo through > \"$1\"", "sh"])
        .arg(&fifo)
        .spawn()?;
    let got = run(Command::new("timeout").arg("20").arg("cat").arg(&fifo))?;
    ensure!(got == "through\n", "{got:?}");
    ensure!(writer.wait()?.success());
    ensure!(open(&null)?.allowed);
    let empty = system.write("empty", b"")?;
    ensure!(open(&empty)?.allowed);
    Ok(())
}

/// 4 GiB that no one sends: unscanned(too_large), and policy says what that means.
#[test]
fn a_sparse_giant_is_too_large_not_clean() -> Result<()> {
    let system = system("[policy.unscanned]\ntoo_large = \"deny\"")?;
    let path = system.path("giant");
    std::fs::File::create(&path)?.set_len(4 << 30)?;
    let large: Vec<u8> = (0..3_u32 << 20).map(|i| i.to_le_bytes()[1]).collect();
    std::fs::write(system.path("large"), large)?;
    ensure!(open(&path)?.denied, "4 GiB were called clean unread");
    ensure!(open(&system.path("large"))?.allowed);
    Ok(())
}

#[test]
fn a_bomb_is_unscanned_and_deep_nesting_ends() -> Result<()> {
    let system = system(
        "[policy.unscanned]\nunpack_ratio = \"deny\"\nunpack_entry_bytes = \"deny\"\nunpack_total_bytes = \"deny\"\nunpack_depth = \"deny\"",
    )?;
    // 1 GiB of zeros.
    let bomb = system.scratch.path().join("bomb.gz");
    let script = "head -c 1073741824 /dev/zero | gzip -9 > \"$1\"";
    run(Command::new("sh").args(["-ec", script, "sh"]).arg(&bomb))?;
    let bomb = system.write("bomb.gz", &std::fs::read(bomb)?)?;
    ensure!(open(&bomb)?.denied, "a bomb was called clean");
    let mut nested = b"the innermost\n".to_vec();
    for _ in 0..10_000 {
        nested = gzip_stored(&nested);
        if nested.len() > 200_000 {
            break;
        }
    }
    let nested = system.write("nested.gz", &nested)?;
    ensure!(open(&nested)?.denied, "10,000 layers were called clean");
    let clean = system.write("clean", b"still alive\n")?;
    ensure!(open(&clean)?.allowed);
    Ok(())
}

/// One gzip layer around some bytes, not compressed: 23 bytes more.
fn gzip_stored(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    for (i, block) in content.chunks(0xffff).enumerate() {
        let last = (i + 1) * 0xffff >= content.len();
        let len = u16::try_from(block.len()).unwrap_or(u16::MAX);
        out.push(u8::from(last));
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(block);
    }
    // Nobody checks the sum before the limit on depth is met; zero would do, the length is real.
    out.extend(crc32(content).to_le_bytes());
    out.extend((content.len() as u32).to_le_bytes());
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// Junk on the ports: refused, and the service goes on.
#[test]
fn junk_on_the_ports() -> Result<()> {
    let system = system("")?;
    for address in [&system.server.link, &system.server.enrol] {
        for junk in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[]] {
            let mut stream = std::net::TcpStream::connect(address)?;
            let _refused = stream.write_all(junk);
        }
    }
    let clean = system.write("clean", b"still alive\n")?;
    ensure!(open(&clean)?.allowed);
    Ok(())
}

#[test]
fn bad_configuration_says_where_and_changes_nothing() -> Result<()> {
    let dir = e2e::scratch("config")?;
    for (binary, line) in [("lazaret", "lisen = 1"), ("lazaret-agent", "gaurd = 1")] {
        let config = dir.path().join(format!("{binary}.toml"));
        std::fs::write(&config, format!("# a comment\n{line}\n"))?;
        let out = Command::new(testbed::binary(binary)?)
            .args(["check-config", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(!out.status.success(), "{binary} took {line:?}");
        let key = line.split(' ').next().unwrap_or_default();
        ensure!(said.contains(key) && said.contains(":2"), "{said}");
    }
    Ok(())
}
