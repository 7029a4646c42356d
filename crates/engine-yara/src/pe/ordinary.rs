//! What is asked of nearly every program for Windows, read without YARA-X's module: numbers of its
//! headers and the functions that it imports. The module reads all tables before it answers, and
//! looks through all names for each exported function.
//!
//! Only *ordinary* programs are read: such as linkers write them, where no field can be taken in
//! two ways. Of others nothing is told here, and the module is asked. So this need not be what the
//! module does with files that are broken or made to deceive; but what is told has to be what the
//! module tells (the tests below, `./x differential`).

use unpack::fields::{u16_le, u32_le};

use super::ImportHash;

const PE: &[u8] = b"PE\0\0";
const MAGIC_32: u16 = 0x10b;
const MAGIC_64: u16 = 0x20b;
/// Entries of the data directory.
const DIRECTORIES: usize = 16;
const SECTIONS_MAX: u16 = 96;
/// Functions of all libraries, and libraries.
const IMPORTS_MAX: usize = 16_384;
const LIBRARY_NAME_MAX: usize = 512;
const FUNCTION_NAME_MAX: usize = 1024;
/// What the module rounds places of sections to.
const SECTOR: u32 = 512;
/// Libraries whose functions have names for the module though they are imported by number.
const NUMBERED: [&str; 3] = ["ws2_32.dll", "wsock32.dll", "oleaut32.dll"];

/// What an ordinary program tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// Fields of the module by their names; `None`: undefined.
    pub(super) numbers: Vec<(&'static str, Option<i64>)>,
    /// As `pe.imphash()` has it.
    pub(super) import_hash: String,
}

/// Reads a program; `None`: it is not an ordinary one.
pub(super) fn read(bytes: &[u8]) -> Option<Reading> {
    let program = Program::of(bytes)?;
    let mut hash = ImportHash::default();
    let libraries = program.imports(&mut hash)?;
    let ends = program.sections.iter().map(Section::end_in_file);
    let overlay = ends.max()?;
    // None begins where the file ends, or behind.
    let (overlay, overlay_size) = match (bytes.len() as u64).checked_sub(overlay) {
        Some(size) if size > 0 => (overlay, size),
        _ => (0, 0),
    };
    let (file, optional) = (program.file_header, program.optional_header);
    let header = |at: usize| program.number(at).map(i64::from);
    let small = |at: usize| program.small(at).map(i64::from);
    let mut numbers = vec![
        ("timestamp", Some(header(file + 4)?)),
        ("characteristics", Some(small(file + 18)?)),
        ("checksum", Some(header(optional + 64)?)),
        ("entry_point", program.place(program.number(optional + 16)?)),
        ("number_of_sections", Some(program.sections.len() as i64)),
        ("number_of_imports", Some(libraries as i64)),
        ("overlay.offset", i64::try_from(overlay).ok()),
        ("overlay.size", i64::try_from(overlay_size).ok()),
    ];
    if program.directory(0)? == 0 {
        numbers.push(("number_of_exports", Some(0)));
    }
    Some(Reading {
        numbers,
        import_hash: hash.finish(),
    })
}

struct Program<'a> {
    bytes: &'a [u8],
    /// Where they start, behind the signature.
    file_header: usize,
    optional_header: usize,
    is_64: bool,
    /// One behind the other in memory.
    sections: Vec<Section>,
}

struct Section {
    /// Relative to the program, in bytes.
    address: u32,
    /// In memory or in the file, whichever is more.
    size: u32,
    offset: u32,
    size_in_file: u32,
}

impl Section {
    fn end_in_file(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.size_in_file)
    }
}

