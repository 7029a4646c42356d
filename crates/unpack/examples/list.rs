//! Lists what is inside files, as engines see it: `cargo run --release -p unpack --example list --
//! FILE…`. One line for each member (bytes, path), then what was not shown and why.

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use unpack::{Budget, Format, Limits, Summary};

fn main() -> ExitCode {
    let mut failed = false;
    for path in std::env::args_os().skip(1) {
        match std::fs::read(&path) {
            Ok(content) => report(Path::new(&path), &content),
            Err(error) => {
                eprintln!("{}: {error}", path.display());
                failed = true;
            }
        }
    }
    ExitCode::from(u8::from(failed))
}

fn report(path: &Path, content: &[u8]) {
    let format = Format::detect(content).map(|format| format.to_string());
    let format = format.as_deref().unwrap_or("no container");
    println!("{} ({} bytes, {format})", path.display(), content.len());
    let summary = list(path, content);
    println!("  {} members, {} bytes", summary.members, summary.bytes);
    if let Some(incomplete) = summary.incomplete {
        let place = shown(&incomplete.path);
        println!(
            "  INCOMPLETE {:?} at [{place}]: {}",
            incomplete.kind, incomplete.detail
        );
    }
}

fn list(path: &Path, content: &[u8]) -> Summary {
    let name = path.file_name().map(OsStrExt::as_bytes);
    let budget = &mut Budget::unlimited();
    unpack::walk(content, name, &Limits::default(), budget, &mut |member| {
        println!("  {:>10} {}", member.bytes.len(), shown(member.path));
        ControlFlow::Continue(())
    })
}

/// A path inside, its bytes made harmless for a terminal.
fn shown(path: &[Vec<u8>]) -> String {
    let names = path.iter().map(|name| name.escape_ascii().to_string());
    names.collect::<Vec<_>>().join(" > ")
}
