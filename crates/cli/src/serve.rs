//! How commands begin that run until they are told to stop.

use anyhow::Context;
use daemon::signal::Stop;

use crate::place::Place;

/// Logs, signals and threads as configured; then `run`.
pub(crate) fn serve<R>(place: Place, run: impl FnOnce(Place, Stop) -> R) -> anyhow::Result<()>
where
    R: Future<Output = anyhow::Result<()>>,
{
    let log = &place.config.log;
    daemon::log::init(log.format, &log.filter)?;
    let stop = Stop::install().context("cannot catch signals")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("lazaret")
        .build()
        .context("cannot start threads")?;
    runtime.block_on(run(place, stop))
}
