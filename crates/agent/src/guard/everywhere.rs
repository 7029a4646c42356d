//! What goes on beside the marks, as long as they are on: mounts are followed, here and in other
//! mount namespaces; programs run from memory are reported; what was open before is judged.

use std::thread::{Builder, Scope as Threads};

use daemon::signal::Stop;

use super::marks::Marks;
use super::scope::Scope;
use super::strangers::Strangers;
use super::{execs, sweep};
use crate::STACK_BYTES;
use crate::gate::Gate;

/// Until told to stop. Each part works without the others.
pub(crate) fn follow(marks: &mut Marks<'_>, gate: &Gate, scope: &Scope, stop: &Stop) {
    let strangers = match Strangers::new() {
        Ok(strangers) => strangers,
        Err(error) => {
            tracing::error!(%error, "new mounts are not guarded");
            stop.wait();
            return;
        }
    };
    std::thread::scope(|threads| {
        spawn(threads, "execs", || execs::watch(gate, &strangers, stop));
        match marks.guarded() {
            Ok(guarded) => spawn(threads, "sweep", move || {
                sweep::sweep(gate, scope, &guarded, stop);
            }),
            Err(error) => tracing::error!(%error, "what was open before is not judged"),
        }
        marks.follow(gate, &strangers, stop);
        stop.wait();
    });
}

fn spawn<'s>(threads: &'s Threads<'s, '_>, name: &str, work: impl FnOnce() + Send + 's) {
    let thread = Builder::new().name(name.into()).stack_size(STACK_BYTES);
    if let Err(error) = thread.spawn_scoped(threads, work) {
        tracing::error!(%error, name, "a thread cannot be started");
    }
}
