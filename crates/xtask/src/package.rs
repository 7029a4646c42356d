//! `./x package`: the Debian packages, by dpkg-deb, and their test in a fresh root.

mod install;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use testbed::run;

use crate::cargo::{bin_dir, build_programs, cargo, succeeds};

/// Where a package's parts come from.
struct Recipe {
    name: &'static str,
    /// Programs, from the folder of built programs.
    programs: &'static [&'static str],
    unit: &'static str,
    /// Configuration below /etc/lazaret, from the checkout. dpkg keeps an administrator's changes.
    configuration: &'static [(&'static str, &'static str)],
    /// Folders of configuration.
    folders: &'static [(&'static str, &'static str)],
    /// The program that writes the package's manual pages.
    manual: &'static str,
}

const RECIPES: [Recipe; 2] = [
    Recipe {
        name: "lazaret-agent",
        programs: &["lazaret-agent"],
        unit: "lazaret-agent.service",
        configuration: &[("docs/operators/agent.toml", "agent.toml")],
        folders: &[],
        manual: "lazaret-agent",
    },
    Recipe {
        name: "lazaret-appliance",
        programs: &["lazaret", "lazaret-engine-yara", "lazaret-engine-clamd"],
        unit: "lazaret.service",
        configuration: &[("docs/operators/lazaret.toml", "lazaret.toml")],
        folders: &[("rules", "rules")],
        manual: "lazaret",
    },
];

/// A static agent is built in a folder of its own, or it would take the other's place.
const STATIC_DIR: &str = "static";

/// Builds the packages into `target/package`, and with `test` installs, upgrades and purges them
/// in a fresh root.
pub(crate) fn package(test: bool) -> Result<bool> {
    ensure!(build_programs()?, "the programs do not build");
    let agent = static_agent()?;
    let out = PathBuf::from("target/package");
    std::fs::create_dir_all(&out)?;
    let version = env!("CARGO_PKG_VERSION");
    let mut built = Vec::new();
    for recipe in &RECIPES {
        built.push(build(recipe, &agent, version, &out)?);
    }
    for package in &built {
        println!("{}", package.display());
    }
    if test {
        // The same again under a later version, for the upgrade.
        let later = format!("{version}+later");
        let dir = tempfile::tempdir()?;
        let mut upgraded = Vec::new();
        for recipe in &RECIPES {
            upgraded.push(build(recipe, &agent, &later, dir.path())?);
        }
        install::test(&built, &upgraded)?;
    }
    Ok(true)
}

/// Links the agent without shared libraries. Only the last step differs: the target's own static
/// C library. The toolchain has no musl target; the C library's static form still wants its own
/// modules for names of hosts beyond files and DNS.
pub(crate) fn static_agent() -> Result<PathBuf> {
    let target_dir = bin_dir()?.parent().context("no folder")?.join(STATIC_DIR);
    let mut link = cargo("rustc");
    link.args(["--release", "--package", "agent", "--bin", "lazaret-agent"])
        .args(["--target", "x86_64-unknown-linux-gnu", "--target-dir"])
        .arg(&target_dir)
        .args(["--", "-C", "target-feature=+crt-static"])
        .args(["-C", "strip=symbols"]);
    ensure!(succeeds(&mut link)?, "the static agent does not link");
    let agent = target_dir.join("x86_64-unknown-linux-gnu/release/lazaret-agent");
    let kind = run(Command::new("readelf").arg("-d").arg(&agent))?;
    ensure!(!kind.contains("NEEDED"), "the agent is not static:\n{kind}");
    Ok(agent)
}

fn build(recipe: &Recipe, agent: &Path, version: &str, out: &Path) -> Result<PathBuf> {
    let root = tempfile::tempdir()?;
    let root = root.path();
    std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755))?;
    for program in recipe.programs {
        let from = match *program {
            "lazaret-agent" => agent.to_owned(),
            other => bin_dir()?.join(other),
        };
        let to = place(root, &format!("usr/bin/{program}"), &from, 0o755)?;
        run(Command::new("strip").arg("--strip-unneeded").arg(to))?;
    }
    let unit = Path::new("packaging/systemd").join(recipe.unit);
    place(
        root,
        &format!("lib/systemd/system/{}", recipe.unit),
        &unit,
        0o644,
    )?;
    let mut configuration = Vec::new();
    for (from, to) in recipe.configuration {
        let to = format!("etc/lazaret/{to}");
        place(root, &to, Path::new(from), 0o640)?;
        configuration.push(format!("/{to}"));
    }
    for (from, to) in recipe.folders {
        for entry in Path::new(from).read_dir()? {
            let entry = entry?;
            let name = entry.file_name();
            let to = format!("etc/lazaret/{to}/{}", name.to_string_lossy());
            if entry.file_type()?.is_file() {
                place(root, &to, &entry.path(), 0o644)?;
                configuration.push(format!("/{to}"));
            }
        }
    }
    manual(recipe, agent, root)?;
    let copyright = format!("usr/share/doc/{}/copyright", recipe.name);
    place(
        root,
        &copyright,
        Path::new("packaging/debian/copyright"),
        0o644,
    )?;
    control(recipe, root, version, &configuration)?;
    let package = out.join(format!("{}_{version}_amd64.deb", recipe.name));
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Zxz", "--build"])
        .arg(root)
        .arg(&package))?;
    Ok(package)
}

/// Copies a file to its place below the root.
fn place(root: &Path, to: &str, from: &Path, mode: u32) -> Result<PathBuf> {
    let to = root.join(to);
    let folder = to.parent().context("no folder")?;
    std::fs::create_dir_all(folder)?;
    std::fs::copy(from, &to).with_context(|| format!("cannot package {}", from.display()))?;
    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(mode))?;
    Ok(to)
}

/// The program writes its own manual pages: they cannot differ from what it understands.
fn manual(recipe: &Recipe, agent: &Path, root: &Path) -> Result<()> {
    let folder = root.join("usr/share/man/man8");
    std::fs::create_dir_all(&folder)?;
    let program = match recipe.manual {
        "lazaret-agent" => agent.to_owned(),
        other => bin_dir()?.join(other),
    };
    run(Command::new(program).arg("manual").arg(&folder))?;
    let pages: Vec<PathBuf> = folder
        .read_dir()?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    ensure!(!pages.is_empty(), "{} wrote no manual page", recipe.manual);
    run(Command::new("gzip").args(["-9n"]).args(pages))?;
    Ok(())
}

fn control(recipe: &Recipe, root: &Path, version: &str, configuration: &[String]) -> Result<()> {
    let from = Path::new("packaging/debian").join(recipe.name);
    let text = std::fs::read_to_string(from.join("control"))?;
    let size = run(Command::new("du")
        .args(["-ks", "--apparent-size"])
        .arg(root))?;
    let size = size.split_whitespace().next().context("du says nothing")?;
    let text = text.replacen(
        "Section:",
        &format!("Version: {version}\nArchitecture: amd64\nInstalled-Size: {size}\nSection:"),
        1,
    );
    let debian = root.join("DEBIAN");
    std::fs::create_dir(&debian)?;
    std::fs::write(debian.join("control"), text)?;
    std::fs::write(debian.join("conffiles"), configuration.join("\n") + "\n")?;
    for script in ["postinst", "prerm", "postrm"] {
        place(root, &format!("DEBIAN/{script}"), &from.join(script), 0o755)?;
    }
    Ok(())
}
