//! `lazaret allowlist`, as an administrator runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

struct Scene(tempfile::TempDir);

impl Scene {
    /// With a key in `key`.
    fn new() -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        scene.run(&["key", "key"]);
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn lazaret(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_lazaret"))
            .arg("allowlist")
            .args(args)
            .current_dir(self.0.path())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        let output = self.lazaret(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[args, &["--json"]].concat())).unwrap()
    }

    #[track_caller]
    fn fails(&self, args: &[&str], why: &str) {
        let output = self.lazaret(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why), "{args:?}: {said}");
    }

    /// What the list says of content.
    #[track_caller]
    fn state(&self, list: &str, content: &str) -> String {
        let said = self.json(&["inspect", list, "--digest", &blake3(content)]);
        said["digests"][0]["state"].as_str().unwrap().to_owned()
    }
}

fn blake3(content: &str) -> String {
    model::Digest::of(content.as_bytes()).to_string()
}

#[test]
fn from_a_folder_to_a_verified_list() {
    let scene = Scene::new();
    scene.write("image/bin/tool", "tool");
    scene.write("image/empty", "");
    scene.write("outside", "outside");
    std::os::unix::fs::symlink("../outside", scene.path("image/link")).unwrap();
    let public = scene.run(&["key", "key", "--show"]);
    let public = public.trim();
    let build = [
        "build",
        "--directory",
        "image",
        "-o",
        "list",
        "--name",
        "gold",
    ];
    let made = scene.json(&[&build[..], &["--key", "key"]].concat());
    assert_eq!(
        (&made["name"], &made["serial"], &made["listed"]),
        (&"gold".into(), &1.into(), &1.into())
    );
    assert_eq!(scene.state("list", "tool"), "listed");
    assert_eq!(scene.state("list", "outside"), "unknown");
    let verified = scene.json(&["verify", "list", "--trusted", public]);
    assert_eq!(verified["signer"], public);
    // Built again it is the next one; a list that is no list is left alone.
    scene.write("image/new", "new");
    scene.run(&[
        "build",
        "--directory",
        "image",
        "-o",
        "list",
        "--key",
        "key",
    ]);
    assert_eq!(scene.json(&["inspect", "list"])["serial"], 2);
    scene.fails(
        &[&build[..], &["--serial", "2"]].concat(),
        "must be above 2",
    );
    scene.fails(
        &[
            "build",
            "--directory",
            "image",
            "-o",
            "outside",
            "--name",
            "x",
        ],
        "no list",
    );
    scene.fails(
        &["build", "--directory", "gone", "-o", "l", "--name", "x"],
        "gone",
    );
    scene.fails(&["build", "-o", "l", "--name", "x"], "at least one source");
    scene.fails(&["key", "key"], "key: ");
}

#[test]
fn what_is_wrong_with_a_list_is_said() {
    let scene = Scene::new();
    scene.write("image/tool", "tool");
    scene.run(&[
        "build",
        "--directory",
        "image",
        "-o",
        "list",
        "--name",
        "gold",
    ]);
    let public = scene.run(&["key", "key", "--show"]);
    let verify = |list: &str, why: &str| {
        scene.fails(&["verify", list, "--trusted", public.trim()], why);
    };
    verify("list", "list: not signed");
    scene.run(&["sign", "list", "--key", "key"]);
    scene.run(&["verify", "list", "--trusted", public.trim()]);
    scene.run(&["key", "other"]);
    scene.run(&["sign", "list", "--key", "other", "-o", "foreign"]);
    verify("foreign", "which is not trusted here");
    let mut bytes = std::fs::read(scene.path("list")).unwrap();
    std::fs::write(scene.path("cut"), &bytes[..bytes.len() - 10]).unwrap();
    verify("cut", "truncated");
    bytes[120] ^= 1;
    std::fs::write(scene.path("changed"), &bytes).unwrap();
    verify("changed", "changed after signing");
}

