//! YARA-X's PE module, run once for a file however many parts of the rule set need it, each of
//! which gets no more than it reads: YARA-X makes structures of all that it is given.
//!
//! What is asked most often of ordinary programs is told without it ([`ordinary`]). The module
//! itself is never asked again for the same bytes, but before rules that read of it are run it has
//! to be asked for each file: it keeps an import hash and a checksum for the thread until then.

mod ordinary;

use md5::{Digest, Md5};
use readplan::Hits;
use yara_x::Scanner;
use yara_x::mods::PE;
use yara_x::mods::pe::{DirEntry, Export, Import, KeyValue, Resource, Section, Signature};
use yara_x_parser::ast::dfs::{DFSEvent, DFSIter};
use yara_x_parser::ast::{AST, Expr};

use ordinary::Reading;

/// Which lists of the module's output some rules read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Needs {
    /// Anything at all.
    any: bool,
    imports: bool,
    exports: bool,
    resources: bool,
    signatures: bool,
    version_info: bool,
    /// The section table and the data directories.
    tables: bool,
}

impl Needs {
    const ALL: Self = Self {
        any: true,
        imports: true,
        exports: true,
        resources: true,
        signatures: true,
        version_info: true,
        tables: true,
    };

    /// Of the rules of this source.
    pub(crate) fn of(source: &[u8]) -> Self {
        let ast = AST::from(source);
        let mut needs = Self::default();
        for rule in ast.rules() {
            needs = needs.and(Self::of_condition(&rule.condition));
        }
        needs
    }

    fn of_condition(condition: &Expr<'_>) -> Self {
        let is_module = |expr: &Expr<'_>| matches!(expr, Expr::Ident(name) if name.name == "pe");
        let mut needs = Self::default();
        // Every mention of the module has to be part of something that is understood.
        let (mut mentioned, mut understood) = (0, 0);
        for event in DFSIter::new(condition) {
            match event {
                DFSEvent::Enter(expr) if is_module(expr) => mentioned += 1,
                DFSEvent::Enter(Expr::FieldAccess(access)) if is_module(access.first()) => {
                    if let Some(Expr::Ident(field)) = access.operands().nth(1) {
                        understood += 1;
                        needs = needs.and(Self::of_member(field.name));
                    }
                }
                DFSEvent::Enter(Expr::FuncCall(call)) => {
                    if call.object.as_ref().is_some_and(is_module) {
                        understood += 1;
                        needs = needs.and(Self::of_member(call.identifier.name));
                    }
                }
                DFSEvent::Enter(_) | DFSEvent::Leave(_) => {}
            }
        }
        match mentioned == understood {
            true => needs,
            false => Self::ALL,
        }
    }

    /// What a field or function of the module reads; everything where it is not among these.
    fn of_member(name: &str) -> Self {
        let mut needs = Self {
            any: true,
            ..Self::default()
        };
        match name {
            "imphash"
            | "imports"
            | "import_rva"
            | "delayed_import_rva"
            | "import_details"
            | "delayed_import_details" => needs.imports = true,
            "exports" | "exports_index" | "export_details" => needs.exports = true,
            "resources" | "language" | "locale" => needs.resources = true,
            "signatures" => needs.signatures = true,
            "version_info" | "version_info_list" => needs.version_info = true,
            "sections" | "section_index" | "rva_to_offset" | "offset_to_rva"
            | "data_directories" => needs.tables = true,
            "is_pe"
            | "is_dll"
            | "is_32bit"
            | "is_64bit"
            | "is_signed"
            | "machine"
            | "subsystem"
            | "os_version"
            | "subsystem_version"
            | "image_version"
            | "linker_version"
            | "opthdr_magic"
            | "characteristics"
            | "dll_characteristics"
            | "timestamp"
            | "image_base"
            | "checksum"
            | "calculate_checksum"
            | "entry_point"
            | "entry_point_raw"
            | "dll_name"
            | "export_timestamp"
            | "pdb_path"
            | "number_of_sections"
            | "number_of_imported_functions"
            | "number_of_delayed_imported_functions"
            | "number_of_resources"
            | "number_of_version_infos"
            | "number_of_imports"
            | "number_of_delayed_imports"
            | "number_of_exports"
            | "number_of_signatures"
            | "rich_signature"
            | "overlay" => {}
            // Constants are the compiler's.
            name if name.chars().all(|c| !c.is_ascii_lowercase()) => {}
            _ => return Self::ALL,
        }
        needs
    }

    /// With what costs nothing to speak of beside it: so that fewer scanners do.
    pub(crate) fn rounded(mut self) -> Self {
        let heavy = self.exports || self.resources || self.signatures || self.version_info;
        self.imports |= self.any && !heavy;
        self.tables |= self.imports;
        self
    }