impl<'a> Program<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        if !bytes.starts_with(b"MZ") {
            return None;
        }
        let start = usize::try_from(u32_le(bytes, 0x3c)?).ok()?;
        if bytes.get(start..start.checked_add(4)?)? != PE {
            return None;
        }
        let (file_header, optional_header) = (start + 4, start.checked_add(24)?);
        let is_64 = match u16_le(bytes, optional_header)? {
            MAGIC_32 => false,
            MAGIC_64 => true,
            _ => return None,
        };
        let mut program = Self {
            bytes,
            file_header,
            optional_header,
            is_64,
            sections: Vec::new(),
        };
        let directories = program.directories();
        let has_all = program.number(directories - 4)? == DIRECTORIES as u32;
        let size = usize::from(program.small(file_header + 16)?);
        let alignment = program.number(optional_header + 36)?;
        let end = directories + 8 * DIRECTORIES;
        if !has_all || optional_header + size != end || !alignment.is_power_of_two() {
            return None;
        }
        program.sections = program.read_sections(end)?;
        Some(program)
    }

    /// Those whose headers start at `at`, if they do not overlap in memory.
    fn read_sections(&self, at: usize) -> Option<Vec<Section>> {
        let count = self.small(self.file_header + 2)?;
        if !(1..=SECTIONS_MAX).contains(&count) {
            return None;
        }
        let mut free = 1;
        let of = |number: u16| {
            let at = at + 40 * usize::from(number);
            // The whole header has to be there.
            self.number(at + 36)?;
            let (size, size_in_file) = (self.number(at + 8)?, self.number(at + 16)?);
            let section = Section {
                address: self.number(at + 12)?,
                size: size.max(size_in_file),
                offset: self.number(at + 20)?,
                size_in_file,
            };
            section.offset.checked_add(size_in_file)?;
            let is_aligned = size_in_file == 0 || section.offset.is_multiple_of(SECTOR);
            let is_ordinary = section.address >= free && is_aligned;
            free = section.address.checked_add(section.size)?;
            is_ordinary.then_some(section)
        };
        (0..count).map(of).collect()
    }

    fn number(&self, at: usize) -> Option<u32> {
        u32_le(self.bytes, at)
    }

    fn small(&self, at: usize) -> Option<u16> {
        u16_le(self.bytes, at)
    }

    /// Where the data directory starts.
    fn directories(&self) -> usize {
        self.optional_header + if self.is_64 { 112 } else { 96 }
    }

    /// The address in an entry of the data directory.
    fn directory(&self, index: usize) -> Option<u32> {
        self.number(self.directories() + 8 * index)
    }

    fn section(&self, address: u32) -> Option<&Section> {
        let mut sections = self.sections.iter();
        sections.find(|section| {
            let inside = address.checked_sub(section.address);
            inside.is_some_and(|inside| inside < section.size_in_file)
        })
    }

    /// Where in the file what is at this address would be; `None`: nowhere.
    fn place(&self, address: u32) -> Option<i64> {
        let first = self.sections.first()?;
        if address < first.address {
            return Some(address.into());
        }
        let section = self.section(address)?;
        Some(i64::from(section.offset) + i64::from(address - section.address))
    }

    /// The file from this address on, which lies in a section.
    fn at(&self, address: u32) -> Option<&'a [u8]> {
        let section = self.section(address)?;
        let place = section.offset + (address - section.address);
        self.bytes.get(usize::try_from(place).ok()?..)
    }

    /// Takes all functions that are imported; tells of how many libraries. `None`: of some it
    /// cannot be told how the module calls them.
    fn imports(&self, hash: &mut ImportHash) -> Option<usize> {
        let address = self.directory(1)?;
        if address == 0 {
            return Some(0);
        }
        let descriptors = self.at(address)?;
        let (mut libraries, mut all) = (0, 0);
        for number in 0..IMPORTS_MAX {
            let field = |index: usize| u32_le(descriptors, 20 * number + 4 * index);
            let (names, name, addresses) = (field(0)?, field(3)?, field(4)?);
            if name == 0 || names == 0 && addresses == 0 {
                return Some(libraries);
            }
            let library = text(self.at(name)?, LIBRARY_NAME_MAX)?;
            if library.contains(['"', '*', '<', '>', '?', '|']) {
                return None;
            }
            let thunks = self.at(if names > 0 { names } else { addresses })?;
            let count = self.functions(thunks, library, IMPORTS_MAX - 1 - all, hash)?;
            all += count;
            libraries += usize::from(count > 0);
        }
        None
    }

    /// Takes at most so many functions of one library; tells how many there are.
    fn functions(
        &self,
        thunks: &[u8],
        library: &str,
        most: usize,
        hash: &mut ImportHash,
    ) -> Option<usize> {
        hash.begin(library);
        let size = if self.is_64 { 8 } else { 4 };
        for number in 0..=most {
            let thunk = thunks.get(size * number..size * (number + 1))?;
            let thunk = thunk.iter().rev();
            let thunk = thunk.fold(0, |thunk: u64, byte| thunk << 8 | u64::from(*byte));
            let by_number = 1 << (8 * size - 1);
            if thunk == 0 {
                return Some(number);
            }
            if thunk & by_number == 0 {
                let named = self.at(u32::try_from(thunk).ok()?)?;
                // Two bytes are a hint for the loader.
                hash.add(text(named.get(2..)?, FUNCTION_NAME_MAX)?);
                continue;
            }
            let ordinal = u16::try_from(thunk & !by_number).ok()?;
            let mut numbered = NUMBERED.iter();
            if numbered.any(|name| name.eq_ignore_ascii_case(library)) {
                return None;
            }
            hash.add(&format!("ord{ordinal}"));
        }
        None
    }
}

