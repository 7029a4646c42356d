use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use async_trait::async_trait;
use hypervisor::{Connect, HostId, Pace, Power, VmId};
use hypervisor_conformance::{
    Abilities, Approach, Breaker, FakeHttp, FakeRequest, FakeResponse, Rig, TestCertificates,
    TlsFront, Upstream, write_secret,
};
use hypervisor_transport::{SecretSource, Trust};

use crate::xmlrpc::Value;
use crate::xmlrpc::server::{read_call, write_answer};
use crate::{XapiConfig, XapiConnector};

pub(super) const PASSWORD: &str = "the <right> password";
const SESSION: &str = "OpaqueRef:session";
const NOTHING: &str = "OpaqueRef:NULL";
const HOSTS: [&str; 2] = [
    "11111111-0000-0000-0000-000000000000",
    "22222222-0000-0000-0000-000000000000",
];
/// Longest that the fake keeps a question for events waiting: threads are few.
const WAIT_MAX: Duration = Duration::from_secs(2);

type Record = BTreeMap<String, Value>;

/// A pool's objects, each with the number of its last change.
#[derive(Debug, Default)]
struct Pool {
    objects: BTreeMap<(String, String), (u64, Option<Record>)>,
    changes: u64,
    vms_made: u32,
}

#[derive(Debug, Default)]
struct Shared {
    pool: Mutex<Pool>,
    changed: Condvar,
}

pub(super) struct Fake {
    shared: Arc<Shared>,
    breaker: Breaker,
    certificates: TestCertificates,
    dir: tempfile::TempDir,
    http: FakeHttp,
    _tls: TlsFront,
}

impl Pool {
    fn set(&mut self, class: &str, reference: &str, record: Option<Record>) {
        self.changes += 1;
        let key = (class.to_owned(), reference.to_owned());
        self.objects.insert(key, (self.changes, record));
    }

    fn vm(&self, reference: &str) -> Option<Record> {
        let key = ("vm".to_owned(), reference.to_owned());
        self.objects.get(&key)?.1.clone()
    }

    fn change_vm(&mut self, reference: &str, how: impl FnOnce(&mut Record)) -> Option<()> {
        let mut record = self.vm(reference)?;
        how(&mut record);
        self.set("vm", reference, Some(record));
        Some(())
    }

    /// Everything that changed since a token: the last state of each object alone, as XAPI does.
    fn since(&self, token: u64) -> Vec<Value> {
        let changed = self
            .objects
            .iter()
            .filter(|(_, (at, record))| *at > token && (token > 0 || record.is_some()));
        let event =
            |((class, reference), (at, record)): (&(String, String), &(u64, Option<Record>))| {
                let operation = match (record, token) {
                    (None, _) => "del",
                    (Some(_), 0) => "add",
                    (Some(_), _) => "mod",
                };
                let mut event = Record::from([
                    ("id".to_owned(), Value::Text(at.to_string())),
                    ("timestamp".to_owned(), Value::from("0.0")),
                    ("class".to_owned(), Value::from(&**class)),
                    ("operation".to_owned(), Value::from(operation)),
                    ("ref".to_owned(), Value::from(&**reference)),
                ]);
                if let Some(record) = record {
                    event.insert("snapshot".to_owned(), Value::Map(record.clone()));
                }
                Value::Map(event)
            };
        changed.map(event).collect()
    }
}

