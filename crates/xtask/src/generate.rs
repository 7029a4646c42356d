//! `./x gen`: turns `proto/` into the committed code under `crates/proto/src/generated/`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const FILES: [&str; 7] = [
    "types", "link", "enrol", "engine", "admin", "fleet", "store",
];

/// Generates the code; with `check`, only compares it with what is committed.
pub(crate) fn run(check: bool) -> Result<()> {
    // At run time: another checkout may have built this program.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").context("not run by cargo")?;
    let root = Path::new(&package).join("../..");
    let committed = root.join("crates/proto/src/generated");
    let out = if check {
        std::env::temp_dir().join(format!("lazaret-gen-{}", std::process::id()))
    } else {
        committed.clone()
    };
    std::fs::create_dir_all(&out)?;
    generate(&root, &out)?;
    if check {
        let name = "lazaret.v1.rs";
        let fresh = std::fs::read(out.join(name))?;
        let old = std::fs::read(committed.join(name)).context("no generated code committed")?;
        std::fs::remove_dir_all(&out)?;
        ensure!(
            fresh == old,
            "crates/proto/src/generated is stale: run `./x gen`"
        );
    }
    Ok(())
}

fn generate(root: &Path, out: &Path) -> Result<()> {
    let files: Vec<PathBuf> = FILES
        .iter()
        .map(|name| PathBuf::from(format!("lazaret/v1/{name}.proto")))
        .collect();
    let descriptors = protox::compile(files, [root.join("proto")])?;
    prost_build::Config::new()
        .bytes([
            ".lazaret.v1.Data.bytes",
            ".lazaret.v1.Check.content",
            ".lazaret.v1.ScanJob.content",
            ".lazaret.v1.AllowlistPart.bytes",
            ".lazaret.v1.FilterPart.bytes",
            ".lazaret.v1.FilterReport.report",
            ".lazaret.v1.PartialContent.report",
        ])
        .out_dir(out)
        .compile_fds(descriptors)?;
    Ok(())
}
