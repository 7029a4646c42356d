//! Compares planned and whole scans over a folder.
use std::time::Instant;
fn cpu() -> f64 { let s = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap(); s.split(' ').next().unwrap().parse::<f64>().unwrap() * 1e-9 }
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let sources = engine_yara::load_sources(&[a[1].clone().into()]).unwrap();
    let t = Instant::now();
    let whole = engine_yara::Whole::compile(&sources).unwrap();
    println!("whole compiled {:?}", t.elapsed());
    let t = Instant::now();
    let planned = engine_yara::Planned::compile(&sources).unwrap();
    let p = planned.plan();
    println!("planned {:?}: rules {} shards {} residents {} probes {} (cheap {}) literals {} filter bytes {}", t.elapsed(), p.len(), planned.shards(), p.residents().len(), p.probes().len(), p.probes().iter().filter(|p| !p.expensive).count(), p.filter().len(), p.filter().to_bytes().len());
    let status = || { let s = std::fs::read_to_string("/proc/self/status").unwrap(); s.lines().filter(|l| l.starts_with("VmSize") || l.starts_with("VmRSS")).collect::<Vec<_>>().join(" ") };
    println!("{}", status());
    let mut ps = planned.scanner().unwrap(); let mut ws = whole.scanner();
    println!("{}", status());
    let max: usize = a[3].parse().unwrap();
    let (mut n, mut bytes, mut tp, mut tw, mut tf, mut bad) = (0, 0, 0.0, 0.0, 0.0, 0);
    let mut st = engine_yara::Stages::default(); let mut hist = [0usize; 8]; let (mut te, mut ts) = (0.0, 0.0); let mut first: std::collections::HashMap<usize, usize> = Default::default(); let mut which: std::collections::HashMap<usize, usize> = Default::default();
    let mut todo = vec![std::path::PathBuf::from(&a[2])];
    while let Some(d) = todo.pop() { for e in std::fs::read_dir(&d).unwrap().flatten() { let m = e.file_type().unwrap(); if m.is_dir() { todo.push(e.path()) } else if m.is_file() && bytes < max << 20 {
        let Ok(data) = std::fs::read(e.path()) else { continue }; if data.len() > 32 << 20 { continue; }
        let path = e.path(); let pb = path.as_os_str().as_encoded_bytes();
        let t = cpu(); let x = ps.scan(&data, pb).unwrap(); tp += cpu() - t;
        let t = cpu(); let _ = p.filter().scan(&data, &mut |_, _| std::ops::ControlFlow::Continue(())); tf += cpu() - t;
        if a.len() < 5 { let t = cpu(); let y = ws.scan(&data, pb).unwrap(); tw += cpu() - t;
        if x.matches != y.matches { bad += 1; println!("VIOLATION {path:?} {:?} {:?}", x.matches, y.matches); } }
        n += 1; bytes += data.len(); st.hits += x.stages.hits; st.open_after_filter += x.stages.open_after_filter; st.open += x.stages.open; st.shards += x.stages.shards; hist[x.stages.shards.min(7)] += 1;
        { let mut hits = readplan::Hits::default(); let _ = p.filter().scan(&data, &mut |l, o| { hits.add(l, o as u64); std::ops::ControlFlow::Continue(()) });
          let t = cpu(); let slice: &[u8] = &data; let open = p.open(&readplan::Known { size: data.len() as u64, bytes: &slice, hits: &hits, search: None }, &|_| None); te += cpu() - t;
          let t = cpu(); let _ = p.still_open(&open, &readplan::Known { size: data.len() as u64, bytes: &slice, hits: &hits, search: Some(slice) }, &|_| None); ts += cpu() - t;
          for r in open { *first.entry(r).or_default() += data.len(); } }
        for r in ps.last_open() { *which.entry(*r).or_default() += data.len(); }
    } } }
    let mb = bytes as f64 / 1e6;
    println!("{n} files {mb:.0} MB planned {:.1} MB/s whole {:.1} MB/s filter {:.1} MB/s ratio {:.2} bad {bad}", mb / tp, mb / tw, mb / tf, tw / tp);
    println!("per file {:?} / {n}; shards hist {hist:?}", st);
    println!("evaluation {:.1} MB/s, search {:.1} MB/s", mb / te, mb / ts);
    let mut w: Vec<_> = first.into_iter().collect(); w.sort_by_key(|x| std::cmp::Reverse(x.1));
    for (r, b) in w.iter().take(40) { print!("{} {:.1}; ", p.name(*r).1, *b as f64 / 1e6); } println!();
    let mut w: Vec<_> = which.into_iter().collect(); w.sort_by_key(|x| std::cmp::Reverse(x.1));
    for (r, b) in w.iter().take(25) { println!("{:?} {:.1} MB", p.name(*r).1, *b as f64 / 1e6); }
}
