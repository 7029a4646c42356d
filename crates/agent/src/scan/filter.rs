//! The filter that the agent beside us keeps, as long as it is the one that the appliance offers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use literal_filter::Pack;
use model::{FilterId, Policy};
use proto::v1;

use crate::filter_file::FilterFile;

/// Between two looks at a file that is not (yet) what is offered.
const LOOK_AFTER: Duration = Duration::from_secs(10);

/// What is offered, and what of that is here.
#[derive(Debug)]
pub(crate) struct Kept {
    file: FilterFile,
    offered: Option<FilterId>,
    pack: Option<Arc<Pack>>,
    looked: Option<Instant>,
}

impl Kept {
    pub(crate) fn new(file: FilterFile) -> Self {
        Self {
            file,
            offered: None,
            pack: None,
            looked: None,
        }
    }

    /// The appliance offers a filter, or none.
    pub(crate) fn offered(&mut self, offer: &v1::FilterOffer) {
        self.offered = FilterId::from_slice(&offer.filter);
        self.looked = None;
    }

    /// The session ended.
    pub(crate) fn lost(&mut self) {
        self.offered = None;
    }

    /// By what content of `size` bytes can be reported on. Reads the file where that is due; what
    /// cannot be used is the agent's to tell and to replace.
    pub(crate) fn pack_for(&mut self, policy: &Policy, size: u64) -> Option<Arc<Pack>> {
        policy.report_min_bytes.filter(|least| size >= *least)?;
        let offered = self.offered?;
        let is_offered = |pack: &Arc<Pack>| pack.id() == offered.0;
        let is_due = self.looked.is_none_or(|at| at.elapsed() >= LOOK_AFTER);
        if !self.pack.as_ref().is_some_and(is_offered) && is_due {
            self.looked = Some(Instant::now());
            self.pack = self.file.load().ok().flatten().map(Arc::new);
        }
        self.pack.clone().filter(is_offered)
    }
}