    /// Both together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            any: self.any | other.any,
            imports: self.imports | other.imports,
            exports: self.exports | other.exports,
            resources: self.resources | other.resources,
            signatures: self.signatures | other.signatures,
            version_info: self.version_info | other.version_info,
            tables: self.tables | other.tables,
        }
    }
}

/// What is known of one file by the module, or as it would tell it.
#[derive(Default)]
pub(crate) struct Portable {
    /// `None`: not looked at yet; `Some(None)`: it is no ordinary program.
    reading: Option<Option<Reading>>,
    parts: Option<Parts>,
    /// `None`: not asked yet.
    import_hash: Option<Option<String>>,
    told: Told,
}

/// How many numbers were told.
#[derive(Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    #[default]
    None,
    /// Those of an ordinary program.
    Some,
    All,
}

/// The lists apart from the rest.
struct Parts {
    rest: PE,
    imports: Vec<Import>,
    delayed_imports: Vec<Import>,
    exports: Vec<Export>,
    resources: Vec<Resource>,
    signatures: Vec<Signature>,
    version_info: Vec<KeyValue>,
    sections: Vec<Section>,
    directories: Vec<DirEntry>,
}

impl Portable {
    /// Gives the scanner what its rules need of the module, for its next scan, of these bytes.
    pub(crate) fn tell(
        &mut self,
        needs: Needs,
        scanner: &mut Scanner<'_>,
        bytes: &[u8],
    ) -> Result<(), String> {
        // For any other file the module is done in no time.
        if !needs.any || !bytes.starts_with(b"MZ") {
            return Ok(());
        }
        let Some(parts) = self.parts(bytes) else {
            return Ok(());
        };
        scanner
            .set_module_output(Box::new(parts.message(needs)))
            .map(drop)
            .map_err(|error| format!("PE module: {error}"))
    }

    fn parts(&mut self, bytes: &[u8]) -> Option<&Parts> {
        if self.parts.is_none() {
            self.parts = yara_x::mods::invoke::<PE>(bytes).map(|pe| Parts::of(*pe));
        }
        self.parts.as_ref()
    }

    /// Tells fields that conditions compare with numbers, as far as they are known; whether there
    /// are any that were not told yet.
    pub(crate) fn tell_numbers(&mut self, hits: &Hits) -> bool {
        let tell = |(field, value): &(&'static str, _)| hits.tell_number(field, *value);
        if let Some(parts) = self.parts.as_ref().filter(|_| self.told < Told::All) {
            parts.numbers().iter().for_each(tell);
            self.told = Told::All;
            return true;
        }
        let reading = self.reading.as_ref().and_then(Option::as_ref);
        if let Some(reading) = reading.filter(|_| self.told < Told::Some) {
            reading.numbers.iter().for_each(tell);
            self.told = Told::Some;
            return true;
        }
        false
    }

    /// Finds out more, what is cheap first, if the file is a program; whether there was anything.
    pub(crate) fn learn(&mut self, bytes: &[u8]) -> bool {
        self.told < Told::All
            && bytes.starts_with(b"MZ")
            && (self.told == Told::None && self.reading(bytes).is_some()
                || self.parts(bytes).is_some())
    }

    fn reading(&mut self, bytes: &[u8]) -> Option<&Reading> {
        let reading = self.reading.get_or_insert_with(|| ordinary::read(bytes));
        reading.as_ref()
    }

    /// What `pe.imphash()` is for these bytes; `None`: undefined.
    pub(crate) fn import_hash(&mut self, bytes: &[u8]) -> Option<&str> {
        if self.import_hash.is_none() {
            let told = self.reading(bytes).map(|told| told.import_hash.clone());
            self.import_hash = Some(match (told, bytes.starts_with(b"MZ")) {
                (Some(told), _) => Some(told),
                (None, true) => self.parts(bytes).and_then(Parts::import_hash),
                (None, false) => None,
            });
        }
        self.import_hash.as_ref()?.as_deref()
    }
}

/// As YARA-X makes it of what its module found: MD5 of all functions' names with those of their
/// libraries, in lower case.
#[derive(Default)]
struct ImportHash {
    hasher: Md5,
    /// Of the library whose functions come.
    library: String,
    has_some: bool,
}

impl ImportHash {
    /// The functions to come are of this library.
    fn begin(&mut self, library: &str) {
        self.library = without_extension(library).to_lowercase();
    }

