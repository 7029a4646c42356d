//! Containers that no crate here writes, byte by byte.

use crate::fixtures::Files;

/// How an `ar` archive tells long names.
#[derive(Clone, Copy)]
pub(crate) enum ArNames {
    Gnu,
    Bsd,
}

pub(crate) fn ar(files: &Files<'_>, names: ArNames) -> Vec<u8> {
    let mut archive = b"!<arch>\n".to_vec();
    let mut member = |name: &str, parts: &[&[u8]]| {
        let bytes = parts.concat();
        let len = bytes.len();
        archive.extend_from_slice(
            format!("{name:<16}{:<12}0     0     100644  {len:<10}`\n", 0).as_bytes(),
        );
        archive.extend_from_slice(&bytes);
        if len % 2 == 1 {
            archive.push(b'\n');
        }
    };
    let is_long = |name: &str| name.len() > 15;
    if matches!(names, ArNames::Gnu) && files.iter().any(|(name, _)| is_long(name)) {
        let table: String = files.iter().map(|(name, _)| format!("{name}/\n")).collect();
        member("//", &[table.as_bytes()]);
    }
    let mut table_at = 0;
    for (name, bytes) in files {
        match names {
            ArNames::Gnu if is_long(name) => member(&format!("/{table_at}"), &[bytes]),
            ArNames::Gnu => member(&format!("{name}/"), &[bytes]),
            ArNames::Bsd => member(&format!("#1/{}", name.len()), &[name.as_bytes(), bytes]),
        }
        table_at += name.len() + 2;
    }
    archive
}

#[derive(Clone, Copy)]
pub(crate) enum CpioKind {
    Newc,
    Odc,
    BinaryLittle,
    BinaryBig,
}

pub(crate) fn cpio(files: &Files<'_>, kind: CpioKind) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, bytes) in files.iter().chain([&("TRAILER!!!", &b""[..])]) {
        let mode = 0o100_644_u32;
        let (name_len, len) = (name.len() + 1, bytes.len());
        let (header, align) = match kind {
            CpioKind::Newc => {
                let header = format!(
                    "070701{:08x}{mode:08x}{:032x}{len:08x}{:032x}{name_len:08x}{:08x}",
                    1, 0, 0, 0
                );
                (header.into_bytes(), 4)
            }
            CpioKind::Odc => {
                let header = format!(
                    "070707{:012o}{mode:06o}{:035o}{name_len:06o}{len:011o}",
                    0, 0
                );
                (header.into_bytes(), 1)
            }
            CpioKind::BinaryLittle | CpioKind::BinaryBig => {
                let mut words = [0o070_707, 0, 0, mode as u16, 0, 0, 1, 0, 0, 0, 0, 0, 0];
                words[10] = name_len as u16;
                words[11] = (len >> 16) as u16;
                words[12] = len as u16;
                let order = match kind {
                    CpioKind::BinaryBig => u16::to_be_bytes,
                    _ => u16::to_le_bytes,
                };
                (words.into_iter().flat_map(order).collect(), 2)
            }
        };
        archive.extend_from_slice(&header);
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(align), 0);
        archive.extend_from_slice(bytes);
        archive.resize(archive.len().next_multiple_of(align), 0);
    }
    archive
}

/// An RPM whose headers are all but empty.
pub(crate) fn rpm(payload: &[u8]) -> Vec<u8> {
    let mut rpm = b"\xed\xab\xee\xdb\x03\0".to_vec();
    rpm.resize(96, 0);
    let header = |data: &[u8]| {
        let mut header = b"\x8e\xad\xe8\x01\0\0\0\0".to_vec();
        header.extend_from_slice(&1_u32.to_be_bytes());
        header.extend_from_slice(&(data.len() as u32).to_be_bytes());
        for word in [1000_u32, 6, 0, 1] {
            header.extend_from_slice(&word.to_be_bytes());
        }
        header.extend_from_slice(data);
        header
    };
    rpm.extend(header(b"sig\0\0"));
    rpm.resize(rpm.len().next_multiple_of(8), 0);
    rpm.extend(header(b"name\0"));
    rpm.extend_from_slice(payload);
    rpm
}

