//! A walk's result in a form that tests can compare.

use std::ops::ControlFlow;

use unpack::{Budget, Incomplete, IncompleteKind, Limits, Summary};

use crate::fixtures::MARKER;

/// All that a walk showed and said.
pub(crate) struct Walked {
    pub(crate) members: Vec<(Vec<String>, Vec<u8>)>,
    pub(crate) summary: Summary,
}

/// Walks with the default limits.
pub(crate) fn walked(content: &[u8]) -> Walked {
    walked_with(content, &Limits::default())
}

pub(crate) fn walked_with(content: &[u8], limits: &Limits) -> Walked {
    let mut members = Vec::new();
    let summary = unpack::walk(
        content,
        None,
        limits,
        &mut Budget::unlimited(),
        &mut |member| {
            let path = member
                .path
                .iter()
                .map(|name| String::from_utf8_lossy(name).into_owned());
            members.push((path.collect(), member.bytes.to_vec()));
            ControlFlow::Continue(())
        },
    );
    Walked { members, summary }
}

impl Walked {
    /// Paths of the members that hold the marker, joined by ` > `.
    pub(crate) fn marked(&self) -> Vec<String> {
        let holds = |bytes: &[u8]| bytes.windows(MARKER.len()).any(|window| window == MARKER);
        let marked = self.members.iter().filter(|(_, bytes)| holds(bytes));
        marked.map(|(path, _)| path.join(" > ")).collect()
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|(path, _)| path.join(" > "))
            .collect()
    }

    pub(crate) fn incomplete(&self) -> Option<&Incomplete> {
        self.summary.incomplete.as_ref()
    }

    pub(crate) fn kind(&self) -> Option<IncompleteKind> {
        self.incomplete().map(|incomplete| incomplete.kind)
    }

    /// The path at which it is incomplete, joined by ` > `.
    pub(crate) fn incomplete_path(&self) -> Option<String> {
        let path = &self.incomplete()?.path;
        let names = path
            .iter()
            .map(|name| String::from_utf8_lossy(name).into_owned());
        Some(names.collect::<Vec<_>>().join(" > "))
    }
}
