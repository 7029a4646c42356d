//! Partial jobs until a file is judged, as an appliance gives them, in the worker's own sandbox:
//! the verdict is that of the whole file, and a report that lies brings no more than a wrong one.

use engine::host::{Engine, Job, JobResult, PartialJob, PartialResult};
use engine::sparse::lay_out;
use literal_filter::{Pack, PackScan, Report};
use model::{FilterId, Ranges};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use proto::v1;

use crate::samples::{eicar, planted, tar_gz, zip};
use crate::{SHORT, folder, job, named, own_rules, rules, spec, start, unpack_limits};

/// Bytes of the start that come with a report.
pub(crate) const HEAD_BYTES: u64 = 512;
/// Far more questions than an appliance asks.
const ROUNDS_MAX: u32 = 40;

/// An agent with its filter, and a file.
pub(crate) struct Guest<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) report: Vec<u8>,
    pub(crate) context: Option<v1::FileContext>,
    pub(crate) unpack: Option<v1::UnpackLimits>,
}

impl<'a> Guest<'a> {
    fn new(pack: &Pack, bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            report: report(pack, bytes).expect("a report that travels"),
            context: None,
            unpack: Some(unpack_limits()),
        }
    }

    fn part(&self, filter: FilterId, known: &Ranges) -> PartialJob {
        let mut read = |at: u64, buffer: &mut [u8]| {
            buffer.copy_from_slice(&self.bytes[at as usize..][..buffer.len()]);
            Ok(())
        };
        let size = self.bytes.len() as u64;
        PartialJob {
            content: lay_out(size, known, &mut read).expect("laid out"),
            size,
            known: known.clone(),
            filter,
            report: self.report.clone().into(),
            context: self.context.clone(),
            unpack: self.unpack,
        }
    }

    fn whole(&self) -> Job {
        Job {
            context: self.context.clone(),
            unpack: self.unpack,
            ..job(self.bytes)
        }
    }
}

/// What an agent reports; `None`: there is too much to tell.
pub(crate) fn report(pack: &Pack, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut scan = PackScan::new(pack);
    let _ = scan.push(bytes);
    scan.finish()?.to_bytes()
}

pub(crate) fn pack(engine: &Engine) -> Pack {
    Pack::read(&engine.filter().expect("a filter").bytes).expect("read")
}

/// How a file was judged.
#[derive(Debug)]
pub(crate) enum Led {
    /// After so many questions, which brought so many bytes.
    Judged(JobResult, u32, u64),
    Whole(String),
    Failed(JobResult),
}

/// Gives partial jobs until the file is judged.
pub(crate) async fn lead(engine: &Engine, guest: &Guest<'_>, head: u64) -> Led {
    let filter = engine.filter().expect("a filter").id;
    let mut known = Ranges::of(0..head.min(guest.bytes.len() as u64));
    let first = known.bytes();
    for round in 0..ROUNDS_MAX {
        match engine.judge_partial(guest.part(filter, &known)).await {
            PartialResult::Judged(result) => {
                return Led::Judged(result, round, known.bytes() - first);
            }
            PartialResult::Ask(ranges) => {
                let new = ranges.without(&known);
                assert_eq!(new, ranges, "asked for what is known");
                known.extend(&ranges);
            }
            PartialResult::Whole(why) => return Led::Whole(why),
            PartialResult::Failed(result) => return Led::Failed(result),
        }
    }
    panic!("{ROUNDS_MAX} questions, and no verdict");
}

/// Judged by ranges, and as the whole file: the names, questions and bytes asked for.
async fn assert_same(engine: &Engine, guest: &Guest<'_>) -> (Vec<String>, u32, u64) {
    let whole = engine.scan(guest.whole()).await;
    match lead(engine, guest, HEAD_BYTES).await {
        Led::Judged(result, rounds, bytes) => {
            assert_eq!(result, whole);
            let names = result.detections.into_iter().map(|found| found.name);
            (names.collect(), rounds, bytes)
        }
        led => panic!("{led:?}"),
    }
}

const RULES: &str = r#"
    import "pe"
    rule anywhere { strings: $a = "somewhere in here" condition: $a }
    rule head { strings: $a = "MZ" condition: $a at 0 and filesize > 1000 }
    rule tail { strings: $a = "the very end" condition: $a at filesize - 12 }
    rule word { strings: $a = "lonely" fullword condition: $a }
    rule wide_word { strings: $a = "broad" wide fullword condition: $a }
    rule gap { strings: $a = { 11 22 33 44 [2-6] 55 66 ?7 } condition: $a }
    rule size { condition: filesize == 70001 }
    rule exe { condition: pe.is_pe and pe.number_of_sections == 2 }
    rule entry { condition: pe.is_pe and uint8(pe.entry_point) == 0xc3 }
    rule parts { condition: for any s in pe.sections : (s.name == ".data") }
    rule last { condition: uint32be(filesize - 4) == 0x01020304 }