/// An RPM of version 6: names and sizes are in its header, the cpio has numbers only.
pub(crate) fn rpm6(files: &Files<'_>, compress: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut cpio = Vec::new();
    for (number, (_, bytes)) in files.iter().enumerate() {
        cpio.extend_from_slice(format!("07070X{number:08x}\0\0").as_bytes());
        cpio.extend_from_slice(bytes);
        cpio.resize(cpio.len().next_multiple_of(4), 0);
    }
    cpio.extend(self::cpio(&[], CpioKind::Newc));
    let count = files.len();
    let names: Vec<u8> = files
        .iter()
        .flat_map(|(name, _)| [name.as_bytes(), b"\0"].concat())
        .collect();
    let sizes: Vec<u8> = files
        .iter()
        .flat_map(|(_, b)| (b.len() as u32).to_be_bytes())
        .collect();
    let indexes = vec![0; 4 * count];
    let tags: [(u32, usize, &[u8]); 5] = [
        (1028, count, &sizes),
        (1116, count, &indexes),
        (1117, count, &names),
        (1118, 1, b"/opt/\0"),
        (5114, 1, &[0, 0, 0, 6]),
    ];
    let (mut index, mut data) = (Vec::new(), Vec::new());
    for (tag, count, bytes) in tags {
        for word in [tag, 0, data.len() as u32, count as u32] {
            index.extend_from_slice(&word.to_be_bytes());
        }
        data.extend_from_slice(bytes);
    }
    let mut main = b"\x8e\xad\xe8\x01\0\0\0\0".to_vec();
    main.extend_from_slice(&(tags.len() as u32).to_be_bytes());
    main.extend_from_slice(&(data.len() as u32).to_be_bytes());
    let v4 = rpm(b"");
    // Lead and signature header are those of the other version.
    let signature_end = 96 + (16_usize + 16 + 5).next_multiple_of(8);
    [&v4[..signature_end], &main, &index, &data, &compress(&cpio)].concat()
}

/// Blocks of an ISO image and of its directories.
const SECTOR: usize = 2048;

/// An ISO image with one directory `DIR` that holds `files`. With `joliet` there is a second tree
/// that holds `joliet_only` besides. Rock Ridge names are in the first one.
pub(crate) fn iso(files: &Files<'_>, joliet_only: Option<&Files<'_>>) -> Vec<u8> {
    let (root_at, dir_at, joliet_root_at, joliet_dir_at, data_at) = (20, 21, 22, 23, 24);
    let mut image = vec![0; data_at * SECTOR];
    let place = |image: &mut Vec<u8>, bytes: &[u8]| {
        let block = image.len() / SECTOR;
        image.extend_from_slice(bytes);
        image.resize(image.len().next_multiple_of(SECTOR), 0);
        (block, bytes.len())
    };
    let mut records = Vec::new();
    let mut joliet_records = Vec::new();
    for (index, (name, bytes)) in files.iter().enumerate() {
        let extent = place(&mut image, bytes);
        let short = format!("FILE{index}.BIN;1");
        records.push(record(short.as_bytes(), extent, 0, &rock_ridge(name)));
        joliet_records.push(record(&ucs2(&format!("{name};1")), extent, 0, b""));
    }
    for (name, bytes) in joliet_only.unwrap_or_default() {
        let extent = place(&mut image, bytes);
        joliet_records.push(record(&ucs2(name), extent, 0, b""));
    }
    let mut directory = |at: usize, parent: usize, records: &[Vec<u8>]| {
        let dots = [
            record(&[0], (at, SECTOR), 2, b""),
            record(&[1], (parent, SECTOR), 2, b""),
        ];
        let content = [dots.concat(), records.concat()].concat();
        image[at * SECTOR..][..content.len()].copy_from_slice(&content);
    };
    directory(dir_at, root_at, &records);
    directory(
        root_at,
        root_at,
        &[record(b"DIR", (dir_at, SECTOR), 2, b"")],
    );
    directory(joliet_dir_at, joliet_root_at, &joliet_records);
    let link = record(&ucs2("DIR"), (joliet_dir_at, SECTOR), 2, b"");
    directory(joliet_root_at, joliet_root_at, &[link]);
    descriptor(&mut image, 16, 1, root_at);
    if joliet_only.is_some() {
        descriptor(&mut image, 17, 2, joliet_root_at);
        image[17 * SECTOR + 88..][..3].copy_from_slice(b"%/E");
    }
    image[18 * SECTOR..][..6].copy_from_slice(b"\xffCD001");
    image
}

/// A volume descriptor in sector `at`, its root directory in sector `root`.
fn descriptor(image: &mut [u8], at: usize, kind: u8, root: usize) {
    let sector = &mut image[at * SECTOR..][..SECTOR];
    sector[0] = kind;
    sector[1..6].copy_from_slice(b"CD001");
    sector[128..130].copy_from_slice(&(SECTOR as u16).to_le_bytes());
    let record = record(&[0], (root, SECTOR), 2, b"");
    sector[156..156 + record.len()].copy_from_slice(&record);
}

/// A directory record.
pub(crate) fn record(
    name: &[u8],
    (block, len): (usize, usize),
    flags: u8,
    system_use: &[u8],
) -> Vec<u8> {
    let mut record = vec![0; 33];
    record[2..6].copy_from_slice(&(block as u32).to_le_bytes());
    record[6..10].copy_from_slice(&(block as u32).to_be_bytes());
    record[10..14].copy_from_slice(&(len as u32).to_le_bytes());
    record[14..18].copy_from_slice(&(len as u32).to_be_bytes());
    record[25] = flags;
    record[32] = name.len() as u8;
    record.extend_from_slice(name);
    if name.len().is_multiple_of(2) {
        record.push(0);
    }
    record.extend_from_slice(system_use);
    record.resize(record.len().next_multiple_of(2), 0);
    record[0] = record.len() as u8;
    record
}

