//! Configuration files: any text is accepted whole or refused with a place, and a refusal never
//! carries control characters to a terminal.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let appliance = daemon::config::parse::<appliance::Config>(text, "lazaret.toml");
    let agent = daemon::config::parse::<agent::AgentConfig>(text, "agent.toml");
    for refused in [
        appliance.as_ref().err().map(ToString::to_string),
        agent.as_ref().err().map(ToString::to_string),
    ] {
        let control = |c: char| c.is_control() && c != '\n';
        assert!(!refused.is_some_and(|said| said.contains(control)));
    }
    if let Ok(config) = appliance {
        let policy = config.policy.to_policy(false);
        policy.validate().expect("what was read can be used");
        let _conflict = config.validate();
    }
    if let Ok(config) = agent {
        let _unusable = config.validate();
    }
});