    fn add(&mut self, function: &str) {
        if std::mem::replace(&mut self.has_some, true) {
            self.hasher.update(b",");
        }
        self.hasher.update(&self.library);
        self.hasher.update(b".");
        self.hasher.update(function.to_lowercase());
    }

    fn finish(self) -> String {
        let digest = self.hasher.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Parts {
    fn of(mut pe: PE) -> Self {
        let take = std::mem::take::<Vec<Import>>;
        Self {
            imports: take(&mut pe.import_details),
            delayed_imports: take(&mut pe.delayed_import_details),
            exports: std::mem::take(&mut pe.export_details),
            resources: std::mem::take(&mut pe.resources),
            signatures: std::mem::take(&mut pe.signatures),
            version_info: std::mem::take(&mut pe.version_info_list),
            sections: std::mem::take(&mut pe.sections),
            directories: std::mem::take(&mut pe.data_directories),
            rest: pe,
        }
    }

    fn import_hash(&self) -> Option<String> {
        if !self.rest.is_pe() {
            return None;
        }
        let mut hash = ImportHash::default();
        for import in &self.imports {
            hash.begin(import.library_name());
            import.functions.iter().for_each(|f| hash.add(f.name()));
        }
        Some(hash.finish())
    }

    /// Fields that conditions compare with numbers; `None`: undefined.
    fn numbers(&self) -> [(&'static str, Option<i64>); 11] {
        let pe = &self.rest;
        let overlay = pe.overlay.as_ref();
        [
            ("timestamp", pe.timestamp.map(i64::from)),
            ("characteristics", pe.characteristics.map(i64::from)),
            ("checksum", pe.checksum.map(i64::from)),
            ("entry_point", pe.entry_point.map(i64::from)),
            ("number_of_sections", pe.number_of_sections.map(i64::from)),
            ("number_of_resources", pe.number_of_resources),
            ("number_of_exports", pe.number_of_exports),
            ("number_of_imports", pe.number_of_imports),
            ("number_of_version_infos", pe.number_of_version_infos),
            ("overlay.offset", overlay.and_then(|o| o.offset)),
            ("overlay.size", overlay.and_then(|o| o.size)),
        ]
    }

    fn message(&self, needs: Needs) -> PE {
        let mut pe = self.rest.clone();
        if needs.imports {
            pe.import_details.clone_from(&self.imports);
            pe.delayed_import_details.clone_from(&self.delayed_imports);
        }
        if needs.exports {
            pe.export_details.clone_from(&self.exports);
        }
        if needs.resources {
            pe.resources.clone_from(&self.resources);
        }
        if needs.signatures {
            pe.signatures.clone_from(&self.signatures);
        }
        if needs.version_info {
            pe.version_info_list.clone_from(&self.version_info);
        } else {
            pe.version_info.clear();
        }
        if needs.tables {
            pe.sections.clone_from(&self.sections);
            pe.data_directories.clone_from(&self.directories);
        }
        pe
    }
}

fn without_extension(library: &str) -> &str {
    let ends = |extension: &&str| {
        let start = library.len().checked_sub(extension.len())?;
        let end = library.get(start..)?;
        end.eq_ignore_ascii_case(extension).then_some(start)
    };
    let end = [".dll", ".sys", ".ocx"].iter().find_map(ends);
    library
        .get(..end.unwrap_or(library.len()))
        .unwrap_or(library)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(condition: &str) -> Needs {
        let source = format!("import \"pe\" rule r {{ condition: {condition} }}");
        Needs::of(source.as_bytes())
    }

    #[test]
    fn what_is_read_is_needed() {
        let any = Needs {
            any: true,
            ..Needs::default()
        };
        let imports = Needs {
            imports: true,
            ..any
        };
        assert_eq!(needs("filesize < 10"), Needs::default());
        assert_eq!(needs("pe.is_pe and pe.machine == pe.MACHINE_I386"), any);
        assert_eq!(needs("pe.imphash() == \"x\""), imports);
        assert_eq!(needs("pe.imports(\"a.dll\", \"b\") == 1"), imports);
        assert_eq!(
            needs("for any i in (1..pe.number_of_signatures) : (pe.signatures[i].serial == \"x\")"),
            Needs {
                signatures: true,
                ..any
            }
        );
        assert_eq!(
            needs("for any s in pe.sections : (s.name == \"x\")"),
            Needs {
                tables: true,
                ..any
            }
        );
        assert_eq!(needs("pe.rich_signature.toolid(1) > 0"), any);
    }

    #[test]
    fn what_is_not_understood_needs_everything() {
        assert_eq!(needs("pe.something_new == 1"), Needs::ALL);
        assert_eq!(needs("with p = pe : (p.timestamp > 1)"), Needs::ALL);
    }
}