#[test]
fn merged_compared_and_revoked() {
    let scene = Scene::new();
    for (folder, content) in [("a", "one"), ("b", "two")] {
        scene.write(&format!("{folder}/file"), content);
        let list = format!("{folder}.list");
        let build = [
            "build",
            "--directory",
            folder,
            "-o",
            &list,
            "--name",
            folder,
        ];
        scene.run(&[&build[..], &["--key", "key"]].concat());
    }
    let (one, two) = (blake3("one"), blake3("two"));
    let revoked = scene.json(&["revoke", "a.list", "--digest", &one, "--key", "key"]);
    assert_eq!(
        (&revoked["serial"], &revoked["listed"]),
        (&2.into(), &0.into())
    );
    scene.write("c.sums", &format!("# again\n{one}  file\n{two}  file\n"));
    scene.run(&[
        "build",
        "--digests",
        "c.sums",
        "-o",
        "c.list",
        "--name",
        "c",
    ]);
    let merge = [
        "merge", "a.list", "b.list", "c.list", "-o", "all", "--name", "all",
    ];
    let merged = scene.json(&merge);
    assert_eq!(
        (&merged["listed"], &merged["revoked"]),
        (&1.into(), &1.into())
    );
    assert_eq!(scene.state("all", "one"), "revoked");
    let difference = scene.json(&["diff", "c.list", "all"]);
    assert_eq!(difference["removed"], Value::from(vec![one.clone()]));
    assert_eq!(difference["revoked"], Value::from(vec![one]));
    assert_eq!(difference["added"], Value::from(Vec::<Value>::new()));
    let public = scene.run(&["key", "key", "--show"]);
    let trusted = [&merge[..], &["--trusted", public.trim()]].concat();
    scene.fails(&trusted, "c.list: not signed");
    scene.write("bad.sums", "zz\n");
    scene.fails(
        &["build", "--digests", "bad.sums", "-o", "x", "--name", "x"],
        "bad.sums, line 1",
    );
}

#[test]
fn package_files_that_differ_are_reported_and_not_listed() {
    let scene = Scene::new();
    let abc = "900150983cd24fb0d6963f7d28e17f72";
    let sums = format!("{abc}  usr/good\n{abc}  usr/changed\n");
    scene.write("root/var/lib/dpkg/info/tool.md5sums", &sums);
    scene.write("root/usr/good", "abc");
    scene.write("root/usr/changed", "abd");
    let build = [
        "build", "--dpkg", "root", "-o", "list", "--name", "packages",
    ];
    let made = scene.json(&build);
    assert_eq!(made["listed"], 1);
    assert_eq!(made["left_out"][0]["path"], "root/usr/changed");
    assert_eq!(scene.state("list", "abd"), "unknown");
    let strict = [
        "build", "--dpkg", "root", "-o", "strict", "--name", "x", "--strict",
    ];
    scene.fails(&strict, "1 files were left out; no list was made");
    assert!(!scene.path("strict").exists());
    scene.fails(
        &[&build[..], &["--package", "gone"]].concat(),
        "no package `gone`",
    );
}

fn run(program: &str, args: &[&str], folder: &Path) -> bool {
    let output = Command::new(program)
        .args(args)
        .current_dir(folder)
        .output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program}: {said}");
    true
}

