//! Join tokens: `lzt1.<CA fingerprint, 64 hex>.<secret, 64 hex>`. The fingerprint tells the
//! joining guest whom to trust, the secret tells the controller that it was invited.

use std::fmt;
use std::str::FromStr;

use ring::digest;

use crate::{Fingerprint, NoRandomness};

const PREFIX: &str = "lzt1";

/// A text that is no join token. It never repeats the text, which may be most of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three parts, the first of them `lzt1`.
    #[error("not a join token (lzt1.<CA fingerprint>.<secret>)")]
    Shape,
    /// The second part is wrong.
    #[error("the join token's CA fingerprint is not 64 hexadecimal digits")]
    Fingerprint,
    /// The third part is wrong.
    #[error("the join token's secret is not 64 hexadecimal digits")]
    Secret,
}

/// A join token, as shown once to a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The CA that the joining guest shall trust.
    pub ca: Fingerprint,
    /// What proves the invitation.
    pub secret: Secret,
}

/// The secret part of a join token: 256 random bits. Never printed by `Debug`.
#[derive(Clone)]
pub struct Secret([u8; 32]);

/// SHA-256 of a secret: all that a controller stores. The secret has 256 random bits, so a plain
/// hash cannot be searched.
#[derive(Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl JoinToken {
    /// A new token for guests of this CA.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate(ca: Fingerprint) -> Result<Self, NoRandomness> {
        let secret = Secret(crate::random()?);
        Ok(Self { ca, secret })
    }
}

impl Secret {
    /// As it travels in `EnrolRequest.token`.
    #[must_use]
    pub fn expose(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What to store of it.
    #[must_use]
    pub fn hash(&self) -> SecretHash {
        let hash = digest::digest(&digest::SHA256, &self.0);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(hash.as_ref());
        SecretHash(bytes)
    }
}

impl FromStr for Secret {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        hex32(text).map(Self).ok_or(TokenError::Secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl PartialEq for Secret {
    /// By hash, hence in a time that tells nothing.
    fn eq(&self, other: &Self) -> bool {
        self.hash() == other.hash()
    }
}
impl Eq for Secret {}

impl SecretHash {
    /// From its text form.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        hex32(text).map(Self)
    }
}

impl PartialEq for SecretHash {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        let differing = self
            .0
            .iter()
            .zip(&other.0)
            .fold(0, |all, (a, b)| all | (a ^ b));
        std::hint::black_box(differing) == 0
    }
}
impl Eq for SecretHash {}

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretHash({self})")
    }
}

impl fmt::Display for JoinToken {
    /// The whole token, secret included: for the person who asked for it, never for a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}", self.ca, self.secret.expose())
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(PREFIX), Some(ca), Some(secret), None) => Ok(Self {
                ca: Fingerprint(hex32(ca).ok_or(TokenError::Fingerprint)?),
                secret: secret.parse()?,
            }),
            _ => Err(TokenError::Shape),
        }
    }
}

/// Exactly 64 hexadecimal digits.
fn hex32(text: &str) -> Option<[u8; 32]> {
    text.parse::<model::Digest>().ok().map(|digest| digest.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        let token = JoinToken::generate(Fingerprint([7; 32])).unwrap();
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
        let other = JoinToken::generate(Fingerprint([7; 32])).unwrap();
        assert_ne!(token, other);
        assert!(!format!("{token:?}").contains(&token.secret.expose()));
    }

    #[test]
    fn each_wrong_part_is_named() {
        let hex = "ab".repeat(32);
        let parse = |text: String| text.parse::<JoinToken>();
        assert_eq!(parse(String::new()), Err(TokenError::Shape));
        assert_eq!(parse(format!("lzt2.{hex}.{hex}")), Err(TokenError::Shape));
        assert_eq!(parse(format!("lzt1.{hex}.{hex}.")), Err(TokenError::Shape));
        assert_eq!(
            parse(format!("lzt1.ab.{hex}")),
            Err(TokenError::Fingerprint)
        );
        assert_eq!(parse(format!("lzt1.{hex}.{hex}0")), Err(TokenError::Secret));
        assert_eq!(parse(format!("lzt1.{hex}.é")), Err(TokenError::Secret));
    }

    #[test]
    fn hashes_compare_by_value() {
        let secret: Secret = "ab".repeat(32).parse().unwrap();
        let stored = SecretHash::from_hex(&secret.hash().to_string()).unwrap();
        assert_eq!(stored, secret.hash());
        let other: Secret = "ac".repeat(32).parse().unwrap();
        assert_ne!(stored, other.hash());
    }
}
