//! `lazaret chunks`: what machines are made of, for appliances to compare with. Needs neither a
//! configuration nor a running lazaret.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use daemon::log::escape;
use image_chunks::{Builder, ImageChunks};
use serde_json::json;

use crate::args::Output;
use crate::json;

/// What appliances ask for whole unless they are told otherwise.
const SIZE_MIN_BYTES: u64 = 256 << 10;

#[derive(Debug, Subcommand)]
pub(crate) enum ChunksCommand {
    /// Make a file of the chunks of a golden image, for `chunks.images` of appliances.
    Build(BuildArgs),
    /// Check that such a file is whole, and its index, and show what is in it.
    Inspect {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct BuildArgs {
    /// Every regular file below this folder, such as a mounted golden image, on its file system.
    /// Symbolic links are not followed. May be given more than once.
    #[arg(long, required = true, value_name = "DIR")]
    directory: Vec<PathBuf>,
    /// Leave out files of fewer bytes: the `chunks.size_min_bytes` of the appliances.
    #[arg(long, value_name = "BYTES", default_value_t = SIZE_MIN_BYTES)]
    min_bytes: u64,
    /// Where to. What is there is replaced once the new file is whole.
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(command: &ChunksCommand) -> anyhow::Result<()> {
    match command {
        ChunksCommand::Build(args) => build(args),
        ChunksCommand::Inspect { file, output } => inspect(file, output),
    }
}

fn build(args: &BuildArgs) -> anyhow::Result<()> {
    let mut builder = Builder::create(&args.out)?;
    for folder in &args.directory {
        builder.directory(folder, args.min_bytes, |path, error| {
            eprintln!("lazaret: {}: left out: {error}", shown(path));
        })?;
    }
    let made = builder.finish()?;
    if args.output.json {
        return json::print(&json!({
            "files": made.files,
            "left_out": made.left_out,
            "bytes": made.bytes,
            "chunks": made.chunks,
            "file_bytes": made.file_bytes,
        }));
    }
    println!(
        "{}: {} chunks of {} files ({} bytes), in {} bytes; {} left out",
        shown(&args.out),
        made.chunks,
        made.files,
        made.bytes,
        made.file_bytes,
        made.left_out
    );
    Ok(())
}

fn inspect(file: &Path, output: &Output) -> anyhow::Result<()> {
    let opened = ImageChunks::open(file)?;
    let (chunks, bytes) = (opened.len(), opened.bytes());
    if output.json {
        return json::print(&json!({ "chunks": chunks, "bytes": bytes }));
    }
    println!("{}: {chunks} chunks of {bytes} bytes", shown(file));
    Ok(())
}

fn shown(path: &Path) -> String {
    escape(path.as_os_str().as_bytes()).to_string()
}