const SPEC: &str = "Name: tool
Version: 1
Release: 1
Summary: a test
License: MIT
BuildArch: noarch
%description
A test.
%install
mkdir -p %{buildroot}/usr/bin %{buildroot}/etc
printf good > %{buildroot}/usr/bin/good
printf 'as packaged' > %{buildroot}/usr/bin/changed
printf 'as packaged' > %{buildroot}/usr/bin/gone
: > %{buildroot}/etc/empty
ln -s good %{buildroot}/usr/bin/link
%files
/usr/bin/*
/etc/empty
%ghost /var/log/tool.log
";

/// Needs rpm and rpmbuild (Debian's package `rpm`, which ./x installs).
#[test]
fn a_real_rpm_database() {
    let scene = Scene::new();
    scene.write("tool.spec", SPEC);
    let folder = scene.0.path();
    let top = format!("_topdir {}", scene.path("top").display());
    run("rpmbuild", &["-bb", "--define", &top, "tool.spec"], folder);
    std::fs::create_dir(scene.path("root")).unwrap();
    let (root, package) = (scene.path("root"), "top/RPMS/noarch/tool-1-1.noarch.rpm");
    let package = scene.path(package);
    let install = [
        "--root",
        root.to_str().unwrap(),
        "--dbpath",
        "/usr/lib/sysimage/rpm",
        "-i",
        "--nodeps",
        package.to_str().unwrap(),
    ];
    run("rpm", &install, folder);
    scene.write("root/usr/bin/changed", "by somebody");
    std::fs::remove_file(scene.path("root/usr/bin/gone")).unwrap();
    let database = scene.path("root/usr/lib/sysimage/rpm");
    let files = || std::fs::read_dir(&database).unwrap().count();
    let before = files();
    let build = ["build", "--rpm", "root", "-o", "list", "--name", "packages"];
    let made = scene.json(&build);
    assert_eq!(files(), before, "nothing is written beside the database");
    assert_eq!(made["listed"], 1, "{made}");
    let left_out: Vec<_> = made["left_out"].as_array().unwrap().iter().collect();
    let paths: Vec<_> = left_out
        .iter()
        .map(|it| it["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["root/usr/bin/changed", "root/usr/bin/gone"]);
    assert_eq!(scene.state("list", "good"), "listed");
    scene.fails(
        &[&build[..], &["--package", "gone"]].concat(),
        "no package `gone`",
    );
    scene.write(
        "root/usr/lib/sysimage/rpm/rpmdb.sqlite",
        "not a database, by far",
    );
    scene.fails(&build, "root: rpm's database");
    std::fs::remove_dir_all(&database).unwrap();
    scene.fails(&build, "has an rpmdb.sqlite");
    scene.write("root/var/lib/rpm/Packages", "x");
    scene.fails(&build, "of the kind Berkeley DB");
}

/// A database as NSRL publishes it, with or without its index.
fn nsrl(path: &Path, key: &str, contents: &[(&str, &str)]) {
    use sha2::{Digest as _, Sha256};
    use sqlx::{ConnectOptions as _, Connection as _};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true);
        let mut connection = options.connect().await.unwrap();
        let schema = format!(
            "CREATE TABLE FILE (sha256 VARCHAR NOT NULL, sha1 VARCHAR NOT NULL, md5 VARCHAR NOT
             NULL, crc32 VARCHAR NOT NULL, file_name VARCHAR NOT NULL, file_size INTEGER NOT NULL,
             package_id INTEGER NOT NULL {key});
             CREATE TABLE PKG (package_id INTEGER NOT NULL, name VARCHAR NOT NULL,
             application_type VARCHAR NOT NULL);"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(schema))
            .execute(&mut connection)
            .await
            .unwrap();
        for (id, (content, kind)) in contents.iter().enumerate() {
            let sum = allowlist::hex(&Sha256::digest(content)).to_uppercase();
            sqlx::query("INSERT INTO FILE VALUES (?, '', '', '', 'f', 1, ?)")
                .bind(sum)
                .bind(id as i64)
                .execute(&mut connection)
                .await
                .unwrap();
            sqlx::query("INSERT INTO PKG VALUES (?, 'p', ?)")
                .bind(id as i64)
                .bind(*kind)
                .execute(&mut connection)
                .await
                .unwrap();
        }
        connection.close().await.unwrap();
    });
}

#[test]
fn nsrl_says_which_files_are_known() {
    let scene = Scene::new();
    for content in ["office", "tool", "both", "unknown"] {
        scene.write(&format!("image/{content}"), content);
    }
    let known = [
        ("office", "Word Processor"),
        ("tool", "Security,Hacker Tool"),
        ("both", "Word Processor"),
        ("both", "Steganography"),
        ("elsewhere", "Game"),
    ];
    let key = ", CONSTRAINT PK_FILE__FILE PRIMARY KEY (sha256, sha1, md5, crc32, file_name,
               file_size, package_id)";
    nsrl(&scene.path("indexed.db"), key, &known);
    nsrl(&scene.path("plain.db"), "", &known);
    for database in ["indexed.db", "plain.db"] {
        let list = format!("{database}.list");
        let build = ["build", "--known", "image", "--nsrl", database, "-o", &list];
        let made = scene.json(&[&build[..], &["--name", "nsrl"]].concat());
        assert_eq!(made["listed"], 1, "{database}");
        assert_eq!(scene.state(&list, "office"), "listed");
        let all = ["--nsrl-without", "Spyware", "--name", "nsrl"];
        assert_eq!(scene.json(&[&build[..], &all].concat())["listed"], 3);
    }
    scene.write(
        "sums",
        &allowlist::hex(&<sha2::Sha256 as sha2::Digest>::digest("unknown")),
    );
    let build = ["build", "--known", "image", "-o", "l", "--name", "n"];
    let made = scene.json(&[&build[..], &["--sha256", "sums"]].concat());
    assert_eq!(made["listed"], 1);
    assert_eq!(scene.state("l", "unknown"), "listed");
    scene.fails(&[&build[..], &["--nsrl", "key"]].concat(), "key: NSRL");
    scene.fails(&[&build[..], &["--nsrl", "gone"]].concat(), "no such file");
}
