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
rule xored_wide { strings: $a = "xor wide text" xor(1-5) wide condition: $a }
rule xored_by_any { strings: $a = "any xor key" xor condition: $a }
rule xored_word { strings: $a = "xorword" xor(0-3) fullword condition: $a }
rule based_wide { strings: $a = "base64 made wide" base64wide condition: $a }
rule based_on_own { strings: $a = "own alphabet text" base64("!@#$%^&*(){}[].,|ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstu") condition: $a }
rule fullword_wide { strings: $a = "whole word" fullword wide condition: $a }
rule fullword_both { strings: $a = "whole word" fullword wide ascii condition: #a > 1 }
rule nocase_wide { strings: $a = "Wide In Any Case" nocase wide condition: $a }
rule nocase_both { strings: $a = "Wide In Any Case" nocase wide ascii fullword condition: $a }
rule private_text { strings: $a = "kept private" private $b = "nr3" condition: $a and not $b }
rule regex_wide { strings: $a = /regex w[ai]der[0-9]+/ wide condition: $a }
rule regex_word { strings: $a = /word[0-9]{3}/ fullword condition: $a }
rule for_any_in { strings: $a1 = "number one" $a2 = "number two" $b = "ab" condition: for any of ($a*) : ($ in (5..60)) and not $b }
rule for_two_of { strings: $a = "number one" $b = "number two" $c = "nr3" condition: for 2 of them : (# >= 1 and @ > 3) }
rule for_all_twice { strings: $a = "twice" $b = "ab" condition: for all of them : (# > 1) }
rule for_none { strings: $a = "number one" $b = "nr3" condition: for none of them : (# > 1) and $a }
rule any_in_range { strings: $a = "number one" $b = "xyz" condition: any of them in (0..30) }
rule all_in_range { strings: $a = "number one" $b = "nr3" condition: all of them in (filesize - 60..filesize) }
rule none_in_range { strings: $a = "number one" $b = "nr3" condition: none of them in (10..filesize) and $a }
rule at_the_end { strings: $a = "number two" condition: $a at filesize - 10 }
rule any_at_the_end { strings: $a = "nr3" $b = "xyz" condition: any of them at filesize - 3 }
rule near_the_end { strings: $a = "nr3" condition: $a in (filesize - 20..filesize - 4) }
rule not_at_the_end { strings: $a = "nr3" condition: $a and not $a at filesize - 100 }
rule counted_in { strings: $a = "number" condition: #a in (filesize - 40..filesize) > 1 }
rule versioned { strings: $a = "long enough to be looked for" condition: $a or pe.version_info["Name"] icontains "okay" }
rule versioned_so { strings: $a = "nr3" condition: $a or pe.version_info["Name"] contains "okay" }
rule versioned_loudly { strings: $a = "nr3" condition: $a or pe.version_info["Name"] iequals "grand" }
rule named_kelvin { strings: $a = "nr3" condition: $a or filename istartswith "k" }
"#;

/// A rule that decides about another without being named.
pub(crate) const GLOBAL: &str = r#"
global rule gate { strings: $a = "open sesame" condition: $a or filesize < 30 }
rule behind { strings: $a = "number one" condition: $a }
"#;

/// What contents are made of.
const FRAGMENTS: [&[u8]; 52] = [
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
    b"{\x03l\x03q\x03#\x03t\x03j\x03g\x03f\x03#\x03w\x03f\x03{\x03w\x03",
    b"\xc6\xc9\xde\x87\xdf\xc8\xd5\x87\xcc\xc2\xde",
    b"any xor key",
    b" zmpumpf ",
    b"qzmpumpfq",
    b"Y\0m\0F\0z\0Z\0T\0Y\x000\0I\0G\x001\0h\0Z\0G\0U\0g\0d\x002\0l\0k\0Z\0",
    b"e\0G\0J\0h\0c\x002\0U\x002\0N\0C\0B\0t\0Y\0W\0R\0l\0I\0H\0d\0p\0Z\0G\0U\0=\0",
    b"KmMd(&^bL&QQHVEj(*AUN*|=",
    b" \0w\0h\0o\0l\0e\0 \0w\0o\0r\0d\0 \0",
    b"X\0w\0h\0o\0l\0e\0 \0w\0o\0r\0d\0X\0",
    b"-whole word",
    b"w\0I\0D\0E\0 \0i\0n\0 \0a\0N\0Y\0 \0c\0a\0s\0e\0",
    b"Wide IN any CASE",
    b"kept private",
    b"r\0e\0g\0e\0x\0 \0w\0i\0d\0e\0r\x004\x004\0",
    b" word123 ",
    b"number",
    b"twice ab twice ab",
];

/// Texts that a program has of itself; one is written with the sign for degrees of Kelvin.
const OF_ITSELF: [&str; 5] = ["plain", "okay", "o\u{212a}ay", "Grand", "gr\u{e4}nd"];

/// A node of the tree of texts that a program has of itself.
fn node(key: &str, value: &[u8], children: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 6];
    bytes.extend(utf16(key));
    for part in [value, children] {
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(part);
    }
    let len = bytes.len() as u16;
    bytes[..2].copy_from_slice(&len.to_le_bytes());
    bytes[2] = value.len() as u8;
    bytes
}

/// Ends with a zero.
fn utf16(text: &str) -> Vec<u8> {
    let units = text.encode_utf16().chain([0]);
    units.flat_map(u16::to_le_bytes).collect()
}

/// A program for Windows with one section, `.lazaret`, two functions imported from one library,
/// one by its number, and a text of itself.
fn program(name: &str) -> Vec<u8> {
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
    put(0x58 + 96 + 16, &0x10b0u32.to_le_bytes());
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
    // Resources, seen from 0x10b0: folders by kind, number and language, then what is there.
    for (folder, id, next) in [
        (0, 16u32, 0x8000_0018u32),
        (24, 1, 0x8000_0030),
        (48, 9, 72),
    ] {
        put(0x2b0 + folder + 14, &[1]);
        put(0x2b0 + folder + 16, &id.to_le_bytes());
        put(0x2b0 + folder + 20, &next.to_le_bytes());
    }
    let texts = node("Name", &utf16(name), b"");
    let texts = node("StringFileInfo", b"", &node("040904b0", b"", &texts));
    let version = node("VS_VERSION_INFO", &[0; 52], &texts);
    put(0x2b0 + 72, &0x1108u32.to_le_bytes());
    put(0x2b0 + 76, &(version.len() as u32).to_le_bytes());
    put(0x308, &version);
    bytes
}

/// Perhaps a program, fragments, one after the other, perhaps with a byte changed.
pub(crate) fn contents() -> impl Strategy<Value = Vec<u8>> {
    let parts = prop::collection::vec(select(&FRAGMENTS[..]), 0..16);
    let change = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    let program = prop::option::weighted(0.2, select(&OF_ITSELF[..]).prop_map(program));
    (program, parts, change).prop_map(|(program, parts, change)| {
        let mut bytes = program.unwrap_or_default();
        bytes.extend(parts.concat());
        if let Some((at, byte)) = change.filter(|_| !bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}