fn rock_ridge(name: &str) -> Vec<u8> {
    let mut entry = vec![b'N', b'M', name.len() as u8 + 5, 1, 0];
    entry.extend_from_slice(name.as_bytes());
    entry
}

fn ucs2(name: &str) -> Vec<u8> {
    name.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// A cabinet of one LZX folder with one file, as one uncompressed LZX block.
pub(crate) fn cab_lzx(name: &str, bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() <= 32 << 10, "one block");
    // Bit 0: no E8 translation; 3 bits: kind 3; 24 bits: size. Words little-endian, bits from
    // the top; then padding to a word, R0 to R2, the bytes.
    let bits = (0b0011_u64 << 28 | (bytes.len() as u64) << 4) as u32;
    let mut block = Vec::new();
    for word in [bits >> 16, bits & 0xffff] {
        block.extend_from_slice(&(word as u16).to_le_bytes());
    }
    for _ in 0..3 {
        block.extend_from_slice(&1_u32.to_le_bytes());
    }
    block.extend_from_slice(bytes);
    cab_raw(name, bytes.len(), 3 | 15 << 8, &block, bytes.len())
}

/// A cabinet of one folder of one block.
pub(crate) fn cab_raw(
    name: &str,
    len: usize,
    method: u16,
    block: &[u8],
    plain_len: usize,
) -> Vec<u8> {
    let files_at = 36 + 8;
    let data_at = files_at + 16 + name.len() + 1;
    let total = data_at + 8 + block.len();
    let mut cab = b"MSCF\0\0\0\0".to_vec();
    for word in [total as u32, 0, files_at as u32, 0, 0x0103] {
        cab.extend_from_slice(&word.to_le_bytes()[..if word == 0x0103 { 2 } else { 4 }]);
    }
    for half in [1_u16, 1, 0, 0, 0] {
        cab.extend_from_slice(&half.to_le_bytes());
    }
    cab.extend_from_slice(&(data_at as u32).to_le_bytes());
    cab.extend_from_slice(&1_u16.to_le_bytes());
    cab.extend_from_slice(&method.to_le_bytes());
    cab.extend_from_slice(&(len as u32).to_le_bytes());
    cab.extend_from_slice(&0_u32.to_le_bytes());
    cab.extend_from_slice(&[0; 8]);
    cab.extend_from_slice(name.as_bytes());
    cab.push(0);
    cab.extend_from_slice(&0_u32.to_le_bytes());
    cab.extend_from_slice(&(block.len() as u16).to_le_bytes());
    cab.extend_from_slice(&(plain_len as u16).to_le_bytes());
    cab.extend_from_slice(block);
    cab
}

/// A PDF whose objects are streams, each with its dictionary's entries.
pub(crate) fn pdf(streams: &Files<'_>) -> Vec<u8> {
    let mut pdf = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n".to_vec();
    for (number, (entries, bytes)) in (2..).zip(streams) {
        let len = bytes.len();
        pdf.extend_from_slice(
            format!("{number} 0 obj\n<< {entries} /Length {len} >>\nstream\r\n").as_bytes(),
        );
        pdf.extend_from_slice(bytes);
        pdf.extend_from_slice(b"\nendstream\nendobj\n");
    }
    pdf.extend_from_slice(b"trailer\n<< /Root 1 0 R >>\nstartxref\n9\n%%EOF\n");
    pdf
}

/// A mail with `attachments` in base64.
pub(crate) fn mail(attachments: &Files<'_>) -> Vec<u8> {
    let mut mail = String::from(
        "Received: from somewhere\r\nFrom: a@example.org\r\nTo: b@example.org\r\nSubject: =?utf-8?q?hi?=\r\n\
         MIME-Version: 1.0\r\nContent-Type: multipart/mixed;\r\n\tboundary=\"=_outer\"\r\n\r\n\
         preamble\r\n--=_outer\r\nContent-Type: text/plain\r\n\r\nHello.\r\n",
    );
    for (name, bytes) in attachments {
        mail.push_str(&format!(
            "--=_outer\r\nContent-Type: application/octet-stream\r\n\
             Content-Disposition: attachment; filename=\"{name}\"\r\n\
             Content-Transfer-Encoding: base64\r\n\r\n{}\r\n",
            base64(bytes)
        ));
    }
    mail.push_str("--=_outer--\r\nepilogue\r\n");
    mail.into_bytes()
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for (index, group) in bytes.chunks(3).enumerate() {
        if index > 0 && index % 19 == 0 {
            text.push_str("\r\n");
        }
        let at = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            text.push(if digit <= group.len() {
                char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63])
            } else {
                '='
            });
        }
    }
    text
}