"#;

fn filler(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8 | 0x80).collect()
}

fn with(mut file: Vec<u8>, places: &[(usize, &[u8])]) -> Vec<u8> {
    for (at, bytes) in places {
        file[*at..][..bytes.len()].copy_from_slice(bytes);
    }
    file
}

/// A portable executable of two sections, whose headers are not in its first bytes.
fn portable() -> Vec<u8> {
    let header = 0x1400usize;
    let mut coff = b"PE\0\0".to_vec();
    coff.extend([0x64, 0x86, 2, 0]);
    coff.extend([0; 12]);
    coff.extend([0xf0, 0, 0x22, 0]);
    let mut optional = vec![0; 0xf0];
    optional[..2].copy_from_slice(&[0x0b, 0x02]);
    // Entry point, alignments, sizes, number of directories.
    for (at, value) in [
        (16, 0x1010u32),
        (32, 0x1000),
        (36, 0x200),
        (56, 0x3000),
        (60, 0x1800),
        (108, 16),
    ] {
        optional[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let section = |name: &[u8; 8], address: u32, raw: u32| {
        let mut section = name.to_vec();
        for value in [0x1000, address, 0x200, raw, 0, 0, 0, 0x6000_0020] {
            section.extend(value.to_le_bytes());
        }
        section
    };
    let headers = [
        coff,
        optional,
        section(b".text\0\0\0", 0x1000, 0x2_a000),
        section(b".data\0\0\0", 0x2000, 0x2_a200),
    ]
    .concat();
    let offset = (header as u32).to_le_bytes();
    with(
        filler(0x2_c000),
        &[
            (0, b"MZ"),
            (0x3c, &offset),
            (header, &headers),
            (0x2_a010, &[0xc3]),
        ],
    )
}

#[tokio::test]
async fn a_file_in_parts_is_judged_as_the_whole() {
    let engine = start(folder(RULES).path()).await;
    let pack = pack(&engine);
    let plain = filler(200_000);
    let big = |places: &[(usize, &[u8])]| with(plain.clone(), places);
    let end = plain.len() - 12;
    let wide = b".\0b\0r\0o\0a\0d\0.\0";
    let cases: [(&str, Vec<u8>, &[&str]); 15] = [
        ("nothing", Vec::new(), &[]),
        ("one byte", b"x".to_vec(), &[]),
        ("nothing of interest", plain.clone(), &[]),
        (
            "at the start",
            big(&[(3, b"somewhere in here")]),
            &["anywhere"],
        ),
        (
            "in the middle",
            big(&[(99_999, b"somewhere in here")]),
            &["anywhere"],
        ),
        ("at the end", big(&[(end, b"the very end")]), &["tail"]),
        ("not at the end", big(&[(end - 1, b"the very end")]), &[]),
        ("a word", big(&[(5_000, b" lonely.")]), &["word"]),
        ("no word", big(&[(5_000, b" lonelyx")]), &[]),
        ("a wide word", big(&[(5_000, wide)]), &["wide_word"]),
        (
            "with a gap",
            big(&[(8_190, b"\x11\x22\x33\x44abc\x55\x66\x27")]),
            &["gap"],
        ),
        ("its size", filler(70_001), &["size"]),
        ("a program", portable(), &["head", "exe", "entry", "parts"]),
        (
            "no program",
            with(portable(), &[(0x1400, b"XX")]),
            &["head"],
        ),
        (
            "its last bytes",
            big(&[(199_996, &[1, 2, 3, 4])]),
            &["last"],
        ),
    ];
    for (what, bytes, expected) in &cases {
        let guest = Guest::new(&pack, bytes);
        let (names, rounds, asked) = assert_same(&engine, &guest).await;
        assert_eq!(names, *expected, "{what}");
        assert!(
            rounds <= 8 && asked <= bytes.len() as u64 / 2,
            "{what}: {rounds}, {asked}"
        );
        if *what == "nothing of interest" {
            // A rule's last bytes, and the page in which the PE module looks for its magic.
            assert!(asked <= 4096, "{asked}");
        }
        // The same where not even the head comes along.
        let led = lead(&engine, &guest, 0).await;
        assert!(matches!(led, Led::Judged(..)), "{what}: {led:?}");
    }
    let stats = engine.stats();
    assert_eq!((stats.crashed_total, stats.killed_total), (0, 0));
    assert!(stats.partial_total > cases.len() as u64);
}

#[tokio::test]
async fn names_and_the_order_of_detections_are_those_of_a_scan() {
    let source: String = (0..100)
        .map(|n| format!("rule r{:02} {{ condition: filesize > 1000 }}\n", 99 - n))
        .collect();
    let folder = folder(&source);
    let more = "rule r50 { condition: filename == \"Evil.EXE\" and owner == \"root\" }";
    std::fs::write(folder.path().join("more.yar"), more).expect("written");
    let engine = start(folder.path()).await;
    let bytes = filler(5_000);
    let mut guest = Guest::new(&pack(&engine), &bytes);
    guest.context = named(b"/tmp/Evil.EXE", 0);
    let (names, _, _) = assert_same(&engine, &guest).await;
    assert_eq!(names.len(), 64);
    let few = "rule same { condition: filename == \"Evil.EXE\" } rule b { condition: true }";
    for name in ["one.yar", "two.yar"] {
        std::fs::write(folder.path().join(name), few).expect("written");
    }
    std::fs::remove_file(folder.path().join("rules.yar")).expect("removed");
    engine.reload(None).await.expect("reloaded");
    let (names, _, _) = assert_same(&engine, &guest).await;
    assert_eq!(names, ["r50", "same", "b"]);
}

#[tokio::test]
async fn containers_travel_whole_where_they_would_be_unpacked() {
    let engine = start(&own_rules()).await;
    let pack = pack(&engine);
    let archive = zip("eicar.com", &eicar(), 0);
    let appended = [&b"MZ"[..], &filler(90_000), &archive].concat();
    let tar = tar_gz(&[("a.txt", b"harmless")]);
    let pdf = [&filler(700)[..], b"%PDF-1.7", &filler(90_000)].concat();
    let image = with(filler(90_000), &[(32_769, b"CD001")]);
    let mail = [&b"Subject: x\nX: ".repeat(100)[..], b"\nFrom: y\nTo: z\n\n"].concat();
    for bytes in [archive, appended, tar, pdf, image, mail] {
        let mut guest = Guest::new(&pack, &bytes);
        let led = lead(&engine, &guest, HEAD_BYTES).await;
        assert!(
            matches!(&led, Led::Whole(why) if why.contains("container")),
            "{led:?}"
        );
        guest.unpack = None;
        assert_same(&engine, &guest).await;
        guest.unpack = Some(v1::UnpackLimits {
            depth_max: 0,
            ..unpack_limits()
        });
        assert_same(&engine, &guest).await;
    }
    let file = with(filler(200_000), &[(77_777, &planted())]);
    let (names, _, _) = assert_same(&engine, &Guest::new(&pack, &file)).await;
    assert_eq!(names, ["Lazaret_Test_File"]);
}

#[tokio::test]
async fn what_nothing_bounds_travels_whole_and_says_so() {
    let rules = folder(
        r#"import "math"
           rule reads_all { condition: math.entropy(0, filesize) > 7.9 }"#,
    );
    let engine = start(rules.path()).await;
    let bytes = filler(5_000);
    let led = lead(&engine, &Guest::new(&pack(&engine), &bytes), HEAD_BYTES).await;
    assert!(
        matches!(&led, Led::Whole(why) if why.contains("reads_all")),
        "{led:?}"
    );
}

#[tokio::test]
async fn a_part_that_takes_too_long_ends_with_a_timeout() {
    let rules = folder(
        r#"rule slow { condition:
             filesize == 1 and for all i in (0..100000000000) : (uint8(0) == 0x78 or i == 5) }"#,
    );
    let mut spec = spec(rules.path());
    spec.job_timeout = SHORT;
    let engine = Engine::start(spec).await.expect("starts");
    let led = lead(&engine, &Guest::new(&pack(&engine), b"x"), HEAD_BYTES).await;
    match led {
        // Or, where the condition is not understood, it is not judged in part at all.
        Led::Failed(result) => {
            let (reason, detail) = result.incomplete.expect("incomplete");
            assert_eq!(reason, model::UnscannedReason::EngineTimeout, "{detail}");
        }
        Led::Whole(_) => {}
        Led::Judged(..) => panic!("{led:?}"),
    }
    let other = lead(&engine, &Guest::new(&pack(&engine), b"yy"), HEAD_BYTES).await;
    assert!(matches!(other, Led::Judged(..)), "{other:?}");
}

#[tokio::test]
async fn rules_that_others_do_not_have_have_no_filter() {
    let rules = folder(RULES);
    let program = env!("CARGO_BIN_EXE_lazaret-engine-yara");
    let other = folder("rule other { condition: false }");
    let manifest = std::process::Command::new(program)
        .arg("--rules")
        .arg(other.path())
        .arg("--manifest")
        .output()
        .expect("runs");
    assert!(manifest.status.success());
    let known = other.path().join("manifest");
    std::fs::write(&known, manifest.stdout).expect("written");
    let mut spec = spec(rules.path());
    spec.args.extend(["--known".into(), known.into()]);
    let delta = Engine::start(spec).await.expect("starts");
    assert_eq!(delta.filter(), None);
    assert!(start(rules.path()).await.filter().is_some());
}

/// Whatever a guest says, its file gets an answer and the worker lives.
#[tokio::test]
async fn lies_bring_a_wrong_verdict_at_most() {
    let engine = start(folder(RULES).path()).await;
    let pack = pack(&engine);
    let file = with(portable(), &[(0x8000, b"somewhere in here")]);
    let other = with(
        filler(0x2_c000),
        &[(40, b"the very end"), (900, b" lonely ")],
    );
    let mut all = Report::default();
    let mut ends = Report::default();
    for id in 0..pack.len() as u32 {
        for n in 0..70 {
            let _ = all.add(id, n * 700);
        }
        let _ = ends.add(id, file.len() as u64 - 1);
    }
    let reports = [
        Vec::new(),
        report(&pack, &other).expect("small"),
        all.to_bytes().expect("small"),
        ends.to_bytes().expect("small"),
        // No reports at all.
        vec![0xff; 1000],
        vec![0, 0],
        vec![0xff; proto::REPORT_MAX_BYTES],
    ];
    for report in reports {
        let guest = Guest {
            report,
            ..Guest::new(&pack, &file)
        };
        let led = lead(&engine, &guest, HEAD_BYTES).await;
        assert!(matches!(led, Led::Judged(..) | Led::Whole(_)), "{led:?}");
    }
    let nothing_known = Guest {
        report: vec![0xff; 10],
        ..Guest::new(&pack, &file)
    };
    let led = lead(&engine, &nothing_known, HEAD_BYTES).await;
    assert!(
        matches!(&led, Led::Whole(why) if why.contains("report")),
        "{led:?}"
    );
    // A layout that is cut, and one with more than was known: of no use, and told so.
    let filter = engine.filter().expect("a filter").id;
    let honest = Guest::new(&pack, &file);
    let known: Ranges = [0..600, 0x8000..0x9000].into_iter().collect();
    for other in [Ranges::of(0..500), Ranges::of(0..0x2_c000)] {
        let job = PartialJob {
            content: honest.part(filter, &other).content,
            ..honest.part(filter, &known)
        };
        let led = engine.judge_partial(job).await;
        let PartialResult::Whole(why) = led else {
            panic!("{led:?}");
        };
        assert!(why.contains("sparse content has"), "{why}");
    }
    let stats = engine.stats();
    assert_eq!((stats.crashed_total, stats.killed_total), (0, 0));
}

/// Made files, honest reports and others, through the real process.
#[tokio::test]
async fn made_files_get_the_verdict_of_the_whole() {
    let bounded: String = rules::RULES
        .lines()
        .filter(|line| !line.contains("entropy"))
        .fold(String::new(), |all, line| all + line + "\n");
    let engine = start(folder(&bounded).path()).await;
    let pack = pack(&engine);
    let strategy = (
        rules::contents(),
        rules::contents(),
        0usize..9_000,
        any::<[u8; 6]>(),
    );
    let mut runner = TestRunner::new(ProptestConfig::default());
    let (mut judged, mut matched) = (0, 0);
    for _ in 0..400 {
        let tree = strategy.new_tree(&mut runner).expect("a value");
        let (a, b, gap, lie) = tree.current();
        let bytes = [a, vec![b'.'; gap], b].concat();
        let mut guest = Guest::new(&pack, &bytes);
        guest.unpack = None;
        let whole = engine.scan(guest.whole()).await;
        match lead(&engine, &guest, HEAD_BYTES).await {
            Led::Judged(result, ..) => {
                assert_eq!(result, whole, "{}", bytes.escape_ascii());
                judged += 1;
                matched += result.detections.len();
            }
            Led::Whole(_) => {}
            Led::Failed(result) => panic!("{result:?}"),
        }
        // Changed anywhere.
        for (n, byte) in lie.into_iter().enumerate() {
            let at = usize::from(byte) * (n + 1) % guest.report.len().max(1);
            if let Some(place) = guest.report.get_mut(at) {
                *place ^= byte;
            }
        }
        let led = lead(&engine, &guest, HEAD_BYTES).await;
        assert!(!matches!(led, Led::Failed(_)), "{led:?}");
    }
    assert!(
        judged > 80 && matched > 200,
        "{judged} files, {matched} matches"
    );
    assert_eq!(engine.stats().crashed_total, 0);
}
