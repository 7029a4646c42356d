//! A real virtual machine with a virtio-serial port, and no connector at all: what the appliance on
//! its host writes into the port is how the fleet knows where it is.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::fleet;
use serde_json::Value;
use testbed::{
    Apart, ApartOptions, GuestAgent, GuestTree, HostNet, Server, ServerOptions, Vm, VmOptions,
    wait_until,
};

use crate::PATIENCE;

const STREAMS: &str = "10.77.0.1:7445";
/// Emulated, and beside a build, it boots slowly.
const BOOTS_WITHIN: Duration = Duration::from_secs(300);

/// Behind QEMU's own translation.
const NETWORK: &str = "hostname desk; ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up; \
                       ip route add default via 10.0.2.2";

/// Opens files for ever.
const INIT: &str = r#"
n=0
while :; do
  n=$((n+1)); f=/data/f$((n%200))
  echo "content $n of $RANDOM" > $f || echo "LZ-FAILED $n"
  read -r line < $f || echo "LZ-FAILED $n"
  [ $((n%50)) = 0 ] && echo "LZ-OPENED $n."
done
"#;

#[test]
fn a_machine_is_where_its_serial_port_leads() -> Result<()> {
    let scratch = e2e::scratch("position")?;
    let dir = scratch.path();
    let net = HostNet::new()?;
    let channels = ["channels0", "channels1"].map(|name| dir.join(name));
    for folder in &channels {
        std::fs::create_dir(folder)?;
    }
    let server = first(dir, &net, &channels[0])?;
    let second = ApartOptions {
        address: net.address(1),
        netns: Some(net.host(1).to_owned()),
        fleet_extra: in_fleet("host1", &channels[1]),
        ..ApartOptions::of(STREAMS)
    };
    let _second = Apart::start(&dir.join("appliance1"), "second", &server, &second)?;
    let both = || {
        let all = fleet(&server, &["appliances"]).unwrap_or_default();
        let up = all.as_array().into_iter().flatten();
        up.filter(|it| it["availability"] == "up").count() == 2
    };
    ensure!(wait_until(PATIENCE, both), "no second appliance");

    let desk = [channels[0].join("desk"), channels[1].join("desk")];
    std::fs::create_dir(&desk[0])?;
    let mut vm = boot(dir, &net, &server, &desk[0])?;
    let first = attached_to_another(&server, "")?;
    ensure!(first != "second", "it was told so by nobody");
    opens_more(&mut vm)?;

    // What a live migration does to the port: the other end is another host's.
    std::fs::rename(&desk[0], &desk[1])?;
    ensure!(attached_to_another(&server, &first)? == "second");
    opens_more(&mut vm)?;
    std::fs::rename(&desk[1], &desk[0])?;
    ensure!(attached_to_another(&server, "second")? == first);
    opens_more(&mut vm)?;
    let failed = vm
        .console()
        .lines()
        .any(|line| line.starts_with("LZ-FAILED"));
    ensure!(!failed, "opens failed: {}", vm.console());
    Ok(())
}

fn in_fleet(host: &str, channels: &Path) -> String {
    format!(
        "host = \"{host}\"\nchannels = [\"{}\"]\n",
        channels.display()
    )
}

/// The controller, and the appliance on the first host.
fn first(dir: &Path, net: &HostNet, channels: &Path) -> Result<Server> {
    let options = ServerOptions {
        address: net.address(0),
        netns: Some(net.host(0).to_owned()),
        extra: format!(
            "[controller]\nlisten = \"{STREAMS}\"\n\n[fleet]\n{}\n\
             [policy]\nopen_budget_ms = 60000\nexec_budget_ms = 60000\non_unscanned = \"deny\"\n",
            in_fleet("host0", channels)
        ),
        ..ServerOptions::default()
    };
    Server::start(&dir.join("appliance0"), &options)
}

fn boot(dir: &Path, net: &HostNet, server: &Server, channel: &Path) -> Result<Vm> {
    // It does not measure: the port alone tells.
    let agent = GuestAgent {
        server,
        network: NETWORK,
        measure_s: 0,
    };
    let image = GuestTree::with_agent(&dir.join("guest"), &agent, INIT)?.pack()?;
    let socket = channel.join("org.lazaret.0");
    let chardev = format!(
        "socket,id=host,path={},server=on,wait=off",
        socket.display()
    );
    let options = VmOptions {
        netns: Some(net.host(0).to_owned()),
        args: [
            "-device",
            "virtio-serial-pci",
            "-chardev",
            &chardev,
            "-device",
            "virtserialport,chardev=host,name=org.lazaret.0",
        ]
        .map(str::to_owned)
        .to_vec(),
    };
    let mut vm = Vm::boot(&dir.join("vm"), &image, &options)?;
    vm.wait(BOOTS_WITHIN, "its agent has no link", |text| {
        text.contains("LZ-READY").then_some(())
    })?;
    Ok(vm)
}

/// Waits until the machine is beside and uses another appliance than this; its name.
fn attached_to_another(server: &Server, before: &str) -> Result<String> {
    let look = || -> Option<String> {
        let why = fleet(server, &["why", "desk"]).ok()?;
        let attached = why["attached"].as_str().filter(|it| !it.is_empty())?;
        let used = why["vm"]["connected_to"] == attached && why["vm"]["tier"] == 0;
        (used && attached != before).then(|| attached.to_owned())
    };
    let mut found = None;
    wait_until(PATIENCE, || {
        found = look();
        found.is_some()
    });
    let told = || fleet(server, &["why", "desk"]).unwrap_or(Value::Null);
    found.with_context(|| format!("not attached: {}", told()))
}

/// Waits until the guest has opened more files.
fn opens_more(vm: &mut Vm) -> Result<()> {
    let count = |text: &str| text.matches("LZ-OPENED").count();
    let before = count(&vm.console());
    vm.wait(PATIENCE, "it opens no more files", |text| {
        (count(text) > before + 1).then_some(())
    })
}