/// Some visible characters of ASCII, at most so many, in front of a zero.
fn text(bytes: &[u8], most: usize) -> Option<&str> {
    let end = bytes.iter().take(most + 1).position(|byte| *byte == 0)?;
    let text = bytes.get(..end)?;
    let is_plain = !text.is_empty() && text.iter().all(u8::is_ascii_graphic);
    std::str::from_utf8(text).ok().filter(|_| is_plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::{Index, select};
    use yara_x::mods::PE as Output;

    use super::super::Parts;
    use super::*;

    /// Where the only section with content starts, in memory and in the file.
    const ADDRESS: u32 = 0x1000;
    const OFFSET: usize = 0x400;

    /// A library and what is imported of it, by name or number.
    type Import = (&'static str, Vec<Result<&'static str, u16>>);

    /// A program that imports these.
    fn program(is_64: bool, imports: &[Import]) -> Vec<u8> {
        let optional: usize = if is_64 { 112 } else { 96 };
        let mut bytes = vec![0; OFFSET];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"MZ");
        put(0x3c, &[0x40]);
        put(0x40, b"PE\0\0");
        put(0x46, &[2]);
        put(0x48, &1234u32.to_le_bytes());
        put(0x54, &[(optional + 128) as u8, 0, 2, 1]);
        put(0x58, if is_64 { &[0x0b, 2] } else { &[0x0b, 1] });
        put(0x58 + 16, &(ADDRESS + 4).to_le_bytes());
        put(0x58 + 36, &0x200u32.to_le_bytes());
        put(0x58 + optional - 4, &[16]);
        put(0x58 + optional + 8, &ADDRESS.to_le_bytes());
        let section = 0x58 + optional + 128;
        let body = import_section(is_64, imports);
        let size = (body.len() as u32).next_multiple_of(SECTOR);
        for (at, value) in [(8, 40), (12, ADDRESS), (16, size), (20, OFFSET as u32)] {
            put(section + at, &value.to_le_bytes());
        }
        put(section + 40 + 8, &0x3000u32.to_le_bytes());
        put(section + 40 + 12, &0x9000u32.to_le_bytes());
        bytes.extend(body);
        bytes.resize(OFFSET + size as usize, 0);
        bytes.extend(b"behind it");
        bytes
    }

    /// Descriptors, then names and thunks in the order of the libraries.
    fn import_section(is_64: bool, imports: &[Import]) -> Vec<u8> {
        let size = if is_64 { 8 } else { 4 };
        let mut descriptors = Vec::new();
        let mut rest = Vec::new();
        let start = ADDRESS + 20 * (imports.len() as u32 + 1);
        for (library, functions) in imports {
            let mut thunks = Vec::new();
            let mut name = |text: &str| {
                let address = start + rest.len() as u32;
                rest.extend(text.bytes().chain([0]));
                u64::from(address)
            };
            let library = name(library) as u32;
            for function in functions {
                let thunk = match function {
                    // What is in front of it is the hint.
                    Ok(function) => name(function) - 2,
                    Err(number) => 1 << (8 * size - 1) | u64::from(*number),
                };
                thunks.extend(&thunk.to_le_bytes()[..size]);
            }
            thunks.resize(thunks.len() + size, 0);
            let table = start + rest.len() as u32;
            for field in [table, 0, 0, library, table] {
                descriptors.extend(field.to_le_bytes());
            }
            rest.extend(thunks);
        }
        descriptors.resize(descriptors.len() + 20, 0);
        [descriptors, rest].concat()
    }

    /// What the module says, as far as it is read here.
    fn by_module(bytes: &[u8], numbers: &[(&'static str, Option<i64>)]) -> Option<Reading> {
        let parts = Parts::of(*yara_x::mods::invoke::<Output>(bytes)?);
        let all = parts.numbers();
        let told = numbers.iter().filter_map(|(field, _)| {
            let found = all.iter().find(|(name, _)| name == field);
            found.copied()
        });
        Some(Reading {
            numbers: told.collect(),
            import_hash: parts.import_hash()?,
        })
    }

    fn imports() -> impl Strategy<Value = Vec<Import>> {
        let name = select(vec!["CreateFileW", "Sleep", "a", "_x@8", "??0Y@@QAE@XZ"]);
        let function = prop_oneof![4 => name.prop_map(Ok), 1 => (0u16..600).prop_map(Err)];
        let library = select(vec![
            "KERNEL32.dll",
            "odd.OCX",
            "x",
            "ole32.DLL.sys",
            "é.dll",
            "a b",
        ]);
        let library = prop_oneof![8 => library, 1 => select(NUMBERED.to_vec())];
        prop::collection::vec((library, prop::collection::vec(function, 0..5)), 0..5)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn what_is_told_is_what_the_module_tells(
            is_64 in any::<bool>(),
            imports in imports(),
            changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..3),
            cut in prop::option::weighted(0.1, any::<Index>()),
        ) {
            let mut bytes = program(is_64, &imports);
            for (at, byte) in &changes {
                // Where nothing but zeros is they would change nothing.
                let header = 0..0x58 + 112 + 128 + 80;
                let body = OFFSET..bytes.len();
                let at = at.index(header.len() + body.len());
                let at = if at < header.len() { at } else { OFFSET + at - header.len() };
                bytes[at] = *byte;
            }
            bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
            let told = read(&bytes);
            if let Some(told) = &told {
                let expected = by_module(&bytes, &told.numbers);
                prop_assert_eq!(expected.as_ref(), Some(told));
            }
            let is_plain = |(library, functions): &Import| {
                let by_number = functions.iter().any(Result::is_err);
                !by_number && *library != "é.dll" && *library != "a b"
            };
            if changes.is_empty() && cut.is_none() && imports.iter().all(is_plain) {
                prop_assert!(told.is_some(), "an ordinary program");
            }
        }
    }

    #[test]
    fn what_can_be_taken_in_two_ways_is_left_to_the_module() {
        let imports: [Import; 2] = [("a.dll", vec![Ok("F"), Err(7)]), ("b.dll", vec![Ok("G")])];
        let good = program(false, &imports);
        let told = read(&good).expect("ordinary");
        let expected = by_module(&good, &told.numbers);
        assert_eq!(Some(&told), expected.as_ref());
        assert_eq!(told.numbers.len(), 9);
        let check = |at: usize, value: &[u8], what: &str| {
            let mut bytes = good.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            assert_eq!(read(&bytes), None, "{what}");
        };
        let section = 0x58 + 96 + 128;
        check(0x58, &[0], "neither 32 nor 64 bits");
        check(0x54, &[0xd0], "sections that lie over the data directory");
        check(0x58 + 92, &[15], "fewer entries of the data directory");
        check(section + 21, &[5], "a place that the module would round");
        check(section + 40 + 13, &[0x10], "sections that overlap");
        check(0x58 + 96 + 8, &[0x40, 0], "imports in the headers");
        check(OFFSET + 12, &[0x40, 0], "a name in the headers");
        let numbered = program(true, &[("WS2_32.dll", vec![Err(3)])]);
        assert_eq!(read(&numbered), None, "a number that has a name");
    }
}
