//! Which clusters are on which site and which datastore, as an operator says: connectors do not
//! know.

use placement::{Condition, ConditionError, Rule};
/// Clusters that have something in common: a site, or a datastore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Area {
    /// What they have in common.
    pub name: String,
    /// Connectors, whole.
    pub connectors: Vec<String>,
    /// Clusters, by name.
    pub clusters: Vec<String>,
}

/// Where things are and who belongs where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SiteRules {
    /// In order: the first that names a host's cluster, else its connector, counts.
    pub sites: Vec<Area>,
    /// In order, likewise: where the disks of a host's VMs lie. None: nobody says.
    pub datastores: Vec<Area>,
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
        let named = area_of(&self.sites, connector, cluster).and_then(|at| self.sites.get(at));
        Some(named.map_or_else(|| connector.to_owned(), |site| site.name.clone()))
    }

    /// The datastore of a cluster, as its place in the list.
    pub(crate) fn datastore_of(&self, connector: &str, cluster: Option<&str>) -> Option<u64> {
        let at = area_of(&self.datastores, connector, cluster)?;
        u64::try_from(at).ok()
    }
}

/// The first that names the cluster, else the connector.
fn area_of(areas: &[Area], connector: &str, cluster: Option<&str>) -> Option<usize> {
    let by_cluster = |area: &Area| {
        cluster.is_some_and(|cluster| area.clusters.iter().any(|name| name == cluster))
    };
    let by_connector = |area: &Area| area.connectors.iter().any(|it| it == connector);
    let named = areas.iter().position(by_cluster);
    named.or_else(|| areas.iter().position(by_connector))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_come_before_connectors() {
        let area = |name: &str, connectors: &[&str], clusters: &[&str]| Area {
            name: name.into(),
            connectors: connectors.iter().map(|it| (*it).into()).collect(),
            clusters: clusters.iter().map(|it| (*it).into()).collect(),
        };
        let rules = SiteRules {
            sites: vec![area("north", &["vc1"], &[]), area("south", &[], &["edge"])],
            datastores: vec![area("san", &[], &["edge"])],
            rules: Vec::new(),
        };
        let of = |connector, cluster| rules.site_of(connector, cluster).unwrap();
        assert_eq!(of("vc1", Some("edge")), "south");
        assert_eq!(of("vc1", Some("main")), "north");
        assert_eq!(of("vc2", None), "vc2");
        assert_eq!(rules.datastore_of("vc1", Some("edge")), Some(0));
        assert_eq!(rules.datastore_of("vc1", Some("main")), None);
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
