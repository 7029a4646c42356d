//! The client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), without channel binding.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// A server that asks for more work than this is refused.
const ITERATIONS_MAX: u32 = 1_000_000;

/// What a server says makes no sense, or it does not know the password itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScramError {
    #[error("the server's SCRAM message makes no sense")]
    Message,
    #[error("the server does not know the password itself")]
    Impostor,
}

/// One authentication.
pub(crate) struct Scram {
    nonce: String,
    first_bare: String,
    server_signature: Option<[u8; 32]>,
}

impl Scram {
    /// `nonce` is fresh and random, printable, without a comma.
    pub(crate) fn new(user: &str, nonce: &str) -> Self {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        Self {
            nonce: nonce.to_owned(),
            first_bare: format!("n={user},r={nonce}"),
            server_signature: None,
        }
    }

    /// The first message.
    pub(crate) fn first(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    /// The proof, in answer to the server's first message.
    pub(crate) fn answer(&mut self, password: &str, challenge: &str) -> Result<String, ScramError> {
        let field = |name| field(challenge, name).ok_or(ScramError::Message);
        let nonce = field('r')?;
        let is_ours = nonce.len() > self.nonce.len() && nonce.starts_with(&self.nonce);
        let salt = BASE64.decode(field('s')?).ok();
        let rounds = field('i')?.parse::<u32>().ok();
        let rounds = rounds.filter(|rounds| (1..=ITERATIONS_MAX).contains(rounds));
        let (true, Some(salt), Some(rounds)) = (is_ours, salt, rounds) else {
            return Err(ScramError::Message);
        };
        let salted = stretch(password.as_bytes(), &salt, rounds);
        let without_proof = format!("c=biws,r={nonce}");
        let message = format!("{},{challenge},{without_proof}", self.first_bare);
        let client_key = mac(&salted, b"Client Key");
        let stored: [u8; 32] = Sha256::digest(client_key).into();
        let signature = mac(&stored, message.as_bytes());
        let proof: [u8; 32] = std::array::from_fn(|i| client_key[i] ^ signature[i]);
        let server_key = mac(&salted, b"Server Key");
        self.server_signature = Some(mac(&server_key, message.as_bytes()));
        Ok(format!("{without_proof},p={}", BASE64.encode(proof)))
    }

    /// Whether the server has shown in its last message that it knows the password.
    pub(crate) fn verify(&self, last: &str) -> Result<(), ScramError> {
        let shown = field(last, 'v').and_then(|text| BASE64.decode(text).ok());
        let shown = shown.ok_or(ScramError::Message)?;
        let expected = self.server_signature.ok_or(ScramError::Message)?;
        if shown == expected {
            Ok(())
        } else {
            Err(ScramError::Impostor)
        }
    }
}

fn field(message: &str, name: char) -> Option<&str> {
    message
        .split(',')
        .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
}

fn mac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn stretch(password: &[u8], salt: &[u8], rounds: u32) -> [u8; 32] {
    let mut block = mac(password, &[salt, &[0, 0, 0, 1]].concat());
    let mut sum = block;
    for _ in 1..rounds {
        block = mac(password, &block);
        for (sum, byte) in sum.iter_mut().zip(block) {
            *sum ^= byte;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, section 3.
    #[test]
    fn the_example_of_the_standard() {
        let mut scram = Scram::new("user", "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let challenge = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                         s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let answer = scram.answer("pencil", challenge).expect("an answer");
        let expected = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(answer, expected);
        let last = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(scram.verify(last), Ok(()));
        let impostor = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=";
        assert!(scram.verify(impostor).is_err());
    }

    #[test]
    fn a_server_that_cheats_is_refused() {
        for challenge in [
            "",
            "r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "r=mine,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "r=mine1,s=???,i=4096",
            "r=mine1,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=0",
            "r=mine1,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=2000000000",
        ] {
            let mut scram = Scram::new("user", "mine");
            let answer = scram.answer("pencil", challenge);
            assert_eq!(answer, Err(ScramError::Message), "{challenge}");
        }
    }
}
