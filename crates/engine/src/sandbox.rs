//! What a worker may do: next to nothing.
//!
//! Layers, each of which alone contains most of it: no privilege and no way to gain one; landlock
//! without a single path; a seccomp allow-list whose default is death; resource limits.

use std::collections::BTreeMap;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope,
};
use rustix::process::{Resource, Rlimit, Signal, getpid, getppid, setrlimit};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// CPU seconds after which the kernel kills a worker. An honest worker retires at half of it.
pub(crate) const CPU_MAX_S: u64 = 3600;
/// Descriptors of a worker.
const DESCRIPTORS_MAX: u64 = 16;
/// `nobody` and `nogroup`, on every distribution that we know.
const NOBODY: u32 = 65534;

/// What a kind of worker needs beyond what every worker has.
#[derive(Debug, Clone, Default)]
pub struct Sandbox {
    /// System calls after its set-up. Every worker has memory, clocks, futexes and its job socket.
    pub syscalls: Vec<SyscallRule>,
    /// Unix sockets that it may connect to (its `syscalls` must allow that too).
    pub unix_sockets: Vec<PathBuf>,
    /// Largest file it may write (a memfd of its own counts). 0: none.
    pub file_bytes_max: u64,
    /// Address space that it reserves without using it (guard regions, allocator arenas), beyond
    /// the host's memory limit.
    pub reserved_bytes: u64,
}

/// A system call that is allowed.
#[derive(Debug, Clone)]
pub struct SyscallRule {
    /// Its number, `libc::SYS_…`.
    pub number: i64,
    /// Allowed only where each of these arguments, masked, has that value: (index, mask, value).
    pub arguments: Vec<(u8, u64, u64)>,
}

impl SyscallRule {
    /// Allowed whatever its arguments.
    #[must_use]
    pub fn any(number: i64) -> Self {
        Self::only(number, Vec::new())
    }

    /// Allowed for these arguments: (index, mask, value).
    #[must_use]
    pub fn only(number: i64, arguments: Vec<(u8, u64, u64)>) -> Self {
        Self { number, arguments }
    }
}

/// System calls of every worker: found by running the real engines under `strace` and by killing
/// them with a shorter list. None names a path, a process or an address; those with conditions
/// are in [`every_worker`].
const EVERY_WORKER: [i64; 27] = [
    // Jobs and reports.
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_close,
    libc::SYS_fstat,
    // Sparse content: which pages of it were read, and what is known of it.
    libc::SYS_lseek,
    libc::SYS_pread64,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Time, and threads that exist already.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_restart_syscall,
    // A thread that the set-up started may still be on its way.
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_getaffinity,
    // Dying: signal handlers, abort.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

fn every_worker() -> Vec<SyscallRule> {
    let mut rules: Vec<SyscallRule> = EVERY_WORKER.map(SyscallRule::any).into();
    let exec = u64::from(libc::PROT_EXEC.unsigned_abs());
    let shared = u64::from(libc::MAP_SHARED.unsigned_abs());
    // No code is made at run time (rules were compiled in the template), and no memory is shared:
    // shared memory would escape RLIMIT_AS once its mapping is gone.
    let private_data = vec![(2, exec, 0), (3, shared, 0)];
    rules.push(SyscallRule::only(libc::SYS_mmap, private_data));
    rules.push(SyscallRule::only(libc::SYS_mprotect, vec![(2, exec, 0)]));
    // Names of threads and of their memory.
    for option in [libc::PR_SET_NAME, libc::PR_SET_VMA] {
        let named = vec![(0, u64::from(u32::MAX), u64::from(option.unsigned_abs()))];
        rules.push(SyscallRule::only(libc::SYS_prctl, named));
    }
    // Last words go to standard error, which is /dev/null; without this they would hide the abort.
    let error_stream = vec![(0, u64::from(u32::MAX), 2)];
    rules.push(SyscallRule::only(libc::SYS_write, error_stream.clone()));
    rules.push(SyscallRule::only(libc::SYS_writev, error_stream));
    // Signals to itself only: what abort() does.
    let own = u64::from(getpid().as_raw_nonzero().get().unsigned_abs());
    let to_itself = vec![(0, u64::from(u32::MAX), own)];
    rules.push(SyscallRule::only(libc::SYS_tgkill, to_itself));
    rules
}

/// A part of the sandbox that could not be had: which, and why.
#[derive(Debug, thiserror::Error)]
#[error("sandbox: {part}: {why}")]
pub(crate) struct Missing {
    part: &'static str,
    why: String,
}

fn missing(part: &'static str) -> impl Fn(rustix::io::Errno) -> Missing {
    move |errno| Missing {
        part,
        why: errno.to_string(),
    }
}

/// Ends this process when its template does. The kernel forgets it with a change of user, so it is
/// called again after that.
pub(crate) fn die_with(template: rustix::process::Pid) -> Result<(), Missing> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(missing("parent death signal"))?;
    // The template may have died before the call above.
    if getppid() == Some(template) {
        return Ok(());
    }
    Err(Missing {
        part: "parent death signal",
        why: "the template is gone".to_owned(),
    })
}

