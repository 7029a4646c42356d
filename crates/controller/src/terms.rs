//! Tokens and pools: on what terms machines join.

use std::time::{Duration, SystemTime};

use pki::JoinToken;

use crate::authority::{Authority, AuthorityError};
use crate::members::{PENDING, POOL, Pool, Proof, Put, TOKEN, TokenInfo, VmRef};

/// Tokens that may be good at once: each attempt to join is compared with every one.
pub const TOKENS_MAX: usize = 10_000;
/// Pools at once.
pub const POOLS_MAX: usize = 1000;
/// Longest name of a pool.
const POOL_NAME_MAX_BYTES: usize = 64;
/// Ranges, tags, clusters and CAs of TPMs of a pool, each.
const POOL_SCOPE_MAX: usize = 64;

/// On what terms a token is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenTerms {
    /// Guests that may join with it.
    pub uses_max: u32,
    /// For how long.
    pub valid: Duration,
    /// The pool that they belong to.
    pub pool: Option<String>,
    /// The only VM that may use it.
    pub vm: Option<VmRef>,
}

impl Authority {
    /// Makes a join token, good until `now + terms.valid`.
    ///
    /// # Errors
    /// [`AuthorityError`]; no token was made then.
    pub async fn issue_token(
        &self,
        terms: TokenTerms,
        now: SystemTime,
    ) -> Result<JoinToken, AuthorityError> {
        let TokenTerms {
            uses_max, valid, ..
        } = terms;
        if uses_max == 0 || valid.is_zero() || valid > pki::CA_LIFETIME {
            return Err(AuthorityError::TokenTerms);
        }
        let token = JoinToken::generate(self.ca.fingerprint())?;
        let info = TokenInfo {
            hash: token.secret.hash(),
            uses_left: if terms.vm.is_some() { 1 } else { uses_max },
            expires_at: now + valid,
            pool: terms.pool,
            vm: terms.vm,
        };
        self.change(now, |members| {
            if let Some(name) = info.pool.as_ref().filter(|it| members.pool(it).is_none()) {
                let (what, name) = ("pool", name.clone());
                return Err(AuthorityError::Unknown { what, name });
            }
            if members.good_tokens(now).count() >= TOKENS_MAX {
                return Err(AuthorityError::TooManyTokens);
            }
            Ok(((), vec![Put::token(&info)]))
        })
        .await?;
        Ok(token)
    }

    /// Tokens that are still good.
    #[must_use]
    pub fn tokens(&self, now: SystemTime) -> Vec<TokenInfo> {
        self.members().good_tokens(now).cloned().collect()
    }

    /// Makes a pool, or changes it for those who join from now on.
    ///
    /// # Errors
    /// [`AuthorityError`]; nothing has changed.
    pub async fn set_pool(&self, pool: Pool, now: SystemTime) -> Result<(), AuthorityError> {
        check_pool(&pool)?;
        self.change(now, |members| {
            if members.pool(&pool.name).is_none() && members.pools().count() >= POOLS_MAX {
                let problem = format!("there are {POOLS_MAX} pools");
                return Err(AuthorityError::Pool(problem));
            }
            Ok(((), vec![Put::pool(&pool)]))
        })
        .await
    }

    /// Removes a pool that has no members; its tokens go, too.
    ///
    /// # Errors
    /// [`AuthorityError`]; nothing has changed.
    pub async fn remove_pool(&self, name: &str, now: SystemTime) -> Result<(), AuthorityError> {
        self.change(now, |members| {
            if members.pool(name).is_none() {
                let (what, name) = ("pool", name.to_owned());
                return Err(AuthorityError::Unknown { what, name });
            }
            let is_of_it = |pool: &Option<String>| pool.as_deref() == Some(name);
            let left = members.of_pool(name).count();
            if left > 0 {
                let problem = format!("the pool {name:?} has {left} members");
                return Err(AuthorityError::Pool(problem));
            }
            let tokens = members.tokens().filter(|it| is_of_it(&it.pool));
            let mut puts: Vec<Put> = tokens
                .map(|token| Put::gone(TOKEN, token.hash.to_string()))
                .collect();
            let waiting = members.all_pending().filter(|it| is_of_it(&it.pool));
            puts.extend(waiting.map(|it| Put::gone(PENDING, it.id.clone())));
            puts.push(Put::gone(POOL, name.to_owned()));
            Ok(((), puts))
        })
        .await
    }

    /// Every pool with the number of its members, by name.
    #[must_use]
    pub fn pools(&self) -> Vec<(Pool, usize)> {
        let members = self.members();
        let pools = members.pools();
        pools
            .map(|pool| (pool.clone(), members.of_pool(&pool.name).count()))
            .collect()
    }
}

fn check_pool(pool: &Pool) -> Result<(), AuthorityError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let name = &pool.name;
    if name.is_empty() || name.len() > POOL_NAME_MAX_BYTES || !name.chars().all(is_plain) {
        let problem = format!(
            "a pool's name has 1 to {POOL_NAME_MAX_BYTES} letters, digits, dots, dashes and underscores"
        );
        return Err(AuthorityError::Pool(problem));
    }
    let counts = [
        pool.ranges.len(),
        pool.tags.len(),
        pool.clusters.len(),
        pool.tpm_cas.len(),
    ];
    if counts.iter().any(|count| *count > POOL_SCOPE_MAX) {
        let problem = format!(
            "a pool has at most {POOL_SCOPE_MAX} ranges, tags, clusters and CAs of TPMs each"
        );
        return Err(AuthorityError::Pool(problem));
    }
    if (pool.proof == Proof::Tpm) == pool.tpm_cas.is_empty() {
        let problem =
            "proof by tpm needs the CAs that issue the TPMs' certificates, and no other does";
        return Err(AuthorityError::Pool(problem.to_owned()));
    }
    for (number, ca) in (1..).zip(&pool.tpm_cas) {
        let wrong = |why| AuthorityError::Pool(format!("certificate {number} of TPMs' CAs: {why}"));
        tpm::check_ca(&ca.0).map_err(wrong)?;
    }
    Ok(())
}
