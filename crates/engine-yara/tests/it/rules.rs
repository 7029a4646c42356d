//! Rules that need something in every way, and contents to try them on.

use proptest::prelude::*;
use proptest::sample::select;

/// One rule for each way in which a condition can need something.
pub(crate) const RULES: &str = r#"
import "pe"
import "elf"
import "math"
rule r_text { strings: $a = "long enough to be looked for" condition: $a }
rule r_nocase { strings: $a = "MiXeD case wOrds" nocase condition: $a }
rule r_wide { strings: $a = "wide words here" wide ascii condition: $a }
rule r_fullword { strings: $a = "fullword" fullword condition: $a }
rule xored { strings: $a = "xor this text" xor(1-20) condition: $a }
rule based { strings: $a = "base sixty-four" base64 condition: $a }
rule r_short { strings: $a = "<?" $b = "eval" condition: $a and $b }
rule r_one_of { strings: $a = "first alternative" $b = "ab" $c = { 01 02 } condition: any of them }
rule r_two_of { strings: $a = "number one" $b = "number two" $c = "nr3" condition: 2 of them }
rule r_all_but { strings: $a = "number one" $b = "number two" condition: $a and not $b }
rule r_none_of { strings: $a = "number one" $b = "xyz" condition: none of them and filesize < 40 }
rule counted { strings: $a = "twice" condition: #a >= 2 }
rule at_start { strings: $a = "MZ" condition: $a at 0 and filesize > 3 }
rule in_range { strings: $a = "number one" condition: $a in (0..20) }
rule r_offset { strings: $a = "number two" condition: @a[1] > 10 }
rule r_for_of { strings: $a = "number one" $b = "number two" condition: for any of them : ($ at 0) }
rule r_for_in { strings: $a = "twice" condition: for any i in (1..#a) : (@a[i] > 30) }
rule percent { strings: $a = "number one" $b = "number two" $c = "nr3" condition: 60% of them }
rule jumps { strings: $a = { 4d 5a [2-6] ( 61 | 62 63 ) ?? 0? ~00 } condition: $a }
rule endless { strings: $a = { aa bb cc dd [4-] ee ff 11 22 } condition: $a }
rule r_regex { strings: $a = /ab+c[0-9]{2,4}(x|yz)/ condition: $a }
rule regex_nocase { strings: $a = /start.{0,8}END/is condition: $a }
rule r_module { strings: $a = "number one" condition: $a or pe.is_pe or elf.type == elf.ET_EXEC }
rule imphash { strings: $a = "nr3" condition: uint16(0) == 0x5a4d and (pe.imphash() == "" or $a) }
rule r_entropy { condition: filesize > 20 and math.entropy(0, filesize) > 4.0 }
private rule r_hidden { strings: $a = "hidden helper" condition: $a }
rule refers { strings: $a = "number two" condition: r_hidden and $a }
rule refuses { strings: $a = "number one" condition: $a and not r_hidden }
rule named { condition: filename == "evil.exe" }
rule defined_at { condition: defined uint32(60) and uint8(0) == 0x4d }
rule imported { condition: pe.imphash() == "0bcaae01d770bd9b10b6e4c87af205b8" }
rule imported_loudly { strings: $a = "nr3" condition: $a or pe.imphash() == "0BCAAE01D770BD9B10B6E4C87AF205B8" }
rule sectioned { strings: $a = "number one" condition: $a or pe.section_index(".lazaret") >= 0 }
rule not_sectioned { strings: $a = "number one" condition: $a and not pe.section_index(".lazaret") >= 1 }
rule overlaid { strings: $a = { 6e 75 } condition: $a at pe.overlay.offset and pe.overlay.size > 5 }
rule numbered { condition: pe.number_of_sections == 1 and pe.timestamp > 1000 }
rule sized { strings: $a = "twice" condition: $a and (filesize < 60 or filesize >= 1000) }
rule looked_twice { strings: $a = "number one" $b = "nr3" $c = { 6e 72 3? } condition: all of them }
rule without_helper { strings: $a = "hidden helper" condition: not $a }
rule not_without_helper { condition: not without_helper }
rule section_of_its_own { condition: pe.sections[0].characteristics != pe.characteristics }
rule undefined_anchor { strings: $a = "number one" $b = "nr3" condition: not (filesize > 0 and not $a at @b[1]) }
rule undefined_range { strings: $a = "number one" $b = "nr3" condition: not (filesize > 0 and #a in (0..@b[1]) == 0) }
rule none_anchored { strings: $a = "number one" $b = "nr3" condition: not (filesize > 0 and none of ($a) at @b[1]) }
rule exported { strings: $a = "nr3" condition: $a or pe.exports("number two") }
"#;

/// A rule that decides about another without being named.
pub(crate) const GLOBAL: &str = r#"
global rule gate { strings: $a = "open sesame" condition: $a or filesize < 30 }
rule behind { strings: $a = "number one" condition: $a }
"#;

/// What contents are made of.
const FRAGMENTS: [&[u8]; 34] = [
    b"long enough to be looked for",
    b"mixed CASE Words",
    b"w\0i\0d\0e\0 \0w\0o\0r\0d\0s\0 \0h\0e\0r\0e\0",
    b"wide words here",
    b"fullword",
    b" fullword ",
    b"|kv$plmw$pa|p",
    b"YmFzZSBzaXh0eS1mb3Vy",
    b"<?",
    b"eval",
    b"first alternative",
    b"ab",
    b"\x01\x02",
    b"number one",
    b"number two",
    b"nr3",
    b"xyz",
    b"twice",
    b"MZ",
    b"MZ\0\0a1\x01\x05",
    b"MZ....bc\x02\x03\x04",
    b"\xaa\xbb\xcc\xdd",
    b"\xee\xff\x11\x22",
    b"abbbc123yz",
    b"ac12x",
    b"START it e\nEND",
    b"hidden helper",
    b"open sesame",
    b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0",
    b"\0\0\0\0\0\0\0\0",
    b"PE\0\0",
    b" ",
    b"zyxwvutsrqponmlkjihgfedcba0123456789",
    b"\n",
];

/// A program for Windows with one section, `.lazaret`, and two functions imported from one library,
/// one by its number.
fn program() -> Vec<u8> {
    let mut bytes = vec![0; 0x400];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"MZ");
    put(0x3c, &[0x40]);
    put(0x40, b"PE\0\0\x4c\x01\x01\0");
    // When it was made, how long the optional header is, that it can be run.
    put(0x48, &1234u32.to_le_bytes());
    put(0x54, &[0xe0, 0, 2, 1]);
    // The optional header: 32 bits, alignments, sizes, 16 directories of which one is in use.
    put(0x58, &[0x0b, 1]);
    for (at, value) in [(32, 0x1000u32), (36, 0x200), (56, 0x2000), (60, 0x200)] {
        put(0x58 + at, &value.to_le_bytes());
    }
    put(0x58 + 92, &[16]);
    put(0x58 + 96 + 8, &0x1000u32.to_le_bytes());
    put(0x58 + 96 + 12, &[40]);
    put(0x138, b".lazaret");
    for (at, value) in [(8, 0x200u32), (12, 0x1000), (16, 0x200), (20, 0x200)] {
        put(0x138 + at, &value.to_le_bytes());
    }
    // The imports, at 0x1000 in memory: names, the library's name, addresses.
    for (at, value) in [(0, 0x1040u32), (12, 0x1080), (16, 0x1060)] {
        put(0x200 + at, &value.to_le_bytes());
    }
    for at in [0x40, 0x60] {
        put(0x200 + at, &0x10a0u32.to_le_bytes());
        put(0x204 + at, &0x8000_0007u32.to_le_bytes());
    }
    put(0x280, b"WS2_32.dll\0");
    put(0x2a2, b"Ordinary\0");
    bytes
}

/// Perhaps a program, fragments, one after the other, perhaps with a byte changed.
pub(crate) fn contents() -> impl Strategy<Value = Vec<u8>> {
    let parts = prop::collection::vec(select(&FRAGMENTS[..]), 0..12);
    let change = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    let is_program = prop::bool::weighted(0.2);
    (is_program, parts, change).prop_map(|(is_program, parts, change)| {
        let mut bytes = if is_program { program() } else { Vec::new() };
        bytes.extend(parts.concat());
        if let Some((at, byte)) = change.filter(|_| !bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}
