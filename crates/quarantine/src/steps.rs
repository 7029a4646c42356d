//! The moments at which an operation can be interrupted.

use std::io;

/// Told about every step of every operation, just before it is taken. Tests kill the process or
/// fail the step here, one after the other, to prove that nothing is lost.
pub trait Steps: Send + Sync {
    /// The named step comes next.
    ///
    /// # Errors
    /// The operation treats an error as if the step itself had failed with it.
    fn next(&self, step: &'static str) -> io::Result<()>;
}

/// Takes all steps: what a vault uses outside of tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllSteps;

impl Steps for AllSteps {
    fn next(&self, _step: &'static str) -> io::Result<()> {
        Ok(())
    }
}
