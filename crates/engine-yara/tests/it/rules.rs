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

/// Fragments, one after the other, perhaps with a byte changed.
pub(crate) fn contents() -> impl Strategy<Value = Vec<u8>> {
    let parts = prop::collection::vec(select(&FRAGMENTS[..]), 0..12);
    let change = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    (parts, change).prop_map(|(parts, change)| {
        let mut bytes = parts.concat();
        if let Some((at, byte)) = change.filter(|_| !bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}
