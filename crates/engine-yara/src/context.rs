//! What rules may read beside the bytes: the five external variables of THOR and LOKI, which
//! rule sets such as signature-base expect. All are strings, empty where unknown.
//!
//! | variable | is | such as |
//! |---|---|---|
//! | `filename` | last component of the path | `evil.EXE` |
//! | `filepath` | the path without it, no slash at its end | `/var/log` |
//! | `extension` | from the last dot of the name on, lower case | `.exe` |
//! | `filetype` | from the first bytes, see [`file_type`] | `EXE` |
//! | `owner` | `root`, or the user id in digits (names are known to the guest only) | `1000` |
//!
//! A member of a container is named by its path inside, appended to that of the container; its
//! owner is the container's.

use proto::v1;
use yara_x::{Compiler, Scanner};
use yara_x_parser::ast::dfs::{DFSEvent, DFSIter};
use yara_x_parser::ast::{AST, Expr};

/// Those that the bytes do not determine.
const CONTEXT: [&str; 4] = ["filename", "filepath", "extension", "owner"];

/// Which of them some rule reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reads {
    /// One that the bytes do not determine: a verdict holds for bytes and context only.
    context: bool,
    /// `filetype`, which the bytes do determine.
    file_type: bool,
}

impl Reads {
    /// Verdicts depend on more than the bytes.
    pub(crate) fn any(self) -> bool {
        self.context
    }

    /// Notes what the rules of this source read. Names that mean something else in a rule (a loop
    /// variable called `owner`) count too, which costs cache hits and no soundness.
    pub(crate) fn add(&mut self, source: &[u8]) {
        let ast = AST::from(source);
        for rule in ast.rules() {
            self.add_expression(&rule.condition);
        }
    }

    // Not by Expr::children(), which leaves out ranges, quantifiers, anchors and declarations.
    fn add_expression(&mut self, condition: &Expr<'_>) {
        // `x.owner` is a field of x, whatever it is called.
        let mut fields: Vec<&Expr<'_>> = Vec::new();
        for event in DFSIter::new(condition) {
            match event {
                DFSEvent::Enter(Expr::FieldAccess(access)) => {
                    fields.extend(access.operands().skip(1));
                }
                DFSEvent::Enter(expression @ Expr::Ident(name)) => {
                    if fields.iter().any(|field| std::ptr::eq(*field, expression)) {
                        continue;
                    }
                    self.file_type |= name.name == "filetype";
                    self.context |= CONTEXT.contains(&name.name);
                }
                DFSEvent::Enter(_) | DFSEvent::Leave(_) => {}
            }
        }
    }
}

/// Lets rules use the variables.
pub(crate) fn define(compiler: &mut Compiler<'_>) -> Result<(), Vec<String>> {
    for name in CONTEXT.into_iter().chain(["filetype"]) {
        compiler
            .define_global(name, "")
            .map_err(|error| vec![format!("variable {name}: {error}")])?;
    }
    Ok(())
}

/// The names of one file.
pub(crate) struct Names {
    path: Vec<u8>,
    owner: String,
}

impl Names {
    pub(crate) fn of(context: Option<&v1::FileContext>) -> Self {
        Self {
            path: context.map(|c| c.path.clone()).unwrap_or_default(),
            owner: match context.map(|c| c.uid) {
                None => String::new(),
                Some(0) => "root".to_owned(),
                Some(uid) => uid.to_string(),
            },
        }
    }

    /// The names of a file of which the path alone is known.
    pub(crate) fn of_path(path: &[u8]) -> Self {
        Self {
            path: path.to_vec(),
            owner: String::new(),
        }
    }

    /// The file's name, where it is known.
    pub(crate) fn name(&self) -> Option<&[u8]> {
        let (_, name) = split(&self.path);
        (!name.is_empty()).then_some(name)
    }

