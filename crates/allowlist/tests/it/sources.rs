//! What lists are made of: folders, dpkg's database, lists of digests.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use allowlist::{Builder, Digest, Error};
use sha2::{Digest as _, Sha256};

use crate::digest;

const SUMS: &str = "var/lib/dpkg/info/tool:amd64.md5sums";

#[test]
fn a_folder_without_links_and_pipes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir(root.join("deep")).unwrap();
    fs::write(root.join("deep/a"), "one").unwrap();
    fs::write(root.join("b"), "two").unwrap();
    fs::write(root.join("empty"), "").unwrap();
    symlink("/etc/passwd", root.join("link")).unwrap();
    symlink("/etc", root.join("folder-link")).unwrap();
    let mut builder = Builder::new().one_file_system(true);
    builder.directory(root).unwrap();
    assert_eq!(builder.differing(), []);
    let list = builder.finish("x", 1, 7).unwrap();
    let mut expected = [
        *blake3::hash(b"one").as_bytes(),
        *blake3::hash(b"two").as_bytes(),
    ];
    expected.sort_unstable();
    assert_eq!(list.listed(), expected);
}

/// A dpkg database with one file as packaged, one changed, one missing.
fn dpkg_root(root: &Path) {
    fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::write(root.join("usr/bin/good"), "abc").unwrap();
    fs::write(root.join("usr/bin/changed"), "abd").unwrap();
    let abc = "900150983cd24fb0d6963f7d28e17f72";
    let sums = ["good", "changed", "gone"].map(|name| format!("{abc}  usr/bin/{name}\n"));
    fs::write(root.join(SUMS), sums.concat()).unwrap();
}

#[test]
fn dpkg_files_are_verified() {
    let folder = tempfile::tempdir().unwrap();
    dpkg_root(folder.path());
    let mut builder = Builder::new();
    builder.dpkg(folder.path(), &["tool".to_owned()]).unwrap();
    let paths: Vec<_> = builder
        .differing()
        .iter()
        .map(|it| it.path.strip_prefix(folder.path()).unwrap())
        .collect();
    assert_eq!(
        paths,
        [Path::new("usr/bin/changed"), Path::new("usr/bin/gone")]
    );
    assert_eq!(
        builder.finish("x", 1, 7).unwrap().listed(),
        [*blake3::hash(b"abc").as_bytes()]
    );
    let error = Builder::new()
        .dpkg(folder.path(), &["absent".to_owned()])
        .unwrap_err();
    assert!(matches!(error, Error::Package { .. }), "{error}");
}

#[test]
fn links_lead_about_within_the_root_and_never_out() {
    let folder = tempfile::tempdir().unwrap();
    let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
    dpkg_root(&root);
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("good"), "abc").unwrap();
    // As merged /usr does it, but absolute: `/usr/bin` is that of the root.
    symlink("/usr/bin", root.join("bin")).unwrap();
    symlink(&outside, root.join("out")).unwrap();
    symlink("../../../outside", root.join("up")).unwrap();
    symlink("good", root.join("usr/bin/link")).unwrap();
    let abc = "900150983cd24fb0d6963f7d28e17f72";
    let names = ["bin/good", "out/good", "up/good", "usr/bin/link", "usr/bin"];
    let sums = names.map(|name| format!("{abc}  {name}\n"));
    fs::write(root.join(SUMS), sums.concat()).unwrap();
    let mut builder = Builder::new();
    builder.dpkg(&root, &[]).unwrap();
    let left_out = builder.differing().iter();
    let left_out: Vec<_> = left_out.map(|it| it.path.clone()).collect();
    assert_eq!(
        left_out,
        names[1..].iter().map(|n| root.join(n)).collect::<Vec<_>>()
    );
    assert_eq!(builder.len(), 1);
}

#[test]
fn dpkg_paths_stay_within_the_root() {
    let folder = tempfile::tempdir().unwrap();
    dpkg_root(folder.path());
    let sums = folder.path().join(SUMS);
    fs::write(sums, "900150983cd24fb0d6963f7d28e17f72  ../../etc/passwd\n").unwrap();
    let error = Builder::new().dpkg(folder.path(), &[]).unwrap_err();
    assert!(matches!(error, Error::Line { line: 1, .. }), "{error}");
}

#[test]
fn this_machines_own_packages() {
    if !Path::new("/var/lib/dpkg/info/bash.md5sums").exists() {
        eprintln!("skipped: no dpkg database here");
        return;
    }
    let mut builder = Builder::new();
    builder.dpkg(Path::new("/"), &["bash".to_owned()]).unwrap();
    let list = builder.finish("debian", 1, 7).unwrap();
    let bash = fs::read("/bin/bash").unwrap();
    assert!(list.listed().contains(blake3::hash(&bash).as_bytes()));
}

#[test]
fn digest_lists_say_where_they_are_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sums");
    let hex = allowlist::hex(&digest(1));
    fs::write(&path, format!("# b3sum\n{hex}  some/file\n\n{hex}\n")).unwrap();
    let mut builder = Builder::new();
    builder.digest_list(&path).unwrap();
    fs::write(&path, format!("{hex}\nxyz\n")).unwrap();
    assert!(matches!(
        builder.digest_list(&path),
        Err(Error::Line { line: 2, .. })
    ));
    assert_eq!(builder.finish("x", 1, 7).unwrap().listed(), [digest(1)]);
}

#[test]
fn only_what_is_known_by_sha256_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [("a", "known"), ("b", "known"), ("c", "unknown")] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let known: Digest = Sha256::digest("known").into();
    let mut builder = Builder::new();
    let mut asked = 0;
    builder
        .known(folder.path(), |sums| {
            asked = sums.len();
            assert!(sums.is_sorted());
            Ok::<_, Error>(HashSet::from([known, [7; 32]]))
        })
        .unwrap();
    assert_eq!(asked, 2);
    let listed = builder.finish("x", 1, 7).unwrap();
    assert_eq!(listed.listed(), [*blake3::hash(b"known").as_bytes()]);
    let refused = Builder::new().known(folder.path(), |_| Err(Error::Unsigned));
    assert!(matches!(refused, Err(Error::Unsigned)));
}
