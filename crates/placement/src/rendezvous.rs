//! Weighted rendezvous hashing: every VM ranks every appliance by itself, so that the loss of one
//! moves only its own VMs, and spreads them.

/// splitmix64's finisher.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The rank of an appliance for a VM: higher is better; the chance of being first is the weight's
/// share of the sum.
pub(crate) fn score(seed: u64, vm: u64, appliance: u64, weight: u64) -> f64 {
    let mixed = mix(mix(seed ^ mix(vm)) ^ mix(appliance ^ 0x5851_f42d_4c95_7f2d));
    // In 0..1, both ends excluded.
    let unit = ((mixed >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -(weight as f64) / unit.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_weights() {
        let weights = [1000, 2000, 1000];
        let mut first = [0_u32; 3];
        for vm in 0..40_000 {
            let ranked = (0..3).max_by(|a, b| {
                let of = |at: usize| score(7, vm, at as u64, weights[at]);
                of(*a).total_cmp(&of(*b))
            });
            first[ranked.unwrap()] += 1;
        }
        for (got, expected) in first.iter().zip([10_000_i64, 20_000, 10_000]) {
            assert!((i64::from(*got) - expected).abs() < 600, "{first:?}");
        }
    }

    #[test]
    fn no_rank_is_infinite() {
        for vm in 0..1000 {
            let score = score(0, vm, vm, 1000);
            assert!(score.is_finite() && score > 0.0);
        }
    }
}
