//! What an agent looks for in place of the engine, and what its report says: where the plan's
//! literals and needles occur, and the marks of containers that are not told by their start.

use std::ops::Range;
use std::time::Duration;

use engine::sparse::SparseView;
use literal_filter::{FilterError, Needle, NeedleToken, Pack, Report};
use model::Ranges;
use readplan::{Bytes, Hits, Plan, View};
use unpack::{Format, Glimpse, Guess, Mark};

use super::{PlannedScanner, Step, Stopped, Why};
use crate::context::Names;
use crate::scan::TIMEOUT_DEFAULT;

/// What agents look for: the plan's literals, its needles, and the marks. An error where it cannot
/// be built, for people.
///
/// # Errors
/// There are too many needles.
pub fn agent_pack(plan: &Plan) -> Result<Vec<u8>, String> {
    let (filter, needles) = plan.agent_filter();
    let marks = Mark::ALL.into_iter().filter_map(needle);
    let needles = needles.with(marks).map_err(|error| error.to_string())?;
    Ok(Pack::write_with_heads(&Format::HEADS, filter, &needles))
}

/// Where the key of a mark's needle starts in it: at the rarest two bytes.
fn key(mark: Mark) -> usize {
    match mark {
        Mark::ZipEnd => 2,
        Mark::Pdf | Mark::Iso => 0,
    }
}

fn needle(mark: Mark) -> Option<Needle> {
    let bytes = mark.bytes().iter();
    let tokens = bytes.map(|&value| NeedleToken::Byte { value, mask: 0xff });
    Needle::new(tokens.collect(), key(mark))
}

/// What an agent found in a file by [`agent_pack`].
pub struct Reported {
    hits: Hits,
    /// In the order of [`Mark::ALL`].
    marks: [Places; Mark::ALL.len()],
}

/// Where a mark occurs.
#[derive(Default)]
struct Places {
    /// The lowest, rising.
    list: Vec<u64>,
    has_more: bool,
}

impl Reported {
    /// Reads what an agent sent of a file of `size` bytes; hostile.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn read(plan: &Plan, bytes: &[u8], size: u64) -> Result<Self, FilterError> {
        let ids = plan_ids(plan) + Mark::ALL.len();
        Ok(Self::of(plan, &Report::from_bytes(bytes, ids, size)?))
    }

    /// What a report says.
    pub fn of(plan: &Plan, report: &Report) -> Self {
        let first = plan_ids(plan);
        let mut marks: [Places; Mark::ALL.len()] = Default::default();
        for (id, offsets, has_more) in report.iter() {
            let index = (id as usize).checked_sub(first);
            let index = index.filter(|index| *index < marks.len());
            let Some((mark, places)) = index.map(|n| (Mark::ALL[n], &mut marks[n])) else {
                continue;
            };
            let key = key(mark) as u64;
            places.list = offsets
                .iter()
                .filter_map(|at| at.checked_sub(key))
                .collect();
            places.has_more = has_more;
        }
        Self {
            hits: Hits::of_report(report),
            marks,
        }
    }
}

/// Ids of the plan's literals and needles, before those of marks.
fn plan_ids(plan: &Plan) -> usize {
    let (filter, needles) = plan.agent_filter();
    filter.len() + needles.len()
}

/// A file as the unpacker sees it.
struct Seen<'a> {
    size: u64,
    view: View<'a>,
    marks: &'a [Places],
}

impl Glimpse for Seen<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn get(&self, at: u64, len: usize) -> Option<&[u8]> {
        self.view.get(at, len)
    }

    fn places(&self, mark: Mark, within: Range<u64>) -> Option<Vec<u64>> {
        let index = Mark::ALL.iter().position(|known| *known == mark)?;
        let Places { list, has_more } = self.marks.get(index)?;
        let is_all = !has_more || list.last().is_some_and(|last| *last + 1 >= within.end);
        let inside = list.iter().copied().filter(|at| within.contains(at));
        is_all.then(|| inside.collect())
    }
}

impl PlannedScanner<'_> {
    /// Judges a file of this path by what is known of it and what an agent reported; `unpacks`:
    /// were it a container, its members would be judged too. No time limit.
    ///
    /// # Errors
    /// YARA-X failed.
    pub fn scan_reported(
        &mut self,
        view: &SparseView,
        reported: &Reported,
        path: &[u8],
        unpacks: bool,
    ) -> Result<Step, String> {
        let left = || Some(TIMEOUT_DEFAULT);
        let step = self.judge_reported(view, reported, &Names::of_path(path), unpacks, &left);
        step.map_err(|stopped| stopped.to_string())
    }

    /// As [`Self::scan_reported`], of a file of these names. `left` tells the time that is left.
    pub(crate) fn judge_reported(
        &mut self,
        view: &SparseView,
        reported: &Reported,
        names: &Names,
        unpacks: bool,
        left: &dyn Fn() -> Option<Duration>,
    ) -> Result<Step, Stopped> {
        let guess = match unpacks {
            true => Format::guess(&Seen {
                size: view.bytes().len() as u64,
                view: View {
                    bytes: view.bytes(),
                    known: view.known(),
                },
                marks: &reported.marks,
            }),
            false => Guess::No,
        };
        let needs = match guess {
            Guess::Maybe => return Ok(Step::Whole(Why::Container)),
            Guess::Needs(ranges) => ranges.into_iter().collect(),
            Guess::No => Ranges::new(),
        };
        let needs = needs.without(view.known());
        Ok(match self.judge_view(view, &reported.hits, names, left)? {
            Step::Ask(mut ask) => {
                ask.extend(&needs);
                Step::Ask(ask)
            }
            Step::Judged(_) if !needs.is_empty() => Step::Ask(needs),
            step => step,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use literal_filter::PackScan;
    use readplan::Source;

    #[test]
    fn marks_are_behind_what_the_plan_looks_for() {
        let text =
            br#"rule r { strings: $a = "something" $b = { 01 ?2 03 } condition: all of them }"#;
        let source = Source {
            namespace: "rules",
            text,
        };
        let plan = Plan::compile(&[source]).expect("compiles");
        let pack = Pack::read(&agent_pack(&plan).expect("built")).expect("read");
        assert_eq!(pack.len(), plan_ids(&plan) + Mark::ALL.len());
        let content = [
            &b"%PDF-1"[..],
            b"something",
            b"CD001.",
            &b"PK\x05\x06".repeat(70),
        ]
        .concat();
        let mut scan = PackScan::new(&pack);
        assert!(scan.push(&content).is_continue());
        let report = scan.finish().expect("small").to_bytes().expect("small");
        let reported = Reported::read(&plan, &report, content.len() as u64).expect("read");
        let known = Ranges::new();
        let seen = Seen {
            size: content.len() as u64,
            view: View {
                bytes: &content,
                known: &known,
            },
            marks: &reported.marks,
        };
        assert_eq!(seen.places(Mark::Pdf, 0..100), Some(vec![0]));
        assert_eq!(seen.places(Mark::Iso, 0..100), Some(vec![15]));
        assert_eq!(seen.places(Mark::Iso, 16..100), Some(vec![]));
        assert_eq!(seen.places(Mark::ZipEnd, 0..26), Some(vec![21, 25]));
        assert_eq!(seen.places(Mark::ZipEnd, 0..300), None, "only 64 are told");
        assert!(
            Reported::read(&plan, &[200, 1, 2, 0], 10).is_err(),
            "no such id"
        );
    }
}
