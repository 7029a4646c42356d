//! Manual pages of a program, from its own command line: they cannot differ from what it takes.

use std::fs::File;
use std::io;
use std::path::Path;

/// Writes a page for the command and for each of its subcommands that help shows, as
/// `NAME-SUBCOMMAND.8`, into this folder.
///
/// # Errors
/// A page cannot be written.
pub fn write(mut command: clap::Command, folder: &Path) -> io::Result<()> {
    command.build();
    write_page(&command, folder)
}

fn write_page(command: &clap::Command, folder: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let mut page = File::create(folder.join(format!("{name}.8")))?;
    clap_mangen::Man::new(command.clone())
        .section("8")
        .render(&mut page)?;
    let shown = |command: &&clap::Command| !command.is_hide_set() && command.get_name() != "help";
    let mut shown = command.get_subcommands().filter(shown);
    shown.try_for_each(|subcommand| write_page(subcommand, folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_for_each_command_that_help_shows() {
        let dir = tempfile::tempdir().unwrap();
        let command = clap::Command::new("it")
            .subcommand(clap::Command::new("run").about("Does it."))
            .subcommand(clap::Command::new("secret").hide(true));
        write(command, dir.path()).unwrap();
        let page = std::fs::read_to_string(dir.path().join("it-run.8")).unwrap();
        assert!(page.contains("Does it."), "{page}");
        assert_eq!(dir.path().read_dir().unwrap().count(), 2);
    }
}