impl Shared {
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: &FakeRequest) -> FakeResponse {
        let Ok((method, params)) = read_call(&request.body) else {
            return FakeResponse::status(400);
        };
        let result = match self.run(&method, &params) {
            Ok(value) => Record::from([
                ("Status".to_owned(), Value::from("Success")),
                ("Value".to_owned(), value),
            ]),
            Err(why) => Record::from([
                ("Status".to_owned(), Value::from("Failure")),
                (
                    "ErrorDescription".to_owned(),
                    Value::List(vec![Value::from(why)]),
                ),
            ]),
        };
        FakeResponse::body("text/xml", write_answer(&Value::Map(result)))
    }

    fn run(&self, method: &str, params: &[Value]) -> Result<Value, &'static str> {
        let text = |i: usize| params.get(i).and_then(Value::text).unwrap_or_default();
        if method == "session.login_with_password" {
            let is_right = text(0) == "lazaret" && text(1) == PASSWORD;
            return is_right
                .then(|| Value::from(SESSION))
                .ok_or("SESSION_AUTHENTICATION_FAILED");
        }
        if text(0) != SESSION {
            return Err("SESSION_INVALID");
        }
        match method {
            "event.from" => self.events(params.get(1), text(2)),
            "VM.get_by_uuid" => {
                let reference = format!("OpaqueRef:{}", text(1));
                self.pool().vm(&reference).ok_or("UUID_INVALID")?;
                Ok(Value::Text(reference))
            }
            "VM.get_resident_on" => {
                let vm = self.pool().vm(text(1)).ok_or("HANDLE_INVALID")?;
                Ok(vm["resident_on"].clone())
            }
            // The vendor's client asks for these when it logs in.
            "pool.get_all" => Ok(Value::List(vec![Value::from("OpaqueRef:pool")])),
            "pool.get_master" => Ok(Value::Text(format!("OpaqueRef:{}", HOSTS[0]))),
            "host.get_API_version_major" => Ok(Value::from("2")),
            "host.get_API_version_minor" => Ok(Value::from("16")),
            "host.get_uuid" => Ok(Value::from(text(1).trim_start_matches("OpaqueRef:"))),
            "VM.add_tags" | "VM.remove_tags" => self.tag(text(1), text(2), method == "VM.add_tags"),
            _ => Err("MESSAGE_METHOD_UNKNOWN"),
        }
    }

    fn events(&self, classes: Option<&Value>, token: &str) -> Result<Value, &'static str> {
        let classes = classes
            .and_then(Value::list)
            .ok_or("MESSAGE_PARAMETER_COUNT_MISMATCH")?;
        let known: BTreeSet<&str> = ["vm", "host", "vif", "pool"].into();
        if !classes
            .iter()
            .all(|class| class.text().is_some_and(|class| known.contains(class)))
        {
            return Err("EVENT_FROM_TOKEN_PARSE_FAILURE");
        }
        let since: u64 = match token.strip_prefix("00,") {
            Some(number) => number
                .parse()
                .map_err(|_| "EVENT_FROM_TOKEN_PARSE_FAILURE")?,
            None if token.is_empty() => 0,
            None => return Err("EVENT_FROM_TOKEN_PARSE_FAILURE"),
        };
        let mut pool = self.pool();
        let deadline = Instant::now() + WAIT_MAX;
        while pool.changes <= since && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            let waited = self.changed.wait_timeout(pool, left);
            pool = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let counts = Record::from([("vm".to_owned(), Value::from("1"))]);
        Ok(Value::Map(Record::from([
            ("events".to_owned(), Value::List(pool.since(since))),
            ("valid_ref_counts".to_owned(), Value::Map(counts)),
            (
                "token".to_owned(),
                Value::Text(format!("00,{}", pool.changes)),
            ),
        ])))
    }

    fn tag(&self, vm: &str, tag: &str, is_on: bool) -> Result<Value, &'static str> {
        let changed = self.pool().change_vm(vm, |record| {
            let old = record["tags"].list().unwrap_or_default();
            let mut tags: Vec<Value> = old
                .iter()
                .filter(|old| old.text() != Some(tag))
                .cloned()
                .collect();
            if is_on {
                tags.push(Value::from(tag));
            }
            record.insert("tags".to_owned(), Value::List(tags));
        });
        self.changed.notify_all();
        changed.map(|()| Value::from("")).ok_or("HANDLE_INVALID")
    }
}

impl Fake {
    pub(super) async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let certificates = TestCertificates::make(dir.path())?;
        write_secret(dir.path(), "right", PASSWORD)?;
        write_secret(dir.path(), "wrong", "another password")?;
        let shared = Arc::<Shared>::default();
        for (i, uuid) in HOSTS.iter().enumerate() {
            let host = Record::from([
                ("uuid".to_owned(), Value::from(*uuid)),
                ("name_label".to_owned(), Value::Text(format!("xen{i}"))),
                ("enabled".to_owned(), Value::Bool(true)),
            ]);
            shared
                .pool()
                .set("host", &format!("OpaqueRef:{uuid}"), Some(host));
        }
        let dom0 = Record::from([
            (
                "uuid".to_owned(),
                Value::from("00000000-0000-0000-0000-00000000d000"),
            ),
            (
                "name_label".to_owned(),
                Value::from("Control domain on host: xen0"),
            ),
            ("power_state".to_owned(), Value::from("Running")),
            ("is_control_domain".to_owned(), Value::Bool(true)),
        ]);
        shared.pool().set("vm", "OpaqueRef:dom0", Some(dom0));
        let told = Arc::clone(&shared);
        let http = FakeHttp::start(move |request| told.answer(&request)).await?;
        let tls = TlsFront::start(http.addr(), &certificates).await?;
        let breaker = Breaker::start(Upstream::Tcp(tls.addr())).await?;
        Ok(Self {
            shared,
            breaker,
            certificates,
            dir,
            http,
            _tls: tls,
        })
    }

    /// Without TLS, for the check of the fake itself.
    pub(super) fn plain_url(&self) -> String {
        format!("http://{}", self.http.addr())
    }

    fn change(&self, vm: &VmId, fields: &[(&str, Value)]) -> Result<()> {
        let reference = format!("OpaqueRef:{vm}");
        let changed = self.shared.pool().change_vm(&reference, |record| {
            let fields = fields.iter().cloned();
            record.extend(fields.map(|(key, value)| (key.to_owned(), value)));
        });
        self.shared.changed.notify_all();
        changed.context("no VM")
    }
}

