//! What a pack costs in memory: `memory LITERALS NEEDLES`. Made-up literals, so figures are rough.

use literal_filter::{Filter, Literal, Needle, NeedleToken, Needles, Pack};

fn resident_kb() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, file] = &arguments[..]
        && word == "load"
    {
        return load(file);
    }
    let number = |at: usize, or: u64| {
        let given = arguments.get(at);
        given.map_or(or, |it| it.parse().expect("a number"))
    };
    let bytes = pack(number(0, 28_000), number(1, 3_000));
    let file = std::env::temp_dir().join(format!("memory-{}.pack", std::process::id()));
    std::fs::write(&file, bytes).expect("written");
    // In a process of its own, which has not used and freed any memory before.
    let this = std::env::current_exe().expect("this program");
    let told = std::process::Command::new(this)
        .arg("load")
        .arg(&file)
        .status();
    std::fs::remove_file(&file).expect("removed");
    assert!(told.expect("started").success());
}

fn load(file: &str) {
    let bytes = std::fs::read(file).expect("a pack");
    let before = resident_kb();
    let start = std::time::Instant::now();
    let read = Pack::read(&bytes).expect("just written");
    let took = start.elapsed().as_millis();
    let more = resident_kb().saturating_sub(before);
    let (ids, kb) = (read.len(), bytes.len() >> 10);
    println!("{ids} ids, {kb} KB as it travels, {more} KB more resident, read in {took} ms");
}

fn pack(literals: u64, needles: u64) -> Vec<u8> {
    let mut state = 1u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let literals: Vec<_> = (0..literals)
        .map(|_| Literal {
            bytes: (0..7 + random(47)).map(|_| random(256) as u8).collect(),
            nocase: random(3) == 0,
        })
        .collect();
    let needles: Vec<_> = (0..needles)
        .map(|_| {
            let mut byte = || NeedleToken::Byte {
                value: random(256) as u8,
                mask: 0xff,
            };
            let mut tokens: Vec<_> = (0..40).map(|_| byte()).collect();
            tokens[20] = NeedleToken::Gap { least: 1, most: 40 };
            Needle::new(tokens, 0).expect("a key of two bytes")
        })
        .collect();
    let filter = Filter::build(&literals).expect("within limits");
    let needles = Needles::build(needles).expect("within limits");
    Pack::write(&filter, &needles)
}
