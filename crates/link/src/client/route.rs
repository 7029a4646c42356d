//! The list of appliances that an agent follows. No I/O.

/// Appliances in one list.
pub const ROUTE_LEN_MAX: usize = 8;
/// Longest name of an appliance, host:port.
const ADDRESS_MAX_BYTES: usize = 262;

/// An ordered list with its epoch: a later one replaces it, an earlier or equal one never does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    epoch: u64,
    appliances: Vec<String>,
    /// What it began with: the last resort, whatever lists come.
    fallback: Vec<String>,
}

/// Why a list is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteRefused {
    /// It is not later than the one that is followed.
    #[error("its epoch {offered} is not later than {own}")]
    Stale {
        /// Of the one offered.
        offered: u64,
        /// Of the one followed.
        own: u64,
    },
    /// Nobody, or too many.
    #[error("a list has 1 to {ROUTE_LEN_MAX} appliances")]
    Length,
    /// A name that cannot be one.
    #[error("an appliance is named as host:port")]
    Address,
}

impl Route {
    /// What to follow until a list comes. `epoch` is 0 where this was not given by a placer.
    #[must_use]
    pub fn new(epoch: u64, appliances: Vec<String>) -> Self {
        let fallback = appliances.clone();
        Self {
            epoch,
            appliances,
            fallback,
        }
    }

    /// Takes a list.
    ///
    /// # Errors
    /// [`RouteRefused`]; the old one counts then.
    pub fn offer(&mut self, epoch: u64, appliances: &[String]) -> Result<(), RouteRefused> {
        if epoch <= self.epoch {
            let (offered, own) = (epoch, self.epoch);
            return Err(RouteRefused::Stale { offered, own });
        }
        if !(1..=ROUTE_LEN_MAX).contains(&appliances.len()) {
            return Err(RouteRefused::Length);
        }
        if !appliances.iter().all(|address| is_address(address)) {
            return Err(RouteRefused::Address);
        }
        self.epoch = epoch;
        self.appliances = appliances.to_vec();
        Ok(())
    }

    /// Its epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The appliances, first the best.
    #[must_use]
    pub fn appliances(&self) -> &[String] {
        &self.appliances
    }

    /// Whom to try, in order: all of the list, beginning behind `doubtful`, which has just failed;
    /// then whom it began with.
    #[must_use]
    pub fn order(&self, doubtful: Option<&str>) -> Vec<String> {
        let failed = doubtful.and_then(|it| self.appliances.iter().position(|own| own == it));
        let (before, after) = self.appliances.split_at(failed.map_or(0, |at| at + 1));
        let mut order: Vec<String> = after.iter().chain(before).cloned().collect();
        let others = self.fallback.iter();
        let others = others.filter(|other| !self.appliances.contains(other));
        order.extend(others.cloned());
        order
    }

    /// Where to go from `current`: the first of a placer's list, where that is another one.
    #[must_use]
    pub fn better_than(&self, current: &str) -> Option<&str> {
        let first = self.appliances.first().filter(|_| self.epoch > 0)?;
        (first != current).then_some(first.as_str())
    }
}

fn is_address(text: &str) -> bool {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    text.len() <= ADDRESS_MAX_BYTES
        && text.bytes().all(|byte| byte.is_ascii_graphic())
        && port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_later_lists_are_followed() {
        let mut route = Route::new(0, list(&["a:1"]));
        assert_eq!(route.better_than("b:1"), None, "nobody placed it there");
        assert_eq!(route.offer(5, &list(&["b:1", "a:1"])), Ok(()));
        assert_eq!(route.better_than("a:1"), Some("b:1"));
        assert_eq!(route.better_than("b:1"), None);
        for stale in [0, 4, 5] {
            let refused = route.offer(stale, &list(&["c:1"])).unwrap_err();
            assert_eq!(
                refused,
                RouteRefused::Stale {
                    offered: stale,
                    own: 5
                }
            );
        }
        assert_eq!(route.appliances(), ["b:1", "a:1"]);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let mut route = Route::new(1, list(&["a:1"]));
        assert_eq!(route.offer(2, &[]), Err(RouteRefused::Length));
        let many = vec!["a:1".to_owned(); ROUTE_LEN_MAX + 1];
        assert_eq!(route.offer(2, &many), Err(RouteRefused::Length));
        for wrong in ["", "a", "a:", ":1", "a:0", "a:70000", "a b:1", "é:1"] {
            assert_eq!(
                route.offer(2, &list(&[wrong])),
                Err(RouteRefused::Address),
                "{wrong}"
            );
        }
        assert_eq!(route.epoch(), 1);
        assert_eq!(route.offer(2, &list(&["[::1]:7443"])), Ok(()));
    }

    #[test]
    fn who_failed_comes_last() {
        let route = Route::new(1, list(&["a:1", "b:1", "c:1"]));
        assert_eq!(route.order(None), ["a:1", "b:1", "c:1"]);
        assert_eq!(route.order(Some("a:1")), ["b:1", "c:1", "a:1"]);
        assert_eq!(route.order(Some("c:1")), ["a:1", "b:1", "c:1"]);
        assert_eq!(route.order(Some("gone:1")), ["a:1", "b:1", "c:1"]);
        let mut placed = Route::new(0, list(&["a:1", "b:1"]));
        placed.offer(1, &list(&["c:1"])).unwrap();
        assert_eq!(placed.order(Some("c:1")), ["c:1", "a:1", "b:1"]);
    }
}
