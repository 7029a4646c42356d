//! Rules: which guests belong to which appliances. A rule narrows the choice and never takes
//! protection away: where none of its appliances can take the guest, the others do.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// What a rule asks of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It has this tag.
    Tag(String),
    /// It belongs to this pool.
    Pool(String),
    /// Its address is in this range.
    Range(IpNet),
    /// Its host is in this cluster.
    Cluster(String),
    /// Its host is on this site.
    Site(String),
}

/// A condition that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// No known kind.
    #[error("{0:?}: write tag:NAME, pool:NAME, range:ADDRESS/PREFIX, cluster:NAME or site:NAME")]
    Kind(String),
    /// No range of addresses.
    #[error("{0:?} is no range of addresses, such as 10.1.0.0/16")]
    Range(String),
}

impl FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let kind = || ConditionError::Kind(text.to_owned());
        let (name, value) = text.split_once(':').ok_or_else(kind)?;
        if value.is_empty() {
            return Err(kind());
        }
        let value = value.to_owned();
        Ok(match name {
            "tag" => Self::Tag(value),
            "pool" => Self::Pool(value),
            "cluster" => Self::Cluster(value),
            "site" => Self::Site(value),
            "range" => match value.parse() {
                Ok(range) => Self::Range(range),
                Err(_) => return Err(ConditionError::Range(value)),
            },
            _ => return Err(kind()),
        })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(name) => write!(f, "tag:{name}"),
            Self::Pool(name) => write!(f, "pool:{name}"),
            Self::Range(range) => write!(f, "range:{range}"),
            Self::Cluster(name) => write!(f, "cluster:{name}"),
            Self::Site(name) => write!(f, "site:{name}"),
        }
    }
}

/// Guests that fit all conditions belong to the appliances with one of the labels. The first rule
/// that fits a guest counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// For people.
    pub name: String,
    /// All must hold. Empty: every guest.
    pub when: Vec<Condition>,
    /// Labels of the appliances in scope.
    pub appliances: Vec<String>,
}

/// What conditions look at.
pub(crate) struct Subject<'a> {
    pub(crate) tags: &'a [String],
    pub(crate) pool: Option<&'a str>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) cluster: Option<&'a str>,
    pub(crate) site: Option<&'a str>,
}

impl Rule {
    pub(crate) fn fits(&self, subject: &Subject<'_>) -> bool {
        self.when.iter().all(|condition| match condition {
            Condition::Tag(name) => subject.tags.contains(name),
            Condition::Pool(name) => subject.pool == Some(name),
            Condition::Range(range) => subject.address.is_some_and(|at| range.contains(&at)),
            Condition::Cluster(name) => subject.cluster == Some(name),
            Condition::Site(name) => subject.site == Some(name),
        })
    }

    pub(crate) fn names(&self, labels: &[String]) -> bool {
        labels.iter().any(|label| self.appliances.contains(label))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_and_written() {
        for text in [
            "tag:vdi",
            "pool:a:b",
            "range:10.0.0.0/8",
            "range:fd00::/8",
            "site:x",
        ] {
            assert_eq!(text.parse::<Condition>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "tag",
            "tag:",
            "colour:red",
            "range:10.0.0.0/64",
            "range:x",
        ] {
            let error = wrong.parse::<Condition>().unwrap_err().to_string();
            assert!(
                error.contains("10.1.0.0/16") || error.contains("tag:NAME"),
                "{error}"
            );
        }
    }
}
