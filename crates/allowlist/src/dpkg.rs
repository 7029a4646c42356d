//! What dpkg's database says of installed files: `var/lib/dpkg/info/*.md5sums`.
//!
//! The sums are unsigned MD5, so they only leave out what was changed by accident or by someone
//! careless; what is listed is the BLAKE3 of what was read.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use crate::sums::{self, Sum};
use crate::{Error, read_text};

const INFO: &str = "var/lib/dpkg/info";

/// The files of the database below `root`, by paths below `root`, with their MD5. With
/// `packages`, of these alone; each must be there.
pub(crate) fn files(root: &Path, packages: &[String]) -> Result<Vec<(PathBuf, Sum)>, Error> {
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
    match seen.iter().position(|seen| !seen) {
        Some(at) => Err(Error::Package {
            database: info,
            package: packages[at].clone(),
        }),
        None => Ok(found),
    }
}

fn parse(path: &Path, found: &mut Vec<(PathBuf, Sum)>) -> Result<(), Error> {
    let text = read_text(path)?;
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
        let sum = sums::bytes(&sum[..32]);
        let sum = sum.ok_or_else(|| bad("not an MD5 of 32 hexadecimal digits"))?;
        let file = PathBuf::from(OsStr::from_bytes(file));
        let inside = |part: Component<'_>| matches!(part, Component::Normal(_));
        if !file.components().all(inside) || file.file_name().is_none() {
            return Err(bad("a path that leaves the root"));
        }
        found.push((file, Sum::Md5(sum)));
    }
    Ok(())
}
