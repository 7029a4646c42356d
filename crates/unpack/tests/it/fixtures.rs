//! Containers made with the writers of the crates that read them.

use std::io::{Cursor, Write};

use sevenz_rust2::{ArchiveEntry, ArchiveWriter, EncoderConfiguration, EncoderMethod, Password};
use zip::CompressionMethod;
use zip::unstable::write::FileOptionsExt;
use zip::write::{FileOptionExtension, FileOptions, SimpleFileOptions};

/// What stands for a detection.
pub(crate) const MARKER: &[u8] = b"LAZARET-PLANTED-STRING";

/// A file of `len` bytes that holds the marker at its end and does not compress.
pub(crate) fn planted(len: usize) -> Vec<u8> {
    let mut bytes = noise(len.saturating_sub(MARKER.len()));
    bytes.extend_from_slice(MARKER);
    bytes
}

/// Bytes of a xorshift generator: the same each time, without structure.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Names and contents.
pub(crate) type Files<'a> = [(&'a str, &'a [u8])];

pub(crate) fn zip(files: &Files<'_>) -> Vec<u8> {
    zip_with(files, CompressionMethod::Deflated)
}

pub(crate) fn zip_with(files: &Files<'_>, method: CompressionMethod) -> Vec<u8> {
    let options = SimpleFileOptions::default().compression_method(method);
    zip_options(files, options)
}

pub(crate) fn zip_encrypted(files: &Files<'_>) -> Vec<u8> {
    let options = SimpleFileOptions::default().with_deprecated_encryption(b"secret");
    zip_options(files, options.expect("a password"))
}

fn zip_options<T: FileOptionExtension + Copy>(
    files: &Files<'_>,
    options: FileOptions<'_, '_, T>,
) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(*name, options).expect("a valid name");
        zip.write_all(bytes).expect("memory");
    }
    zip.finish().expect("memory").into_inner()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    gzip_named(bytes, None)
}

pub(crate) fn gzip_named(bytes: &[u8], name: Option<&str>) -> Vec<u8> {
    let builder = flate2::GzBuilder::new();
    let builder = match name {
        Some(name) => builder.filename(name),
        None => builder,
    };
    let mut gzip = builder.write(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).expect("memory");
    gzip.finish().expect("memory")
}

pub(crate) fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    zlib.write_all(bytes).expect("memory");
    zlib.finish().expect("memory")
}

pub(crate) fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(bytes).expect("memory");
    bzip2.finish().expect("memory")
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(1);
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), options).expect("a preset");
    xz.write_all(bytes).expect("memory");
    xz.finish().expect("memory")
}

/// As xz, announcing a dictionary of `dict_bytes`.
pub(crate) fn xz_with_dictionary(bytes: &[u8], dict_bytes: u32) -> Vec<u8> {
    let mut options = lzma_rust2::XzOptions::with_preset(1);
    options.lzma_options.dict_size = dict_bytes;
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), options).expect("a dictionary");
    xz.write_all(bytes).expect("memory");
    xz.finish().expect("memory")
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).expect("memory")
}

pub(crate) fn tar(files: &Files<'_>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).expect("memory");
    }
    tar.into_inner().expect("memory")
}

/// One solid block for each of `blocks`.
pub(crate) fn sevenz(blocks: &[&Files<'_>]) -> Vec<u8> {
    sevenz_with(blocks, vec![EncoderMethod::LZMA2.into()])
}

pub(crate) fn sevenz_with(blocks: &[&Files<'_>], methods: Vec<EncoderConfiguration>) -> Vec<u8> {
    let mut archive = ArchiveWriter::new(Cursor::new(Vec::new())).expect("memory");
    archive.set_content_methods(methods);
    archive.set_encrypt_header(false);
    for files in blocks {
        let entries = files.iter().map(|(name, _)| ArchiveEntry::new_file(name));
        let readers = files.iter().map(|(_, bytes)| (*bytes).into());
        archive
            .push_archive_entries(entries.collect(), readers.collect())
            .expect("memory");
    }
    archive.finish().expect("memory").into_inner()
}

/// Encrypted; the names too if `header`.
pub(crate) fn sevenz_encrypted(files: &Files<'_>, header: bool) -> Vec<u8> {
    let mut archive = ArchiveWriter::new(Cursor::new(Vec::new())).expect("memory");
    let aes = sevenz_rust2::encoder_options::AesEncoderOptions::new(Password::from("secret"));
    archive.set_content_methods(vec![aes.into(), EncoderMethod::LZMA2.into()]);
    archive.set_encrypt_header(header);
    for (name, bytes) in files {
        archive
            .push_archive_entry(ArchiveEntry::new_file(name), Some(*bytes))
            .expect("memory");
    }
    archive.finish().expect("memory").into_inner()
}

/// One folder for each of `folders`.
pub(crate) fn cab(folders: &[&Files<'_>], method: cab::CompressionType) -> Vec<u8> {
    let mut builder = cab::CabinetBuilder::new();
    for files in folders {
        let folder = builder.add_folder(method);
        for (name, _) in *files {
            folder.add_file(*name);
        }
    }
    let mut writer = builder.build(Cursor::new(Vec::new())).expect("memory");
    let mut contents = folders.iter().flat_map(|files| files.iter());
    while let Some(mut file) = writer.next_file().expect("memory") {
        let (_, bytes) = contents.next().expect("as many contents as names");
        file.write_all(bytes).expect("memory");
    }
    writer.finish().expect("memory").into_inner()
}

/// An OLE file; storages of the names are made.
pub(crate) fn ole(streams: &Files<'_>) -> Vec<u8> {
    // Version 3 has sectors of 512 bytes.
    let (version, memory) = (cfb::Version::V3, Cursor::new(Vec::new()));
    let mut file = cfb::CompoundFile::create_with_version(version, memory).expect("memory");
    for (name, bytes) in streams {
        if let Some((storage, _)) = name.rsplit_once('/') {
            file.create_storage_all(storage).expect("memory");
        }
        let mut stream = file.create_stream(name).expect("memory");
        stream.write_all(bytes).expect("memory");
    }
    file.flush().expect("memory");
    file.into_inner().into_inner()
}

/// `Ole10Native` as an OLE packager writes it.
pub(crate) fn ole_native(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut body = vec![2, 0];
    for text in [name, name] {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    body.extend_from_slice(&[0, 0, 3, 0]);
    body.extend_from_slice(&(name.len() as u32 + 1).to_le_bytes());
    body.extend_from_slice(name.as_bytes());
    body.push(0);
    body.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    body.extend_from_slice(bytes);
    [&(body.len() as u32).to_le_bytes(), body.as_slice()].concat()
}

/// The part of a Word document that matters: a ZIP with its parts.
pub(crate) fn docx(embedded: &[u8]) -> Vec<u8> {
    zip(&[
        ("[Content_Types].xml", b"<Types/>"),
        ("word/document.xml", b"<w:document/>"),
        ("word/embeddings/oleObject1.bin", embedded),
    ])
}
