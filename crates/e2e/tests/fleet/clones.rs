//! Clones of one image as real machines: each becomes a guest of its own.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::{
    Agent, AgentOptions, GuestImage, GuestTree, Server, ServerOptions, Vm, VmOptions, binary,
    samples,
};

use crate::PATIENCE;

/// Our 127.0.0.1, as a machine behind QEMU's own translation sees it.
const HOST: &str = "10.0.2.2";

/// Runs after the prologue of [`GuestTree`].
const INIT: &str = r#"
ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up
mkdir -p /data; mount -t tmpfs data /data; mount -t tmpfs run /run
lazaret-agent run --config /etc/agent.toml >/tmp/agent.log 2>&1 &
n=0
while :; do
  n=$((n+1))
  status=$(lazaret-agent status --json --config /etc/agent.toml 2>/dev/null | tr -d '\n')
  cat /etc/sample > /data/bad$n 2>/dev/null
  if cat /data/bad$n >/dev/null 2>&1; then opened=yes; else opened=no; fi
  echo "content $n of $RANDOM" > /data/new; read -r line < /data/new
  keys=$(grep -rl PRIVATE /var/agent /run/agent 2>/dev/null | tr '\n' ,)
  echo "LZ $opened ,$keys $status."
  if [ $((n%20)) = 0 ]; then sed 's/^/agent: /' /tmp/agent.log; fi
  sleep 1
done
"#;

/// What a machine says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) status: Value,
    /// A malicious file was opened.
    is_open: bool,
    /// The files with a private key, each between commas.
    keys: String,
}

impl Said {
    fn of(line: &str) -> Option<Self> {
        let line = line.strip_prefix("LZ ")?.trim_end().strip_suffix('.')?;
        let mut parts = line.splitn(3, ' ');
        Some(Self {
            is_open: parts.next()? == "yes",
            keys: parts.next()?.to_owned(),
            status: serde_json::from_str(parts.next()?).ok()?,
        })
    }

    pub(crate) fn guest(&self) -> &str {
        self.status["identity"]["guest"].as_str().unwrap_or("")
    }

    pub(crate) fn is_up(&self) -> bool {
        self.status["link"] == "up" && !self.is_open
    }
}

/// Waits until a machine says so.
pub(crate) fn said(vm: &mut Vm, what: &str, wanted: impl Fn(&Said) -> bool) -> Result<Said> {
    vm.wait(PATIENCE, what, |text| {
        text.lines().rev().filter_map(Said::of).find(&wanted)
    })
}

/// An image with our agent, whose configuration ends in this.
pub(crate) fn tree(dir: &Path, server: &Server, more: &str) -> Result<GuestTree> {
    let port = |address: &str| -> Result<String> {
        let (_, port) = address.rsplit_once(':').context("no port")?;
        Ok(format!("{HOST}:{port}"))
    };
    let tree = GuestTree::new(dir, INIT)?;
    tree.copy_program(&binary("lazaret-agent")?, "bin/lazaret-agent")?;
    let config = format!(
        "state_dir = \"/var/agent\"\nruntime_dir = \"/run/agent\"\n\n\
         [appliance]\naddresses = [\"{}\"]\n\n[guard]\ninclude = [\"/data\"]\n\n\
         [enrol]\ncontroller = \"{}\"\nretry_max_s = 2\n{more}\n",
        port(&server.link)?,
        port(&server.enrol)?,
    );
    tree.write("etc/agent.toml", config, 0o644)?;
    tree.write("etc/sample", samples::eicar(), 0o644)?;
    Ok(tree)
}

pub(crate) fn server(dir: &Path) -> Result<Server> {
    let extra = "[removal]\non_malicious = \"deny\"\n\n[policy]\nopen_budget_ms = 60000\n";
    let options = ServerOptions {
        extra: extra.to_owned(),
        ..ServerOptions::default()
    };
    Server::start(&dir.join("server"), &options)
}

pub(crate) fn uuid(n: u8) -> String {
    format!("5d1c7a52-8f0e-4a5a-9d0b-3f6f2b7e00{n:02x}")
}

/// The machine of that number.
pub(crate) fn clone_of(dir: &Path, image: &GuestImage, n: u8, more: &[&str]) -> Result<Vm> {
    twin_of(&dir.join(format!("vm{n}")), image, (n, n), more)
}

/// A machine of that number's UUID, and of another one's generation.
fn twin_of(dir: &Path, image: &GuestImage, (n, generation): (u8, u8), more: &[&str]) -> Result<Vm> {
    let generation_id = format!("324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb{generation:02x}");
    let mut args = vec![
        "-uuid".to_owned(),
        uuid(n),
        "-device".to_owned(),
        format!("vmgenid,guid={generation_id}"),
        "-global".to_owned(),
        format!("virtio-net-pci.mac=52:54:00:77:00:{n:02x}"),
    ];
    args.extend(more.iter().map(|it| (*it).to_owned()));
    let options = VmOptions {
        args,
        ..VmOptions::default()
    };
    Vm::boot(dir, image, &options)
}