#[async_trait]
impl Rig for Fake {
    fn abilities(&self) -> Abilities {
        Abilities {
            moves: true,
            tells_start: true,
            pauses: Some(Power::Paused),
            // XAPI keeps no reference from a copy to what it was made from.
            tells_clones: false,
            tags: true,
            asks_password: true,
            has_tls: true,
        }
    }

    fn connector(&self, approach: Approach, pace: Arc<Pace>) -> Result<Arc<dyn Connect>> {
        let port = self.breaker.addr().port();
        let password = match approach {
            Approach::WrongPassword => "wrong",
            _ => "right",
        };
        let is_right = approach != Approach::WrongCertificate;
        let config = XapiConfig {
            url: format!("https://localhost:{port}").parse()?,
            user: "lazaret".to_owned(),
            password: SecretSource::File(self.dir.path().join(password)),
            trust: Trust::CaFile(self.certificates.ca(is_right)),
            allow_tags: true,
        };
        Ok(Arc::new(XapiConnector::new(config, pace)?))
    }

    fn hosts(&self) -> Vec<HostId> {
        HOSTS.map(|id| HostId::new(id).expect("an id")).into()
    }

    async fn create(&mut self, name: &str) -> Result<VmId> {
        let mut pool = self.shared.pool();
        pool.vms_made += 1;
        let uuid = format!("aaaaaaaa-0000-0000-0000-{:012}", pool.vms_made);
        let record = Record::from([
            ("uuid".to_owned(), Value::from(&*uuid)),
            ("name_label".to_owned(), Value::from(name)),
            ("power_state".to_owned(), Value::from("Running")),
            (
                "resident_on".to_owned(),
                Value::Text(format!("OpaqueRef:{}", HOSTS[0])),
            ),
            (
                "scheduled_to_be_resident_on".to_owned(),
                Value::from(NOTHING),
            ),
            ("is_a_template".to_owned(), Value::Bool(false)),
            ("is_a_snapshot".to_owned(), Value::Bool(false)),
            ("is_control_domain".to_owned(), Value::Bool(false)),
            ("current_operations".to_owned(), Value::Map(Record::new())),
            ("tags".to_owned(), Value::List(Vec::new())),
        ]);
        let reference = format!("OpaqueRef:{uuid}");
        pool.set("vm", &reference, Some(record));
        let vif = Record::from([
            ("VM".to_owned(), Value::Text(reference)),
            ("MAC".to_owned(), Value::from("fe:00:00:00:00:01")),
        ]);
        pool.set("vif", &format!("OpaqueRef:vif-{uuid}"), Some(vif));
        drop(pool);
        self.shared.changed.notify_all();
        Ok(VmId::new(&uuid)?)
    }

    async fn power_off(&mut self, vm: &VmId) -> Result<()> {
        // A halted VM is on no host.
        let nowhere = ("resident_on", Value::from(NOTHING));
        self.change(vm, &[("power_state", Value::from("Halted")), nowhere])
    }

    async fn power_on(&mut self, vm: &VmId) -> Result<()> {
        let there = Value::Text(format!("OpaqueRef:{}", HOSTS[0]));
        self.change(
            vm,
            &[
                ("power_state", Value::from("Running")),
                ("resident_on", there),
            ],
        )
    }

    async fn pause(&mut self, vm: &VmId) -> Result<()> {
        self.change(vm, &[("power_state", Value::from("Paused"))])
    }

    async fn resume(&mut self, vm: &VmId) -> Result<()> {
        self.change(vm, &[("power_state", Value::from("Running"))])
    }

    async fn begin_move(&mut self, vm: &VmId, to: &HostId) -> Result<bool> {
        let to = Value::Text(format!("OpaqueRef:{to}"));
        let operation = Record::from([("OpaqueRef:task".to_owned(), Value::from("pool_migrate"))]);
        self.change(
            vm,
            &[
                ("current_operations", Value::Map(operation)),
                ("scheduled_to_be_resident_on", to),
            ],
        )?;
        Ok(true)
    }

    async fn migrate(&mut self, vm: &VmId, to: &HostId) -> Result<()> {
        let to = Value::Text(format!("OpaqueRef:{to}"));
        self.change(vm, &[("resident_on", to)])?;
        self.change(
            vm,
            &[
                ("current_operations", Value::Map(Record::new())),
                ("scheduled_to_be_resident_on", Value::from(NOTHING)),
            ],
        )
    }

    async fn delete(&mut self, vm: &VmId) -> Result<()> {
        let mut pool = self.shared.pool();
        pool.set("vif", &format!("OpaqueRef:vif-{vm}"), None);
        pool.set("vm", &format!("OpaqueRef:{vm}"), None);
        drop(pool);
        self.shared.changed.notify_all();
        Ok(())
    }

    async fn cut(&mut self) -> Result<()> {
        self.breaker.cut();
        Ok(())
    }

    async fn mend(&mut self) -> Result<()> {
        self.breaker.mend();
        Ok(())
    }
}
