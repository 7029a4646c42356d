//! How a connection shows who it is: not at all, by the system's policy, or with name and password.

use hypervisor::ConnectorError;
use hypervisor_transport::Secret;

use crate::rpc::{CallError, Rpc};
use crate::scram::Scram;
use crate::xdr::{Reader, Writer, XdrError};

const AUTH_LIST: u32 = 66;
const SASL_INIT: u32 = 67;
const SASL_START: u32 = 68;
const SASL_STEP: u32 = 69;
const POLKIT: u32 = 70;

const TYPE_NONE: i32 = 0;
const TYPE_SASL: i32 = 1;
const TYPE_POLKIT: i32 = 2;

const SCRAM: &str = "SCRAM-SHA-256";
const PLAIN: &str = "PLAIN";

/// Name and password.
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: Secret,
}

/// Authenticates a fresh connection. `is_private`: nobody else can read it, so a password may be
/// sent.
pub(crate) async fn authenticate(
    rpc: &Rpc,
    login: Option<&Login>,
    is_private: bool,
) -> Result<(), ConnectorError> {
    let answer = rpc.call(AUTH_LIST, Writer::default()).await;
    let answer = answer.map_err(|error| refused(rpc, error))?;
    let mut reader = Reader::new(&answer);
    let types: Vec<i32> = (0..reader.u32().map_err(|error| rpc.garbled(error))?)
        .map_while(|_| reader.i32().ok())
        .collect();
    // An empty list: nothing is asked for.
    if types.is_empty() || types.contains(&TYPE_NONE) {
        return Ok(());
    }
    if types.contains(&TYPE_SASL) {
        let login = login.ok_or_else(|| asked(rpc, "it asks for name and password"))?;
        return sasl(rpc, login, is_private).await;
    }
    if types.contains(&TYPE_POLKIT) {
        let answer = rpc.call(POLKIT, Writer::default()).await;
        return answer.map(drop).map_err(|error| refused(rpc, error));
    }
    Err(asked(rpc, "it asks for something that is not known"))
}

async fn sasl(rpc: &Rpc, login: &Login, is_private: bool) -> Result<(), ConnectorError> {
    let answer = rpc.call(SASL_INIT, Writer::default()).await;
    let answer = answer.map_err(|error| refused(rpc, error))?;
    let offered = Reader::new(&answer).string();
    let offered = offered.map_err(|error| rpc.garbled(error))?;
    let offers = |name: &str| offered.split([',', ' ']).any(|offer| offer == name);
    if offers(SCRAM) {
        return scram(rpc, login).await;
    }
    if offers(PLAIN) && is_private {
        let (user, password) = (&login.user, login.password.reveal());
        start(rpc, PLAIN, &format!("\0{user}\0{password}")).await?;
        return Ok(());
    }
    let wanted = format!("it offers {offered}; {SCRAM} is known, and {PLAIN} over TLS");
    Err(asked(rpc, &wanted))
}

async fn scram(rpc: &Rpc, login: &Login) -> Result<(), ConnectorError> {
    let mut random = [0; 18];
    getrandom::fill(&mut random)
        .map_err(|error| ConnectorError::Config(format!("no random bytes: {error}")))?;
    let nonce: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut scram = Scram::new(&login.user, &nonce);
    let cheated = |error: crate::scram::ScramError| asked(rpc, &error.to_string());

    let challenge = start(rpc, SCRAM, &scram.first()).await?;
    let answer = scram
        .answer(login.password.reveal(), &challenge.text)
        .map_err(cheated)?;
    let last = step(rpc, Some(&answer)).await?;
    scram.verify(&last.text).map_err(cheated)?;
    if !last.is_complete {
        step(rpc, None).await?;
    }
    Ok(())
}

struct SaslAnswer {
    is_complete: bool,
    text: String,
}

async fn start(rpc: &Rpc, mechanism: &str, data: &str) -> Result<SaslAnswer, ConnectorError> {
    let body = Writer::default().string(mechanism).i32(0).chars(data);
    sasl_call(rpc, SASL_START, body).await
}

async fn step(rpc: &Rpc, data: Option<&str>) -> Result<SaslAnswer, ConnectorError> {
    let nil = i32::from(data.is_none());
    let body = Writer::default().i32(nil).chars(data.unwrap_or_default());
    sasl_call(rpc, SASL_STEP, body).await
}

async fn sasl_call(rpc: &Rpc, procedure: u32, body: Writer) -> Result<SaslAnswer, ConnectorError> {
    let answer = rpc.call(procedure, body).await;
    let answer = answer.map_err(|error| refused(rpc, error))?;
    let mut reader = Reader::new(&answer);
    let mut read = || -> Result<_, XdrError> {
        let is_complete = reader.i32()? != 0;
        let _nil = reader.i32()?;
        // C programs count the final zero byte.
        let text = reader.chars()?.trim_end_matches('\0').to_owned();
        Ok(SaslAnswer { is_complete, text })
    };
    read().map_err(|error| rpc.garbled(error))
}

/// Whatever a server refuses before it has authenticated us is about credentials.
fn refused(rpc: &Rpc, error: CallError) -> ConnectorError {
    match error {
        CallError::Server(error) => asked(rpc, &error.message),
        CallError::Broken(error) => error,
    }
}

fn asked(rpc: &Rpc, reason: &str) -> ConnectorError {
    ConnectorError::Credentials {
        endpoint: rpc.endpoint().to_owned(),
        reason: reason.to_owned(),
    }
}
