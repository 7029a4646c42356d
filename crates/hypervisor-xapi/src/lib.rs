//! Connector to XAPI, the management of XenServer and XCP-ng. `event.from` with an empty token gives
//! everything there is, and with the last token what has changed since.

mod api;
mod config;
mod connector;
mod records;
mod xmlrpc;

pub use config::XapiConfig;
pub use connector::XapiConnector;

#[cfg(test)]
mod tests;
