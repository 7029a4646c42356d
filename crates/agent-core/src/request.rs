//! Questions to the appliance: one for each content, however many files have it.

use std::collections::{BTreeMap, HashMap};

use model::{AccessClass, Digest};

use crate::{ContextHash, Ticket};

/// What one question is about. Files with equal content share it, unless rules read the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Content {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) context: ContextHash,
}

/// A question under way.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) content: Content,
    /// As the appliance was told.
    pub(crate) class: AccessClass,
    /// The leading tickets of the jobs that wait for the reply. Never empty.
    pub(crate) leads: Vec<Ticket>,
    /// The appliance asked for the content.
    pub(crate) needed: bool,
    /// It is being sent.
    pub(crate) sending: bool,
}

/// Requests by number and by content.
#[derive(Debug)]
pub(crate) struct Requests {
    by_id: BTreeMap<u64, Request>,
    by_content: HashMap<Content, u64>,
    next_id: u64,
}

impl Requests {
    pub(crate) fn new() -> Self {
        Self {
            by_id: BTreeMap::new(),
            by_content: HashMap::new(),
            next_id: 1,
        }
    }

    /// Agents use odd numbers.
    pub(crate) fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 2;
        id
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn insert(&mut self, request: Request) -> u64 {
        let id = self.new_id();
        self.by_content.insert(request.content, id);
        self.by_id.insert(id, request);
        id
    }

    pub(crate) fn find(&self, content: &Content) -> Option<u64> {
        self.by_content.get(content).copied()
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Request> {
        self.by_id.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Request> {
        self.by_id.get_mut(&id)
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Request> {
        let request = self.by_id.remove(&id)?;
        self.by_content.remove(&request.content);
        Some(request)
    }

    /// Takes one job off a request; true if nobody waits for it any more, and it is gone.
    pub(crate) fn detach(&mut self, id: u64, lead: Ticket) -> bool {
        let Some(request) = self.by_id.get_mut(&id) else {
            return false;
        };
        request.leads.retain(|other| *other != lead);
        let abandoned = request.leads.is_empty();
        if abandoned {
            self.remove(id);
        }
        abandoned
    }

    pub(crate) fn clear(&mut self) {
        self.by_id.clear();
        self.by_content.clear();
    }
}