#[test]
fn each_clone_of_a_golden_image_becomes_a_guest_of_its_own() -> Result<()> {
    let scratch = e2e::scratch("clones")?;
    let dir = scratch.path();
    let server = server(dir)?;
    let golden = tree(dir, &server, "token_file = \"/etc/token\"")?;
    let token = server.cli(&["token", "--uses", "2"])?;
    golden.write("etc/token", token.trim(), 0o600)?;
    let image = golden.pack()?;

    let mut machines = [
        clone_of(dir, &image, 1, &[])?,
        clone_of(dir, &image, 2, &[])?,
    ];
    let mut guests = Vec::new();
    for (n, vm) in (1..).zip(&mut machines) {
        let said = said(vm, "session", Said::is_up)?;
        let machine = &said.status["identity"]["machine"];
        let id = |text: &str| Value::from(text.replace('-', ""));
        ensure!(machine["system_uuid"] == id(&uuid(n)), "{machine}");
        let generation = format!("324e6eafd1d14bf6bf41b9bb6c91fb{n:02x}");
        ensure!(machine["generation_id"] == id(&generation), "{machine}");
        let mac = format!("52:54:00:77:00:{n:02x}");
        ensure!(machine["macs"] == Value::from(vec![mac]), "{machine}");
        guests.push(said.guest().to_owned());
    }
    ensure!(
        guests[0] != guests[1],
        "two machines, one guest: {guests:?}"
    );

    // The image's token is used up: a third one gets nowhere with it, and guards all the same.
    let mut third = clone_of(dir, &image, 3, &[])?;
    said(&mut third, "refusal", |said| {
        said.status["identity"]["state"] == "refused" && said.is_open
    })?;
    drop(third);
    // With one that its hypervisor injects it does.
    for (n, way) in [(4, "smbios"), (5, "fw_cfg")] {
        let token = server.token()?;
        let injected = match way {
            "smbios" => [
                "-smbios".to_owned(),
                format!("type=11,value=lazaret.token={token}"),
            ],
            _ => [
                "-fw_cfg".to_owned(),
                format!("name=opt/org.lazaret/token,string={token}"),
            ],
        };
        let mut vm = clone_of(dir, &image, n, &injected.each_ref().map(String::as_str))?;
        let said = said(&mut vm, "session", Said::is_up).context(way)?;
        ensure!(
            !guests.contains(&said.guest().to_owned()),
            "{way}: {guests:?}"
        );
        guests.push(said.guest().to_owned());
    }
    Ok(())
}

#[test]
fn a_desktop_waits_for_a_person_and_keeps_its_key_in_memory() -> Result<()> {
    let scratch = e2e::scratch("desktops")?;
    let dir = scratch.path();
    let server = server(dir)?;
    let pool = ["fleet", "pool", "set", "desktops"];
    server.cli(&[&pool[..], &["--proof", "approval", "--ephemeral"]].concat())?;
    let golden = tree(dir, &server, "token_file = \"/etc/token\"")?;
    let token = server.cli(&["token", "--pool", "desktops"])?;
    golden.write("etc/token", token.trim(), 0o600)?;
    let mut desktop = clone_of(dir, &golden.pack()?, 1, &[])?;
    said(&mut desktop, "wait", |said| {
        said.status["identity"]["state"] == "pending"
    })?;
    let pending = e2e::fleet(&server, &["pending"])?;
    let entries = pending.as_array().context("no list")?;
    ensure!(entries.len() == 1, "{pending}");
    let id = entries[0]["id"].as_str().context("no id")?;
    server.cli(&["fleet", "approve", id])?;
    let said = said(&mut desktop, "session", Said::is_up)?;
    ensure!(said.status["identity"]["kept"] == "runtime", "{said:?}");
    ensure!(said.keys == ",/run/agent/guest.pem,", "{said:?}");
    Ok(())
}

/// An image that was made of a machine after that had enrolled.
#[test]
fn copies_of_an_enrolled_machine_become_guests_of_their_own() -> Result<()> {
    let scratch = e2e::scratch("copies")?;
    let dir = scratch.path();
    let server = server(dir)?;
    let options = AgentOptions {
        guard: vec![dir.to_owned()],
        system_uuid: uuid(1),
        ..AgentOptions::default()
    };
    let original = Agent::enrol(&dir.join("original"), &server, &options, None)?;
    let image = tree(dir, &server, "")?;
    image.copy_folder(&original.state_dir(), "var/agent")?;
    let image = image.pack()?;

    let mut first = clone_of(dir, &image, 1, &[])?;
    let before = said(&mut first, "session", Said::is_up)?;
    // Another UUID: it knows by itself.
    let rekeyed = |said: &Said| said.is_up() && said.guest() != before.guest();
    let mut other = clone_of(dir, &image, 2, &[])?;
    let own = said(&mut other, "identity of its own", rekeyed)?;
    // The same UUID: only whoever sees both knows.
    let mut twin = twin_of(&dir.join("twin"), &image, (1, 9), &[])?;
    let came = said(&mut twin, "session", Said::is_up)?;
    ensure!(came.guest() == before.guest(), "{came:?}");
    let own_too = said(&mut twin, "identity of its own", rekeyed)?;
    ensure!(own.guest() != own_too.guest(), "{own:?} {own_too:?}");
    let events = e2e::fleet(&server, &["events"])?.to_string();
    ensure!(events.contains("identity_conflict"), "{events}");
    let now = said(&mut first, "session", Said::is_up)?;
    ensure!(now.guest() == before.guest(), "{now:?}");

    // They were protected all the time: what is malicious was not opened once there was a session.
    for vm in [&first, &other, &twin] {
        let text = vm.console();
        let all = text.lines().filter_map(Said::of);
        let since = all.skip_while(|said| !said.is_up());
        let open = since.filter(|said| said.is_open).count();
        ensure!(
            open == 0,
            "malicious files were opened {open} times: {text}"
        );
    }
    Ok(())
}
