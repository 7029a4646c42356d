//! The experiments, each a claim about the kernel that some fast path rests on.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use super::scene::{Failed, Scene, Told, ensure};
use super::{Experiment, FastPath};
use crate::FileIdentity;
use crate::lease::{LeaseRefused, ReadLease};
use crate::sys::{self, SharedMapping};

/// Longer than two ticks of the slowest clock (100 Hz).
const TICKS: Duration = Duration::from_millis(25);
/// How often a thing is done whose failure depends on time.
const ROUNDS: usize = 24;

const CACHE: &[FastPath] = &[FastPath::Cache, FastPath::Standing];
const STANDING: &[FastPath] = &[FastPath::Standing];

pub(super) const ALL: [Experiment; 9] = [
    Experiment {
        claim: "an open is asked about",
        trap: 11,
        supports: CACHE,
        run: open_asks,
    },
    Experiment {
        claim: "a descriptor for writing refuses a lease",
        trap: 6,
        supports: CACHE,
        run: writer_refuses_lease,
    },
    Experiment {
        claim: "a writable shared mapping refuses a lease",
        trap: 6,
        supports: CACHE,
        run: mapping_refuses_lease,
    },
    Experiment {
        claim: "a close by a writer is told before the next open",
        trap: 8,
        supports: CACHE,
        run: close_before_open,
    },
    Experiment {
        claim: "a store through a new mapping moves the change time",
        trap: 5,
        supports: CACHE,
        run: store_moves_change_time,
    },
    Experiment {
        claim: "any two changes have two change times",
        trap: 16,
        supports: &[FastPath::FineStamps],
        run: fine_stamps,
    },
    Experiment {
        claim: "a verdict in the kernel keeps opens quiet",
        trap: 5,
        supports: STANDING,
        run: standing_is_quiet,
    },
    Experiment {
        claim: "whoever would write waits until it is gone",
        trap: 5,
        supports: STANDING,
        run: writers_wait,
    },
    Experiment {
        claim: "a file renamed over it is asked about",
        trap: 16,
        supports: STANDING,
        run: another_file_asks,
    },
];

fn open_asks(scene: &Scene) -> Result<(), Failed> {
    let path = scene.file("open", b"x")?;
    let told = scene.told_of_open(&path)?;
    ensure(told == [Told::Open], &format!("told: {told:?}"))
}

fn writer_refuses_lease(scene: &Scene) -> Result<(), Failed> {
    let path = scene.file("writer", b"x")?;
    let reader = File::open(&path)?;
    let writer = File::options().read(true).write(true).open(&path)?;
    lease_is_refused(&reader)?;
    drop(writer);
    lease_is_had(&reader)
}

fn mapping_refuses_lease(scene: &Scene) -> Result<(), Failed> {
    let path = scene.file("mapping", b"x")?;
    let reader = File::open(&path)?;
    let mapping = SharedMapping::of(&File::options().read(true).write(true).open(&path)?)?;
    lease_is_refused(&reader)?;
    drop(mapping);
    lease_is_had(&reader)
}

fn lease_is_refused(reader: &File) -> Result<(), Failed> {
    match ReadLease::try_take(reader.as_fd()) {
        Err(LeaseRefused::WriterHeld) => Ok(()),
        Err(other @ LeaseRefused::Unsupported(_)) => Err(Failed::Untried(other.to_string())),
        Ok(_) => Err(Failed::Otherwise("a lease beside a writer".to_owned())),
    }
}

fn lease_is_had(reader: &File) -> Result<(), Failed> {
    let lease = ReadLease::try_take(reader.as_fd());
    lease.map_err(|error| Failed::Untried(error.to_string()))?;
    Ok(())
}

fn close_before_open(scene: &Scene) -> Result<(), Failed> {
    let path = scene.file("order", b"x")?;
    for _ in 0..ROUNDS {
        let written = || {
            let mut writer = File::options().write(true).open(&path)?;
            writer.write_all(b"y")?;
            drop(writer);
            File::open(&path)
        };
        let (_, told) = scene.told(&path, written)?;
        let expected = [Told::Open, Told::CloseWrite, Told::Open];
        ensure(told == expected, &format!("told: {told:?}"))?;
    }
    Ok(())
}

fn store_moves_change_time(scene: &Scene) -> Result<(), Failed> {
    let path = scene.file("store", b"x")?;
    let reader = File::open(&path)?;
    std::thread::sleep(TICKS);
    let before = FileIdentity::of(reader.as_fd())?;
    let mut mapping = SharedMapping::of(&File::options().read(true).write(true).open(&path)?)?;
    mapping.store(b'y');
    drop(mapping);
    let after = FileIdentity::of(reader.as_fd())?;
    ensure(before.ctime_ns != after.ctime_ns, "it stayed")
}

fn fine_stamps(scene: &Scene) -> Result<(), Failed> {
    let path = scene.file("stamps", b"x")?;
    let reader = File::open(&path)?;
    let mut seen = FileIdentity::of(reader.as_fd())?;
    for _ in 0..ROUNDS {
        std::fs::write(&path, b"y")?;
        let now = FileIdentity::of(reader.as_fd())?;
        ensure(
            now.ctime_ns != seen.ctime_ns,
            "two changes within one tick look alike",
        )?;
        seen = now;
    }
    Ok(())
}

fn standing_is_quiet(scene: &Scene) -> Result<(), Failed> {
    let path = scene.file("quiet", b"x")?;
    let verdict = scene.place(&path)?;
    let told = scene.told_of_open(&path)?;
    ensure(told.is_empty(), "an open raised an event")?;
    drop(verdict);
    let told = scene.told_of_open(&path)?;
    ensure(told == [Told::Open], "no event after it was taken back")
}

fn writers_wait(scene: &Scene) -> Result<(), Failed> {
    let path = scene.file("waits", b"xx")?;
    let verdict = scene.place(&path)?;
    scene.waits_for(verdict, || {
        File::options().write(true).open(&path).map(drop)
    })?;
    let verdict = scene.place(&path)?;
    let name = CString::new(path.as_os_str().as_bytes()).map_err(std::io::Error::from)?;
    scene.waits_for(verdict, || sys::truncate(&name, 1))?;
    let told = scene.told_of_open(&path)?;
    ensure(told.contains(&Told::Open), "no event after the writer")
}

fn another_file_asks(scene: &Scene) -> Result<(), Failed> {
    let path = scene.file("old", b"x")?;
    let new = scene.file("new", b"y")?;
    let _verdict = scene.place(&path)?;
    std::fs::rename(&new, &path)?;
    let told = scene.told_of_open(&path)?;
    ensure(told == [Told::Open], "the other file was not asked about")
}
