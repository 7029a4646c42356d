//! The samples of Debian's `clamav-testfiles`: 44 files that hold or are ClamAV's harmless test
//! program, in many containers.

use std::path::Path;

use crate::walked::walked;

const FOLDER: &str = "/usr/share/clamav-testfiles";

/// Containers on our list: the program is found inside.
const OPENED: [&str; 20] = [
    "clam.7z",
    "clam.bin-be.cpio",
    "clam.bin-le.cpio",
    "clam.bz2.zip",
    "clam.cab",
    "clam.d64.zip",
    "clam.exe.bz2",
    "clam.exe.mbox.base64",
    "clam.exe.mbox.uu",
    "clam.impl.zip",
    "clam.mail",
    "clam.newc.cpio",
    "clam.odc.cpio",
    "clam.ole.doc",
    "clam.pdf",
    "clam.ppt",
    "clam.tar.gz",
    "clam.zip",
    "clam_cache_emax.tgz",
    "clam.exe",
];

/// Executable packers, installers and formats that are not on our list; engines see these files
/// as they are.
const NOT_OPENED: [&str; 24] = [
    "clam-aspack.exe",
    "clam-fsg.exe",
    "clam-mew.exe",
    "clam-nsis.exe",
    "clam-pespin.exe",
    "clam-petite.exe",
    "clam-upack.exe",
    "clam-upx.exe",
    "clam-wwpack.exe",
    "clam-yc.exe",
    "clam.arj",
    "clam.chm",
    "clam.ea05.exe",
    "clam.ea06.exe",
    "clam.exe.binhex",
    "clam.exe.html",
    "clam.exe.rtf",
    "clam.exe.szdd",
    "clam.sis",
    "clam.tnef",
    "clam_IScab_ext.exe",
    "clam_IScab_int.exe",
    "clam_ISmsi_ext.exe",
    "clam_ISmsi_int.exe",
];

#[test]
fn samples_are_opened_down_to_the_program() {
    let folder = Path::new(FOLDER);
    if !folder.is_dir() {
        eprintln!("skipped: {FOLDER} is not there (Debian package clamav-testfiles)");
        return;
    }
    let program = std::fs::read(folder.join("clam.exe")).expect("clam.exe");
    let mut found = Vec::new();
    let mut others = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let content = std::fs::read(&path).expect("a file");
        let walked = walked(&content);
        let holds = content == program || walked.members.iter().any(|(_, bytes)| *bytes == program);
        eprintln!(
            "{name}: {holds} {:?} {:?}",
            walked.paths(),
            walked.incomplete()
        );
        if holds {
            found.push(name)
        } else {
            others.push(name)
        }
    }
    found.sort();
    others.sort();
    let mut opened = OPENED.map(str::to_owned);
    opened.sort();
    let mut not_opened = NOT_OPENED.map(str::to_owned);
    not_opened.sort();
    assert_eq!((found, others), (opened.to_vec(), not_opened.to_vec()));
}