    /// Tells the scanner about the file, or its member at `path_inside`. Does nothing where no
    /// rule asks.
    pub(crate) fn tell(
        &self,
        reads: Reads,
        scanner: &mut Scanner<'_>,
        path_inside: &[Vec<u8>],
        bytes: &[u8],
    ) -> Result<(), String> {
        let mut set = |name, value: &[u8]| {
            let told = scanner.set_global(name, value);
            told.map(|_| ())
                .map_err(|e| format!("variable {name}: {e}"))
        };
        if reads.file_type {
            set("filetype", file_type(bytes).as_bytes())?;
        }
        if reads.context {
            let mut path = self.path.clone();
            for component in path_inside {
                path.push(b'/');
                path.extend_from_slice(component);
            }
            let (folder, name) = split(&path);
            set("filepath", folder)?;
            set("filename", name)?;
            set("extension", &extension(name))?;
            set("owner", self.owner.as_bytes())?;
        }
        Ok(())
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn extension(name: &[u8]) -> Vec<u8> {
    let dot = name.iter().rposition(|byte| *byte == b'.');
    let extension = dot.map_or(&b""[..], |dot| &name[dot..]);
    extension.to_ascii_lowercase()
}

/// The type by its first bytes, in the words that THOR and LOKI use; empty for what is not among
/// these few. Rules use it to find programs that are called pictures.
fn file_type(bytes: &[u8]) -> &'static str {
    const MAGIC: [(&[u8], &str); 22] = [
        (b"MZ", "EXE"),
        (b"\x7fELF", "ELF"),
        (b"\xfe\xed\xfa\xce", "MACH-O"),
        (b"\xfe\xed\xfa\xcf", "MACH-O"),
        (b"\xce\xfa\xed\xfe", "MACH-O"),
        (b"\xcf\xfa\xed\xfe", "MACH-O"),
        (b"%PDF-", "PDF"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"\xff\xd8\xff", "JPG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"PK\x03\x04", "ZIP"),
        (b"Rar!\x1a\x07", "RAR"),
        (b"7z\xbc\xaf\x27\x1c", "7ZIP"),
        (b"\x1f\x8b", "GZIP"),
        (b"BZh", "BZIP2"),
        (b"MSCF", "CAB"),
        (b"{\\rtf", "RTF"),
        (b"MDMP", "MDMP"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "OLE"),
        (b"<?php", "PHP"),
        (b"L\0\0\0\x01\x14\x02\0", "LNK"),
    ];
    let found = MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic));
    found.map_or("", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(condition: &str) -> Reads {
        let source = format!(
            "rule r {{ meta: owner = \"x\" strings: $filename = \"filename\" \
             condition: {condition} }} // filepath"
        );
        let mut reads = Reads::default();
        reads.add(source.as_bytes());
        reads
    }

    #[test]
    fn reading_the_context_is_seen_wherever_it_happens() {
        for condition in [
            "filename == \"a\"",
            "$filename and not (true or filepath contains \"x\")",
            "for any i in (1..2) : (extension == \".exe\")",
            "for any of them : (owner == \"root\")",
            "with x = filename : (x == \"a\")",
            "hash.md5(filename) == \"\"",
            "$filename in (0..owner)",
            "$filename at filepath",
            "owner of them",
            "any of ((owner == \"root\"), false)",
            "for any x in (owner, filename) : (x == \"\")",
            "for any x in filename : (x == 1)",
            "x[owner] == 1",
            "filename.field == 1",
            "x.call(filename).y == 1",
            "@filename[owner] == 1",
        ] {
            assert!(reads(condition).any(), "{condition}");
        }
    }

    #[test]
    fn strings_comments_patterns_and_fields_are_not_context() {
        for condition in [
            "$filename",
            "#filename > 1 and @filename[1] == 2",
            "pe.owner == 1",
            "\"filename\" == \"owner\"",
            "filesize < 10",
        ] {
            assert!(!reads(condition).any(), "{condition}");
        }
        let file_type = reads("filetype == \"EXE\"");
        assert!(file_type.file_type && !file_type.any());
    }

    #[test]
    fn paths_are_split_as_thor_does() {
        let check = |path: &[u8], folder: &[u8], name: &[u8], ext: &[u8]| {
            assert_eq!(split(path), (folder, name));
            assert_eq!(extension(name), ext);
        };
        check(b"/var/log/x.Tar.GZ", b"/var/log", b"x.Tar.GZ", b".gz");
        check(b"x", b"", b"x", b"");
        check(b"/x.", b"", b"x.", b".");
        check(b"", b"", b"", b"");
        check(b"/a\xff/\n.\xff", b"/a\xff", b"\n.\xff", b".\xff");
    }
}
