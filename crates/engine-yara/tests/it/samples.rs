//! Test files, put together at run time: no file of this repository is one of them.

/// The EICAR test file.
pub(crate) fn eicar() -> Vec<u8> {
    [
        &br"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR"[..],
        br"-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*",
    ]
    .concat()
}

/// The line of the GTUBE mail.
pub(crate) fn gtube() -> Vec<u8> {
    [
        &b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-"[..],
        b"STANDARD-ANTI-UBE-TEST-EMAIL*C.34X",
    ]
    .concat()
}

/// What Lazaret's own test rule looks for.
pub(crate) fn planted() -> Vec<u8> {
    [
        &b"LAZARET!TEST-STRING!6C5F1E0B-2D7A"[..],
        b"-4E1B-9C53-NOT-MALWARE!",
    ]
    .concat()
}

/// A zip with one member, stored. Flags of 1 call it encrypted.
pub(crate) fn zip(name: &str, bytes: &[u8], flags: u16) -> Vec<u8> {
    let size = u32::try_from(bytes.len()).expect("small");
    let name_len = u16::try_from(name.len()).expect("short");
    let mut fields = Vec::new();
    fields.extend(10u16.to_le_bytes());
    fields.extend(flags.to_le_bytes());
    fields.extend([0; 6]);
    fields.extend(crc32(bytes).to_le_bytes());
    fields.extend(size.to_le_bytes());
    fields.extend(size.to_le_bytes());
    fields.extend(name_len.to_le_bytes());
    fields.extend([0; 2]);
    let local = [b"PK\x03\x04", &fields[..], name.as_bytes(), bytes].concat();
    let central = [
        b"PK\x01\x02\x0a\0",
        &fields[..],
        &[0; 14][..],
        name.as_bytes(),
    ]
    .concat();
    let mut end = b"PK\x05\x06\0\0\0\0\x01\0\x01\0".to_vec();
    end.extend(u32::try_from(central.len()).expect("small").to_le_bytes());
    end.extend(u32::try_from(local.len()).expect("small").to_le_bytes());
    end.extend([0; 2]);
    [local, central, end].concat()
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |mut crc: u32, byte: &u8| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & 0u32.wrapping_sub(crc & 1));
        }
        crc
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// A tar with these members, packed by gzip, made by the system's tar.
pub(crate) fn tar_gz(members: &[(&str, &[u8])]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in members {
        std::fs::write(folder.path().join(name), bytes).expect("written");
    }
    let output = std::process::Command::new("tar")
        .args(["--create", "--gzip", "--directory"])
        .arg(folder.path())
        .args(members.iter().map(|(name, _)| name))
        .output()
        .expect("tar runs");
    assert!(output.status.success());
    output.stdout
}
