//! What agents can look for in place of the engine, on its way to the host.

use std::os::fd::OwnedFd;

use literal_filter::Pack;
use model::FilterId;

use super::Template;
use crate::host;

/// Bytes of a filter as it travels.
pub const FILTER_MAX_BYTES: usize = 16 << 20;

/// A template's filter.
#[derive(Default)]
pub(super) struct Filter {
    id: Option<FilterId>,
    /// Until the host has it.
    bytes: Option<(OwnedFd, u64)>,
    warning: Option<String>,
}

impl Filter {
    pub(super) fn of(template: &impl Template) -> Self {
        let warned = |why: String| Self {
            warning: Some(format!("files travel whole: {why}")),
            ..Self::default()
        };
        let bytes = match template.filter() {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Self::default(),
            Err(why) => return warned(why),
        };
        if bytes.is_empty() || bytes.len() > FILTER_MAX_BYTES {
            let len = bytes.len();
            return warned(format!("a filter of {len} bytes is not 1 byte to 16 MiB"));
        }
        match host::sealed("lazaret-filter", &bytes) {
            Ok(fd) => Self {
                id: Some(FilterId(Pack::id_of(&bytes))),
                bytes: Some((fd, bytes.len() as u64)),
                warning: None,
            },
            Err(error) => warned(format!("the filter cannot be handed over: {error}")),
        }
    }

    /// Why there is none, though there should be.
    pub(super) fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// What identifies it.
    pub(super) fn id(&self) -> Option<FilterId> {
        self.id
    }

    /// The bytes and how many, once.
    pub(super) fn hand_over(&mut self) -> Option<(OwnedFd, u64)> {
        self.bytes.take()
    }
}
