//! SQLite databases that lists are made with: rpm's, and NSRL's. They are only read, and nothing
//! is written beside them: an image may be mounted read-only.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use allowlist::{Builder, Digest, hex, parse_hex};
use anyhow::{Context, bail, ensure};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};

/// Where rpm keeps its database, below a root.
const RPM_FOLDERS: [&str; 2] = ["usr/lib/sysimage/rpm", "var/lib/rpm"];
const RPM_FILE: &str = "rpmdb.sqlite";
/// What older versions of rpm, and SUSE's, keep instead.
const RPM_OTHERS: [(&str, &str); 2] = [("Packages.db", "ndb"), ("Packages", "Berkeley DB")];

fn wait_for<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?
        .block_on(work)
}

/// Adds the files of rpm's database below `root`, of `packages` alone when there are any.
pub(super) fn rpm(builder: &mut Builder, root: &Path, packages: &[String]) -> anyhow::Result<()> {
    let database = rpm_database(root)?;
    // A database that was in use has a log beside it, without which it lacks the latest packages,
    // and with which it can only be opened where a third file can be written.
    let copy = tempfile::tempdir().context("no place for a copy")?;
    for suffix in ["", "-wal"] {
        let mut from = database.clone().into_os_string();
        from.push(suffix);
        let to = copy.path().join(format!("{RPM_FILE}{suffix}"));
        match std::fs::copy(&from, to) {
            Err(error) if suffix.is_empty() || error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| PathBuf::from(from).display().to_string());
            }
            Ok(_) | Err(_) => {}
        }
    }
    let mut names = HashSet::new();
    wait_for(async {
        let options = SqliteConnectOptions::new().filename(copy.path().join(RPM_FILE));
        let mut connection = options.disable_statement_logging().connect().await?;
        let mut after = i64::MIN;
        // One header at a time: a kernel's has some megabytes.
        loop {
            let next = "SELECT hnum, blob FROM Packages WHERE hnum > ? ORDER BY hnum LIMIT 1";
            let row: Option<(i64, Vec<u8>)> = sqlx::query_as(next)
                .bind(after)
                .fetch_optional(&mut connection)
                .await?;
            let Some((number, header)) = row else {
                break;
            };
            after = number;
            let name = builder.rpm_header(root, &header, packages);
            names.insert(name.with_context(|| format!("package number {number}"))?);
        }
        Ok(connection.close().await?)
    })?;
    match packages.iter().find(|package| !names.contains(*package)) {
        Some(package) => bail!("no package `{package}`"),
        None => Ok(()),
    }
}

fn rpm_database(root: &Path) -> anyhow::Result<PathBuf> {
    let folders = RPM_FOLDERS.map(|folder| root.join(folder));
    if let Some(folder) = folders.iter().find(|it| it.join(RPM_FILE).is_file()) {
        return Ok(folder.join(RPM_FILE));
    }
    for (file, kind) in RPM_OTHERS {
        if let Some(folder) = folders.iter().find(|it| it.join(file).is_file()) {
            bail!(
                "{} is a database of the kind {kind}, which is not read; `rpmdb --rebuilddb` with \
                 `_db_backend sqlite` converts it, or list the folder with --directory",
                folder.join(file).display()
            );
        }
    }
    bail!(
        "neither {} nor {} has an {RPM_FILE}",
        RPM_FOLDERS[0],
        RPM_FOLDERS[1]
    );
}

/// Those of `sums`, SHA-256, that NSRL's database knows, and from no package of a type in
/// `without`.
pub(super) fn nsrl(
    database: &Path,
    sums: &[Digest],
    without: &[String],
) -> anyhow::Result<HashSet<Digest>> {
    ensure!(database.is_file(), "no such file");
    wait_for(async {
        let options = SqliteConnectOptions::new()
            .filename(database)
            .read_only(true)
            // Published once, never changed: no locks, no files beside it.
            .immutable(true)
            .disable_statement_logging();
        let mut connection = options.connect().await?;
        want(&mut connection, sums).await?;
        let found = known(&mut connection, without).await?;
        connection.close().await?;
        Ok(found)
    })
}

/// Puts `sums` into a table of this connection alone; NSRL writes upper-case digits.
async fn want(connection: &mut SqliteConnection, sums: &[Digest]) -> anyhow::Result<()> {
    sqlx::query("CREATE TEMP TABLE wanted (sha256 TEXT PRIMARY KEY) WITHOUT ROWID")
        .execute(&mut *connection)
        .await?;
    let mut all = connection.begin().await?;
    for sum in sums {
        let lower = hex(sum);
        for text in [lower.to_uppercase(), lower] {
            sqlx::query("INSERT OR IGNORE INTO temp.wanted VALUES (?)")
                .bind(text)
                .execute(&mut *all)
                .await?;
        }
    }
    Ok(all.commit().await?)
}

async fn known(
    connection: &mut SqliteConnection,
    without: &[String],
) -> anyhow::Result<HashSet<Digest>> {
    // With the index of its primary key each wanted digest is looked up; without one, FILE (some
    // hundred million rows) is read once.
    let plan: Vec<(i64, i64, i64, String)> =
        sqlx::query_as("EXPLAIN QUERY PLAN SELECT 1 FROM main.FILE WHERE sha256 = 'x'")
            .fetch_all(&mut *connection)
            .await
            .context("no table FILE with a column sha256")?;
    let has_index = plan.iter().any(|(.., step)| step.starts_with("SEARCH"));
    let query = if has_index {
        "SELECT DISTINCT f.sha256, p.application_type FROM temp.wanted w
         CROSS JOIN main.FILE f ON f.sha256 = w.sha256
         LEFT JOIN main.PKG p ON p.package_id = f.package_id"
    } else {
        "SELECT DISTINCT f.sha256, p.application_type FROM main.FILE f
         CROSS JOIN temp.wanted w ON w.sha256 = f.sha256
         LEFT JOIN main.PKG p ON p.package_id = f.package_id"
    };
    let rows: Vec<(String, Option<String>)> = sqlx::query_as(query)
        .fetch_all(connection)
        .await
        .context("no tables FILE and PKG as in RDS version 3")?;
    let (mut found, mut unwanted) = (HashSet::new(), HashSet::new());
    for (sum, kind) in rows {
        let sum = parse_hex(&sum).context("a column sha256 that holds something else")?;
        found.insert(sum);
        let is_unwanted = |it: &String| kind.as_ref().is_some_and(|kind| matches(kind, it));
        if without.iter().any(is_unwanted) {
            unwanted.insert(sum);
        }
    }
    Ok(&found - &unwanted)
}

/// NSRL joins several types with commas.
fn matches(kinds: &str, unwanted: &str) -> bool {
    kinds
        .split(',')
        .any(|kind| kind.trim().eq_ignore_ascii_case(unwanted.trim()))
}
