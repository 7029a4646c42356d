//! What is said of lists, to people and to programs.

use std::os::unix::ffi::OsStrExt;

use allowlist::{Difference, Differing, Digest, List, PublicKey, hex};
use daemon::log::escape;
use serde_json::{Value, json};

use crate::args::Output;
use crate::{json, show};

/// Of files left out, so many are named to people; `--json` names all.
const NAMED_MAX: usize = 20;

/// A list, and what it says of `digests`.
pub(super) fn list(
    list: &List,
    signer: Option<PublicKey>,
    digests: &[Digest],
    output: &Output,
) -> anyhow::Result<()> {
    if output.json {
        let mut value = describe(list, signer);
        if !digests.is_empty() {
            let said = digests
                .iter()
                .map(|digest| json!({ "blake3": hex(digest), "state": state(list, digest) }));
            value["digests"] = said.collect();
        }
        return json::print(&value);
    }
    print_list(list, signer);
    for digest in digests {
        println!("{}  {}", hex(digest), state(list, digest));
    }
    Ok(())
}

fn state(list: &List, digest: &Digest) -> &'static str {
    if list.revoked().binary_search(digest).is_ok() {
        "revoked"
    } else if list.listed().binary_search(digest).is_ok() {
        "listed"
    } else {
        "unknown"
    }
}

/// A list that was just made.
pub(super) fn made(
    list: &List,
    signer: Option<PublicKey>,
    differing: &[Differing],
    output: &Output,
) -> anyhow::Result<()> {
    if output.json {
        let mut value = describe(list, signer);
        let files = differing.iter().map(|it| {
            let mut out = json::object(json!({ "why": it.why }));
            json::put_path(&mut out, it.path.as_os_str().as_bytes());
            Value::Object(out)
        });
        value["left_out"] = files.collect();
        return json::print(&value);
    }
    print_list(list, signer);
    left_out(differing);
    Ok(())
}

/// Says on standard error which files are not listed.
pub(super) fn left_out(differing: &[Differing]) {
    for it in differing.iter().take(NAMED_MAX) {
        let path = escape(it.path.as_os_str().as_bytes());
        eprintln!("left out {path}: {}", escape(it.why.as_bytes()));
    }
    if let Some(more) = differing
        .len()
        .checked_sub(NAMED_MAX)
        .filter(|more| *more > 0)
    {
        eprintln!("left out {more} more");
    }
}

pub(super) fn difference(difference: &Difference, output: &Output) -> anyhow::Result<()> {
    let Difference {
        added,
        removed,
        revoked,
        restored,
    } = difference;
    let all = [
        ("added", "+", added),
        ("removed", "-", removed),
        ("revoked", "!", revoked),
        ("restored", "~", restored),
    ];
    if output.json {
        let digests = |digests: &[Digest]| digests.iter().map(|it| hex(it)).collect::<Value>();
        let named = all.map(|(name, _, these)| (name.to_owned(), digests(these)));
        return json::print(&Value::Object(named.into_iter().collect()));
    }
    for (_, sign, digests) in all {
        for digest in digests {
            println!("{sign} {}", hex(digest));
        }
    }
    println!(
        "{} added, {} removed, {} revoked, {} restored",
        added.len(),
        removed.len(),
        revoked.len(),
        restored.len()
    );
    Ok(())
}

fn describe(list: &List, signer: Option<PublicKey>) -> Value {
    json!({
        "name": list.name,
        "serial": list.serial,
        "created": show::time(list.created),
        "created_s": list.created,
        "listed": list.listed().len(),
        "revoked": list.revoked().len(),
        "signer": signer.map(|key| key.to_string()),
    })
}

fn print_list(list: &List, signer: Option<PublicKey>) {
    let name = escape(list.name.as_bytes());
    println!(
        "list {name}, serial {}, made {}",
        list.serial,
        show::time(list.created)
    );
    println!(
        "{} listed, {} revoked",
        list.listed().len(),
        list.revoked().len()
    );
    match signer {
        Some(key) => println!("signed by {key}"),
        None => println!("not signed"),
    }
}
