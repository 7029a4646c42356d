//! Prints what a list of so many digests costs: `cargo run --release -p allowlist --example
//! look_up -- 1000000 10000000`.

use std::hint::black_box;
use std::time::Instant;

use allowlist::{Digest, List, Map, SigningKey};

const LOOK_UPS: u32 = 2_000_000;

fn digest(n: u32) -> Digest {
    blake3::hash(&n.to_le_bytes()).into()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("look_up-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let key = SigningKey::create(&folder.join("key"))?;
    std::fs::remove_dir_all(&folder)?;
    for count in std::env::args().skip(1) {
        measure(count.parse()?, &key)?;
    }
    Ok(())
}

fn measure(count: u32, key: &SigningKey) -> Result<(), Box<dyn std::error::Error>> {
    let list = List::new(
        "measured",
        1,
        0,
        (0..count).map(digest).collect(),
        Vec::new(),
    )?;
    let bytes = list.to_bytes(Some(key))?;
    drop(list);
    let begun = Instant::now();
    let map = Map::new(bytes, &[key.public()], None)?;
    let load = begun.elapsed();
    let per_entry = map.bytes_held() as f64 / f64::from(count);
    println!("{count} digests: {per_entry:.2} bytes each, verified and indexed in {load:.2?}");
    for (what, first) in [("listed", 0), ("not listed", count)] {
        // In an order that no cache foresees.
        let asked = (0..LOOK_UPS).map(|n| first + n.wrapping_mul(2_654_435_761) % count);
        let asked: Vec<Digest> = asked.map(digest).collect();
        let begun = Instant::now();
        let found = asked
            .iter()
            .filter(|digest| map.lists(black_box(digest)))
            .count();
        let each = begun.elapsed().as_nanos() / u128::from(LOOK_UPS);
        println!("  {what}: {each} ns a look-up, {found} of {LOOK_UPS} found");
    }
    Ok(())
}
