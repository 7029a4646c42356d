//! What every connector must do, as one suite that runs against each of them: the simulated one,
//! real servers, and fakes where no server can be had. A test of a connector implements [`Rig`] and
//! calls [`conform`].

mod breaker;
mod expect;
mod fake_http;
mod mirror;
mod rig;
mod scenarios;
mod secret;
mod tls;

pub use breaker::{Breaker, Upstream};
pub use expect::{Expect, PATIENCE, counted_pace};
pub use fake_http::{FakeHttp, FakeRequest, FakeResponse};
pub use mirror::Mirror;
pub use rig::{Abilities, Approach, Rig};
pub use scenarios::conform;
pub use secret::write_secret;
pub use tls::{TestCertificates, TlsFront};
