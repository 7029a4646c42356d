//! How connectors reach a hypervisor's management: secrets from files or the environment, TLS that
//! is always verified, and an HTTP client whose answers and waits are bounded.

mod endpoint;
mod http;
mod secret;
mod tls;

pub use endpoint::{CONNECT_TIME, Endpoint, Stream};
pub use http::{Answer, BODY_MAX_BYTES, HttpClient, REQUEST_TIME};
pub use hyper::{Method, StatusCode, header};
pub use secret::{SECRET_MAX_BYTES, Secret, SecretSource};
pub use tls::{ClientCertificate, SYSTEM_CA_FILE, Trust, tls_config};
