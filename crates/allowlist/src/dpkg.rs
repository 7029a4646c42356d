//! What dpkg's database says of installed files: `var/lib/dpkg/info/*.md5sums`.
//!
//! The sums are unsigned MD5, so they only leave out what was changed by accident or by someone
//! careless; what is listed is the BLAKE3 of what was read.

use std::fs;
use std::path::{Component, Path, PathBuf};

use md5::{Digest as _, Md5};

use crate::{Digest, Error, build};

const INFO: &str = "var/lib/dpkg/info";

/// The files of the database below `root`, by paths below `root`, with their MD5. With
/// `packages`, of these alone; each must be there.
pub(crate) fn files(root: &Path, packages: &[String]) -> Result<Vec<(PathBuf, [u8; 16])>, Error> {
    let info = root.join(INFO);
    let mut found = Vec::new();
    let mut seen = vec![false; packages.len()];
    for entry in fs::read_dir(&info).map_err(Error::io(&info))? {
        let path = entry.map_err(Error::io(&info))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let Some(package) = name.strip_suffix(".md5sums") else {
            continue;
        };
        // `libc6:amd64.md5sums` is of the package libc6.
        let package = package.split(':').next().unwrap_or(package);
        match packages.iter().position(|wanted| wanted == package) {
            Some(at) => seen[at] = true,
            None if packages.is_empty() => {}
            None => continue,
        }
        parse(&path, &mut found)?;
    }
    if let Some(at) = seen.iter().position(|seen| !seen) {
        let path = info.join(format!("{}.md5sums", packages[at]));
        return Err(Error::Io {
            path,
            source: std::io::ErrorKind::NotFound.into(),
        });
    }
    Ok(found)
}

fn parse(path: &Path, found: &mut Vec<(PathBuf, [u8; 16])>) -> Result<(), Error> {
    use std::os::unix::ffi::OsStrExt as _;
    let text = fs::read(path).map_err(Error::io(path))?;
    let lines = text.split(|&byte| byte == b'\n').enumerate();
    for (at, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let bad = |what| Error::Line {
            path: path.to_owned(),
            line: at + 1,
            what,
        };
        let (sum, file) = line
            .split_at_checked(34)
            .filter(|(sum, _)| sum.ends_with(b"  "))
            .ok_or_else(|| bad("not an MD5, two blanks and a path"))?;
        let sum = md5_of(&sum[..32]).ok_or_else(|| bad("not an MD5 of 32 hexadecimal digits"))?;
        let file = PathBuf::from(std::ffi::OsStr::from_bytes(file));
        if !file
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            return Err(bad("a path that leaves the root"));
        }
        found.push((file, sum));
    }
    Ok(())
}

fn md5_of(text: &[u8]) -> Option<[u8; 16]> {
    let mut out = [0; 16];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(out)
}

/// The BLAKE3 of the file at `path` below `root` if its MD5 is `md5`; `None` for an empty one.
/// Links on the way may lead about within the root (`/bin` is one), never out of it.
pub(crate) fn verify(root: &Path, path: &Path, md5: [u8; 16]) -> Result<Option<Digest>, String> {
    let folder = root.join(path.parent().unwrap_or(Path::new("")));
    let folder = fs::canonicalize(folder).map_err(|error| error.to_string())?;
    let within = fs::canonicalize(root).map_err(|error| error.to_string())?;
    if !folder.starts_with(&within) {
        return Err("a link leads out of the root".to_owned());
    }
    let file = folder.join(path.file_name().unwrap_or_default());
    let meta = fs::symlink_metadata(&file).map_err(|error| error.to_string())?;
    if !meta.is_file() {
        return Err("not a regular file".to_owned());
    }
    let (mut sum, mut hasher) = (Md5::new(), blake3::Hasher::new());
    build::read(&file, &meta, |piece| {
        sum.update(piece);
        hasher.update(piece);
    })?;
    if sum.finalize().as_slice() != md5 {
        return Err("its MD5 is not the package's".to_owned());
    }
    Ok((meta.len() > 0).then(|| hasher.finalize().into()))
}
