//! Values of `engine.proto`.

use proto::v1;
use proto::v1::{engine_reply, engine_request};

use crate::Golden;
use crate::link::context;
use crate::types::{detection, range, unscanned};

fn setup() -> v1::Setup {
    v1::Setup {
        memory_max_bytes: 1 << 30,
        best_effort: true,
    }
}

fn ready() -> v1::EngineReady {
    v1::EngineReady {
        name: "yara".into(),
        version: "1.22.1".into(),
        generation: vec![0x11; 16],
        rules: 1204,
        context_sensitive: true,
        warnings: vec!["a.yar:3: slow rule".into()],
        filter_bytes: 900_000,
    }
}

fn failed() -> v1::EngineFailed {
    v1::EngineFailed {
        errors: vec!["rules/a.yar:12: unknown identifier".into()],
    }
}

fn spawned() -> v1::WorkerSpawned {
    v1::WorkerSpawned {
        pid: 4242,
        error: "fork: no memory".into(),
    }
}

fn exited() -> v1::WorkerExited {
    v1::WorkerExited {
        pid: 4242,
        signal: 9,
        code: 1,
    }
}

fn unpack() -> v1::UnpackLimits {
    v1::UnpackLimits {
        depth_max: 16,
        entries_max: 10_000,
        entry_bytes_max: 256 << 20,
        total_bytes_max: 1 << 30,
        ratio_max: 1000,
    }
}

fn job() -> v1::ScanJob {
    v1::ScanJob {
        job_id: 77,
        size: 5,
        content: Some(b"hello"[..].into()),
        context: Some(context()),
        unpack: Some(unpack()),
        timeout_ms: 20_000,
        partial: Some(partial()),
    }
}

fn partial() -> v1::PartialContent {
    v1::PartialContent {
        known: vec![range()],
        report: vec![5, 2, 9].into(),
        filter: vec![0x66; 16],
    }
}

fn step() -> v1::PartialStep {
    v1::PartialStep {
        ask: vec![range()],
        whole: "rule a: nothing bounds it".into(),
        lay_out: true,
    }
}

fn report() -> v1::ScanReport {
    v1::ScanReport {
        job_id: 77,
        detections: vec![detection()],
        omitted: 2,
        incomplete: Some(unscanned()),
        error: "module pe failed".into(),
        members_judged: 7,
        member_bytes_judged: 70_000,
        last: true,
        partial: Some(step()),
    }
}

pub(crate) fn add(golden: &mut Golden) {
    golden.add("Setup", &setup());
    golden.add("SpawnWorker", &v1::SpawnWorker {});
    golden.add("Shutdown", &v1::Shutdown {});
    golden.add("EngineReady", &ready());
    golden.add("PartialContent", &partial());
    golden.add("PartialStep", &step());
    golden.add("EngineFailed", &failed());
    golden.add("WorkerSpawned", &spawned());
    golden.add("WorkerExited", &exited());
    golden.add("UnpackLimits", &unpack());
    golden.add("ScanJob", &job());
    golden.add("ScanReport", &report());

    use engine_request::Body as Request;
    let request = |body| v1::EngineRequest { body: Some(body) };
    golden.add("EngineRequest", &request(Request::Setup(setup())));
    let spawn_worker = Request::SpawnWorker(v1::SpawnWorker {});
    golden.add("EngineRequest.SpawnWorker", &request(spawn_worker));
    let shutdown = Request::Shutdown(v1::Shutdown {});
    golden.add("EngineRequest.Shutdown", &request(shutdown));
    golden.add("EngineRequest.Setup", &request(Request::Setup(setup())));

    use engine_reply::Body as Reply;
    let reply = |body| v1::EngineReply { body: Some(body) };
    golden.add("EngineReply", &reply(Reply::Ready(ready())));
    golden.add("EngineReply.Ready", &reply(Reply::Ready(ready())));
    golden.add("EngineReply.Failed", &reply(Reply::Failed(failed())));
    let worker_spawned = Reply::WorkerSpawned(spawned());
    golden.add("EngineReply.WorkerSpawned", &reply(worker_spawned));
    let worker_exited = Reply::WorkerExited(exited());
    golden.add("EngineReply.WorkerExited", &reply(worker_exited));
}
