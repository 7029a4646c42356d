//! Calls with a session.

use std::time::Duration;

use hypervisor::ConnectorError;
use hypervisor_transport::{HttpClient, Method, REQUEST_TIME, Secret, StatusCode, header};

use crate::xmlrpc::{Value, answer, call};

/// XAPI with a session.
pub(crate) struct Api {
    http: HttpClient,
    session: String,
}

impl Api {
    /// Logs in.
    pub(crate) async fn login(
        http: HttpClient,
        user: &str,
        password: &Secret,
    ) -> Result<Self, ConnectorError> {
        let mut api = Self {
            http,
            session: String::new(),
        };
        let params = [user, password.reveal(), "1.0", "lazaret"].map(Value::from);
        let method = "session.login_with_password";
        let session = api.exchange(method, &params, REQUEST_TIME).await?;
        let session = session.text().map(str::to_owned);
        api.session = session.ok_or_else(|| api.garbled(method, "no session"))?;
        Ok(api)
    }

    /// Calls a method; the session is put before the parameters.
    pub(crate) async fn call(
        &mut self,
        method: &str,
        params: &[Value],
        limit: Duration,
    ) -> Result<Value, ConnectorError> {
        let session = [Value::from(&*self.session)];
        self.exchange(method, &[&session, params].concat(), limit)
            .await
    }

    async fn exchange(
        &mut self,
        method: &str,
        params: &[Value],
        limit: Duration,
    ) -> Result<Value, ConnectorError> {
        let headers = [(header::CONTENT_TYPE, "text/xml")];
        let body = call(method, params);
        let answered = self
            .http
            .send(Method::POST, "/", &headers, body, limit)
            .await?;
        if answered.status != StatusCode::OK {
            let what = format!("HTTP status {}", answered.status);
            return Err(self.garbled(method, &what));
        }
        let result = answer(&answered.text());
        let result = result.map_err(|error| self.garbled(method, &error.to_string()))?;
        if result.text_of("Status") == Some("Success") {
            let value = result.get("Value").cloned();
            return value.ok_or_else(|| self.garbled(method, "no value"));
        }
        let why = result.get("ErrorDescription").and_then(Value::list);
        let why: Vec<&str> = why
            .unwrap_or_default()
            .iter()
            .filter_map(Value::text)
            .collect();
        Err(self.explain(method, &why))
    }

    pub(crate) fn garbled(&self, method: &str, what: &str) -> ConnectorError {
        ConnectorError::Answer {
            endpoint: self.http.endpoint().to_string(),
            what: format!("{method}: {what}"),
        }
    }

    fn explain(&self, method: &str, why: &[&str]) -> ConnectorError {
        let endpoint = self.http.endpoint().to_string();
        match why {
            ["SESSION_AUTHENTICATION_FAILED", ..] => ConnectorError::Credentials {
                endpoint,
                reason: "name or password is wrong".to_owned(),
            },
            ["RBAC_PERMISSION_DENIED", ..] => ConnectorError::Forbidden {
                endpoint,
                what: method.to_owned(),
            },
            ["HOST_IS_SLAVE", master, ..] => ConnectorError::Config(format!(
                "xapi: {endpoint} is not the pool's master; that is {master}"
            )),
            _ => ConnectorError::Answer {
                endpoint,
                what: format!("{method}: {}", why.join(", ")),
            },
        }
    }
}
