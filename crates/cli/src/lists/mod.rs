//! `lazaret allowlist`: lists of known content are made, looked at and signed. Needs neither a
//! configuration nor a running lazaret.

pub(crate) mod args;
mod databases;
mod tell;

use std::collections::HashSet;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use allowlist::{Builder, Digest, List, PublicKey, SigningKey, hex, read_digests};
use anyhow::{Context, bail, ensure};

use args::{AllowlistCommand, BuildArgs, Made, MergeArgs, RevokeArgs};

pub(crate) fn run(command: &AllowlistCommand) -> anyhow::Result<()> {
    match command {
        AllowlistCommand::Key { file, show } => key(file, *show),
        AllowlistCommand::Build(args) => build(args),
        AllowlistCommand::Merge(args) => merge(args),
        AllowlistCommand::Diff { old, new, output } => {
            let ((old, _), (new, _)) = (open(old)?, open(new)?);
            tell::difference(&old.diff(&new), output)
        }
        AllowlistCommand::Inspect {
            list,
            digest,
            output,
        } => {
            let (opened, signer) = open(list)?;
            tell::list(&opened, signer, digest, output)
        }
        AllowlistCommand::Sign { list, key, out } => {
            let (opened, _) = open(list)?;
            let out = out.as_ref().unwrap_or(list);
            opened.write(out, Some(&SigningKey::open(key)?))?;
            println!("signed {}", out.display());
            Ok(())
        }
        AllowlistCommand::Verify {
            list,
            trusted,
            output,
        } => {
            let opened = List::open_trusted(list, trusted);
            let opened = opened.with_context(|| list.display().to_string())?;
            let (_, signer) = open(list)?;
            tell::list(&opened, signer, &[], output)
        }
        AllowlistCommand::Revoke(args) => revoke(args),
    }
}

fn open(path: &Path) -> anyhow::Result<(List, Option<PublicKey>)> {
    List::open(path).with_context(|| path.display().to_string())
}

fn key(file: &Path, show: bool) -> anyhow::Result<()> {
    let key = if show {
        SigningKey::open(file)
    } else {
        SigningKey::create(file)
    };
    println!("{}", key?.public());
    Ok(())
}

fn build(args: &BuildArgs) -> anyhow::Result<()> {
    let sources = [&args.directory, &args.dpkg, &args.rpm, &args.digests];
    ensure!(
        sources.iter().any(|source| !source.is_empty()) || !args.known.is_empty(),
        "name at least one source: --directory, --dpkg, --rpm, --digests or --known"
    );
    let made = Identity::of(&args.made)?;
    let mut builder = Builder::new().one_file_system(!args.cross_file_systems);
    for folder in &args.directory {
        builder.directory(folder)?;
    }
    for root in &args.dpkg {
        builder.dpkg(root, &args.package)?;
    }
    for root in &args.rpm {
        databases::rpm(&mut builder, root, &args.package)
            .with_context(|| format!("{}: rpm's database", root.display()))?;
    }
    for file in &args.digests {
        builder.digest_list(file)?;
    }
    for folder in &args.known {
        builder.known(folder, |sums| known(args, sums))?;
    }
    let left_out = builder.differing().to_vec();
    if args.strict && !left_out.is_empty() {
        tell::left_out(&left_out);
        bail!("{} files were left out; no list was made", left_out.len());
    }
    let list = builder.finish(&made.name, made.serial, now())?;
    made.write(&list)?;
    tell::made(&list, made.public(), &left_out, &args.made.output)
}

/// Those of `sums` that one of the sources knows.
fn known(args: &BuildArgs, sums: &[Digest]) -> anyhow::Result<HashSet<Digest>> {
    let mut known = HashSet::new();
    for file in &args.sha256 {
        let listed = read_digests(file)?.into_iter();
        known.extend(listed.filter(|sum| sums.binary_search(sum).is_ok()));
    }
    for file in &args.nsrl {
        let found = databases::nsrl(file, sums, &args.nsrl_without);
        known.extend(found.with_context(|| format!("{}: NSRL", file.display()))?);
    }
    Ok(known)
}

fn merge(args: &MergeArgs) -> anyhow::Result<()> {
    let mut lists = Vec::new();
    for path in &args.lists {
        lists.push(if args.trusted.is_empty() {
            open(path)?.0
        } else {
            let opened = List::open_trusted(path, &args.trusted);
            opened.with_context(|| path.display().to_string())?
        });
    }
    let made = Identity::of(&args.made)?;
    let list = List::merge(&made.name, made.serial, now(), &lists)?;
    made.write(&list)?;
    tell::made(&list, made.public(), &[], &args.made.output)
}

fn revoke(args: &RevokeArgs) -> anyhow::Result<()> {
    let key = args.key.as_deref().map(SigningKey::open).transpose()?;
    let mut digests = args.digest.clone();
    for file in &args.digests {
        digests.extend(read_digests(file)?);
    }
    let (mut list, _) = open(&args.list)?;
    if let Some(unlisted) = digests
        .iter()
        .find(|digest| list.listed().binary_search(digest).is_err())
    {
        // Still revoked: another list may have it, or a later merge.
        eprintln!("lazaret: {} was not listed here", hex(unlisted));
    }
    list.revoke(&digests);
    list.serial = next(list.serial)?;
    list.created = now();
    list.write(args.out.as_ref().unwrap_or(&args.list), key.as_ref())?;
    let public = key.map(|key| key.public());
    tell::made(&list, public, &[], &args.output)
}

/// What a list that is made will be called, and where it goes.
struct Identity<'a> {
    name: String,
    serial: u64,
    key: Option<SigningKey>,
    out: &'a Path,
}

impl<'a> Identity<'a> {
    /// Found out before files are read, so that what is wrong is told at once.
    fn of(made: &'a Made) -> anyhow::Result<Self> {
        let before = if made.out.exists() {
            Some(
                open(&made.out)
                    .context("what is there is no list and is not overwritten")?
                    .0,
            )
        } else {
            None
        };
        let name = made.name.clone();
        let name = name.or_else(|| before.as_ref().map(|list| list.name.clone()));
        let name = name.context("--name: a new list needs a name")?;
        let same = before.filter(|list| list.name == name);
        let serial = match (made.serial, same) {
            (Some(serial), Some(before)) => {
                let above = before.serial;
                ensure!(
                    serial > above,
                    "--serial: must be above {above}, which is there"
                );
                serial
            }
            (Some(serial), None) => serial,
            (None, Some(before)) => next(before.serial)?,
            (None, None) => 1,
        };
        Ok(Self {
            name,
            serial,
            key: made.key.as_deref().map(SigningKey::open).transpose()?,
            out: &made.out,
        })
    }

    fn write(&self, list: &List) -> anyhow::Result<()> {
        Ok(list.write(self.out, self.key.as_ref())?)
    }

    fn public(&self) -> Option<PublicKey> {
        self.key.as_ref().map(SigningKey::public)
    }
}

fn next(serial: u64) -> anyhow::Result<u64> {
    serial
        .checked_add(1)
        .context("the serial cannot rise any more")
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
