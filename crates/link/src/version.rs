//! Which version is spoken: the highest that both know.

use proto::v1;

/// The version for this Hello, or why there is none.
#[cfg(feature = "server")]
pub(crate) fn negotiate(hello: &v1::Hello) -> Result<u32, String> {
    let (ours_min, ours_max) = proto::VERSIONS;
    let (min, max) = (hello.version_min, hello.version_max);
    if min == 0 || min > max {
        return Err(format!("protocol versions {min} to {max} make no sense"));
    }
    let highest = max.min(ours_max);
    if highest < min.max(ours_min) {
        return Err(format!(
            "no common protocol version: asked for {min} to {max}, spoken are {ours_min} to {ours_max}"
        ));
    }
    Ok(highest)
}

/// Whether a Welcome can be worked with; what is wrong with it otherwise.
pub(crate) fn check_welcome(welcome: &v1::Welcome) -> Result<(), &'static str> {
    let (min, max) = proto::VERSIONS;
    if !(min..=max).contains(&welcome.version) {
        return Err("it speaks a version that was not offered");
    }
    if welcome.in_flight_max == 0 {
        return Err("its in_flight_max is 0");
    }
    if welcome.policy.is_none() {
        return Err("it has no policy");
    }
    if model::Generation::from_slice(&welcome.generation).is_none() {
        return Err("its generation is not valid");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "server")]
    fn hello(version_min: u32, version_max: u32) -> v1::Hello {
        v1::Hello {
            version_min,
            version_max,
            ..v1::Hello::default()
        }
    }

    #[cfg(feature = "server")]
    #[test]
    fn the_highest_common_version_or_a_clear_no() {
        let (min, max) = proto::VERSIONS;
        assert_eq!(negotiate(&hello(min, max)), Ok(max));
        assert_eq!(negotiate(&hello(1, u32::MAX)), Ok(max));
        let refused = negotiate(&hello(max + 1, max + 2)).unwrap_err();
        assert!(refused.contains("no common"), "{refused}");
        assert!(negotiate(&hello(0, 1)).is_err());
        assert!(negotiate(&hello(2, 1)).is_err());
    }

    #[test]
    fn a_welcome_is_checked_whole() {
        let good = v1::Welcome {
            version: proto::VERSIONS.1,
            appliance: String::new(),
            generation: vec![0; 16],
            policy: Some(v1::Policy::default()),
            in_flight_max: 1,
        };
        assert_eq!(check_welcome(&good), Ok(()));
        let spoilt: [&dyn Fn(&mut v1::Welcome); 4] = [
            &|welcome| welcome.version += 1,
            &|welcome| welcome.generation.clear(),
            &|welcome| welcome.policy = None,
            &|welcome| welcome.in_flight_max = 0,
        ];
        for spoil in spoilt {
            let mut welcome = good.clone();
            spoil(&mut welcome);
            assert!(check_welcome(&welcome).is_err(), "{welcome:?}");
        }
    }
}
