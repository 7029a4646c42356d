//! Which clusters are on which site, as an operator says: connectors do not know.

use placement::{Condition, ConditionError, Rule};
use serde::Deserialize;

/// Clusters on a site.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteRule {
    /// The site.
    pub site: String,
    /// Its connectors, whole. Unset: none.
    #[serde(default)]
    pub connectors: Vec<String>,
    /// Its clusters, by name. Unset: none.
    #[serde(default)]
    pub clusters: Vec<String>,
}

/// Where things are and who belongs where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SiteRules {
    /// In order: the first that names a host's cluster, else its connector, counts.
    pub sites: Vec<SiteRule>,
    /// Rules of placement.
    pub rules: Vec<Rule>,
}

/// A rule that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SiteRulesError {
    /// A condition.
    #[error("rule {rule:?}: {source}")]
    Condition {
        /// The rule.
        rule: String,
        /// What is wrong.
        source: ConditionError,
    },
    /// It names nobody.
    #[error("rule {0:?} names no appliance")]
    Nobody(String),
}

impl SiteRules {
    /// Adds a rule: VMs that fit all of `when` belong to appliances with one of the labels.
    ///
    /// # Errors
    /// [`SiteRulesError`]; nothing was added.
    pub fn add(
        &mut self,
        name: &str,
        when: &[String],
        appliances: &[String],
    ) -> Result<(), SiteRulesError> {
        if appliances.is_empty() {
            return Err(SiteRulesError::Nobody(name.to_owned()));
        }
        let conditions: Result<Vec<Condition>, _> = when.iter().map(|text| text.parse()).collect();
        let when = conditions.map_err(|source| SiteRulesError::Condition {
            rule: name.to_owned(),
            source,
        })?;
        self.rules.push(Rule {
            name: name.to_owned(),
            when,
            appliances: appliances.to_vec(),
        });
        Ok(())
    }

    /// The site of a cluster. Without any rule everything of one connector is one site.
    pub(crate) fn site_of(&self, connector: &str, cluster: Option<&str>) -> Option<String> {
        let by_cluster = |rule: &&SiteRule| {
            cluster.is_some_and(|cluster| rule.clusters.iter().any(|name| name == cluster))
        };
        let by_connector = |rule: &&SiteRule| rule.connectors.iter().any(|it| it == connector);
        let named = self.sites.iter().find(by_cluster);
        let named = named.or_else(|| self.sites.iter().find(by_connector));
        Some(named.map_or_else(|| connector.to_owned(), |rule| rule.site.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_come_before_connectors() {
        let rule = |site: &str, connectors: &[&str], clusters: &[&str]| SiteRule {
            site: site.into(),
            connectors: connectors.iter().map(|it| (*it).into()).collect(),
            clusters: clusters.iter().map(|it| (*it).into()).collect(),
        };
        let rules = SiteRules {
            sites: vec![rule("north", &["vc1"], &[]), rule("south", &[], &["edge"])],
            rules: Vec::new(),
        };
        let of = |connector, cluster| rules.site_of(connector, cluster).unwrap();
        assert_eq!(of("vc1", Some("edge")), "south");
        assert_eq!(of("vc1", Some("main")), "north");
        assert_eq!(of("vc2", None), "vc2");
    }

    #[test]
    fn rules_say_what_is_wrong() {
        let mut rules = SiteRules::default();
        let error = rules.add("r", &["x:y".into()], &["a".into()]).unwrap_err();
        assert!(
            error.to_string().starts_with("rule \"r\": \"x:y\""),
            "{error}"
        );
        assert!(rules.add("r", &[], &[]).is_err());
        assert!(rules.add("r", &["tag:a".into()], &["b".into()]).is_ok());
        assert_eq!(rules.rules.len(), 1);
    }
}
