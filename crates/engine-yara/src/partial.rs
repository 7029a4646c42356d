//! One job of which a part of the content is known.

use engine::worker::{PartialInput, ask_for, ask_for_layout, ask_for_whole};
use proto::v1;

use crate::planned::{Planned, Reported, Step, Stopped, Why};
use crate::scan::FileScan;

/// Rules that are named as reasons.
const NAMED_MAX: usize = 4;

impl FileScan<'_> {
    /// Judges the file by what is known of it; `unpacks`: its members would be judged too.
    pub(crate) fn judge_partial(&mut self, input: PartialInput<'_>, unpacks: bool) {
        let planned = self.worker.planned;
        let led = match self.step(input, unpacks) {
            Ok(Led::To(Step::Judged(matches))) => {
                let ordered = matches.into_iter().map(|(namespace, name)| {
                    let order = planned.order_of(&namespace, &name);
                    (order, name)
                });
                self.detect_all(ordered.collect(), &[]);
                v1::PartialStep::default()
            }
            Ok(Led::To(Step::Ask(ranges))) => ask_for(&ranges),
            Ok(Led::To(Step::Whole(why))) => ask_for_whole(explain(planned, &why)),
            Ok(Led::Nowhere(why)) => ask_for_whole(why),
            Ok(Led::ToParsers) => ask_for_layout(),
            Err(stopped) => return self.stopped(stopped),
        };
        self.report.partial = Some(led);
    }

    fn step(&mut self, input: PartialInput<'_>, unpacks: bool) -> Result<Led, Stopped> {
        let plan = self.worker.planned.plan();
        // Whoever lies here gets the file judged as if it had said nothing.
        let reported = match Reported::read(plan, input.report(), input.size()) {
            Ok(reported) => reported,
            Err(error) => return Ok(Led::Nowhere(error.to_string())),
        };
        let view = match input.view() {
            Ok(view) => view,
            Err(error) => return Ok(Led::Nowhere(error)),
        };
        let left = self.left();
        let scanner = &mut self.worker.scanner;
        let step = scanner.judge_reported(&view, &reported, &self.names, unpacks, &left);
        if view.wants_layout() {
            return Ok(Led::ToParsers);
        }
        Ok(Led::To(step?))
    }
}

/// How far it led.
enum Led {
    To(Step),
    /// It cannot be looked at: why.
    Nowhere(String),
    /// To parsers, which have to see it laid out.
    ToParsers,
}

/// Why a file has to travel whole, for people.
fn explain(planned: &Planned, why: &Why) -> String {
    match why {
        Why::Container => "it may be a container".to_owned(),
        Why::Zeros => "too many matches may be made of what is not known".to_owned(),
        Why::Rules(rules) => {
            let names = rules.iter().map(|rule| planned.plan().name(*rule).1);
            let mut named = names.take(NAMED_MAX).collect::<Vec<_>>().join(", ");
            if let Some(more) = rules.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
                named.push_str(&format!(" and {more} more"));
            }
            format!("nothing bounds what these rules read: {named}")
        }
    }
}
