//! Who belongs to the fleet: that part of `admin.proto`.

use proto::v1;

use crate::Golden;

pub(crate) fn pool() -> v1::FleetPool {
    v1::FleetPool {
        name: "desktops".into(),
        ephemeral: true,
        proof: "inventory".into(),
        ranges: vec!["10.1.0.0/16".into()],
        tags: vec!["vdi".into()],
        clusters: vec!["c1".into()],
        guests_max: 500,
        members: 480,
        tpm_cas: vec![vec![0x30, 0x07]],
        tpm_ca_fingerprints: vec![vec![0x66; 32]],
    }
}

pub(crate) fn pending() -> v1::FleetPending {
    v1::FleetPending {
        id: "ab".repeat(16),
        pool: "desktops".into(),
        hostname: "vdi-7".into(),
        address: "10.1.0.7".into(),
        system_uuid: vec![3; 16],
        asked_at_s: 1_800_000_000,
        why: "its VM has a guest already".into(),
        decision: "waiting".into(),
        copy_of: vec![0x99; 16],
        rivals: vec![vec![0x77; 16]],
    }
}

pub(crate) fn member() -> v1::FleetMember {
    v1::FleetMember {
        guest_id: vec![0x99; 16],
        hostname: "vdi-7".into(),
        address: "10.1.0.7".into(),
        pool: "desktops".into(),
        ephemeral: true,
        system_uuid: vec![3; 16],
        generation_id: vec![4; 16],
        vm: "v7".into(),
        joined_at_s: 1_800_000_000,
        serial: 12,
        key_id: vec![5; 16],
        certified_until_s: 1_800_043_200,
        state: "retired".into(),
        ended_at_s: 1_800_050_000,
        why: "its VM was deleted".into(),
        copy_of: vec![0x88; 16],
    }
}

pub(crate) fn decision() -> v1::FleetDecision {
    v1::FleetDecision {
        id: "ab".repeat(16),
        deny: true,
        replace: true,
    }
}

pub(crate) fn members() -> v1::FleetMembers {
    v1::FleetMembers {
        pool: "desktops".into(),
        skip: 1000,
    }
}

pub(crate) fn revoke() -> v1::FleetRevoke {
    v1::FleetRevoke {
        guest_id: vec![0x99; 16],
        reason: "stolen".into(),
        with_copies: true,
    }
}

pub(crate) fn in_session() -> v1::FleetInSession {
    v1::FleetInSession {
        vms: vec!["desk-1".into()],
        state: "in_session".into(),
        valid_s: 3600,
    }
}

pub(crate) fn add(golden: &mut Golden) {
    golden.add("FleetPool", &pool());
    golden.add("FleetPending", &pending());
    golden.add("FleetDecision", &decision());
    golden.add("FleetMembers", &members());
    golden.add("FleetMember", &member());
    golden.add("FleetRevoke", &revoke());
    golden.add("FleetInSession", &in_session());
}