/// Resource limits. `memory_max_bytes` comes on top of what is mapped already; 0: no limit.
pub(crate) fn limit(sandbox: &Sandbox, memory_max_bytes: u64) -> Result<(), Missing> {
    let set = |resource, part, value| {
        let rlimit = Rlimit {
            current: Some(value),
            maximum: Some(value),
        };
        setrlimit(resource, rlimit).map_err(missing(part))
    };
    set(Resource::Core, "RLIMIT_CORE", 0)?;
    set(Resource::Cpu, "RLIMIT_CPU", CPU_MAX_S)?;
    set(Resource::Nofile, "RLIMIT_NOFILE", DESCRIPTORS_MAX)?;
    set(Resource::Fsize, "RLIMIT_FSIZE", sandbox.file_bytes_max)?;
    if memory_max_bytes > 0 {
        let mapped = mapped_bytes().map_err(|error| Missing {
            part: "RLIMIT_AS",
            why: format!("/proc/self/status: {error}"),
        })?;
        let most = mapped
            .saturating_add(sandbox.reserved_bytes)
            .saturating_add(memory_max_bytes);
        set(Resource::As, "RLIMIT_AS", most)?;
    }
    Ok(())
}

/// Address space of this process in bytes.
fn mapped_bytes() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib: Option<u64> = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSize:"))
        .and_then(|size| size.trim().strip_suffix(" kB")?.parse().ok());
    Ok(kib.ok_or_else(|| std::io::Error::other("no VmSize"))? * 1024)
}

/// Gives up root where this is root, and every way to get it back.
pub(crate) fn drop_privileges() -> Result<(), Missing> {
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = (
            rustix::process::Uid::from_raw(NOBODY),
            rustix::process::Gid::from_raw(NOBODY),
        );
        // These set the calling thread's ids, and a worker has but one thread yet.
        set_thread_groups(&[]).map_err(missing("setgroups"))?;
        set_thread_res_gid(gid, gid, gid).map_err(missing("setresgid"))?;
        set_thread_res_uid(uid, uid, uid).map_err(missing("setresuid"))?;
    }
    rustix::thread::set_no_new_privs(true).map_err(missing("no_new_privs"))?;
    let undumpable = rustix::process::DumpableBehavior::NotDumpable;
    rustix::process::set_dumpable_behavior(undumpable).map_err(missing("dumpable"))
}

/// Denies the file system, TCP and (where the kernel can) abstract sockets and signals.
pub(crate) fn landlock(sandbox: &Sandbox) -> Result<(), Missing> {
    let failed = |error: &dyn std::fmt::Display| Missing {
        part: "landlock",
        why: error.to_string(),
    };
    // Version 1 (Linux 5.13) is the least that counts as landlock; the rest where it is known.
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .map_err(|e| failed(&e))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V9))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI::V9)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI::V9)))
        .and_then(Ruleset::create)
        .map_err(|e| failed(&e))?;
    let sockets = landlock::path_beneath_rules(&sandbox.unix_sockets, AccessFs::ResolveUnix);
    landlock::RulesetCreatedAttr::add_rules(ruleset, sockets)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(|e| failed(&e))?;
    Ok(())
}

/// Installs the allow-list on every thread; any other system call kills the process.
pub(crate) fn seccomp(sandbox: &Sandbox) -> Result<(), Missing> {
    let failed = |error: &dyn std::fmt::Display| Missing {
        part: "seccomp",
        why: error.to_string(),
    };
    let program = compile(sandbox).map_err(|e| failed(&e))?;
    seccompiler::apply_filter_all_threads(&program).map_err(|e| failed(&e))
}

fn compile(sandbox: &Sandbox) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in every_worker().iter().chain(&sandbox.syscalls) {
        let rules = rules.entry(rule.number).or_default();
        if rule.arguments.is_empty() {
            continue;
        }
        let conditions: Result<Vec<_>, _> = rule
            .arguments
            .iter()
            .map(|&(index, mask, value)| {
                let masked = SeccompCmpOp::MaskedEq(mask);
                SeccompCondition::new(index, SeccompCmpArgLen::Qword, masked, value)
            })
            .collect();
        rules.push(SeccompRule::new(conditions?)?);
    }
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        arch,
    )?;
    filter.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles_with_what_engines_add() {
        let sandbox = Sandbox {
            syscalls: vec![
                SyscallRule::any(libc::SYS_connect),
                SyscallRule::only(libc::SYS_socket, vec![(0, u64::MAX, 1)]),
            ],
            ..Sandbox::default()
        };
        let plain = compile(&Sandbox::default()).expect("compiles");
        let more = compile(&sandbox).expect("compiles");
        assert!(more.len() > plain.len());
    }

    #[test]
    fn this_process_has_an_address_space() {
        assert!(mapped_bytes().expect("/proc/self/status") > 1 << 20);
    }
}
