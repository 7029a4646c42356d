//! Conversions between messages and the model. Into messages they cannot fail; from messages
//! each names the field that is wrong.

use std::time::Duration;

use model::{
    AccessClass, Coverage, DETECTIONS_MAX, Detection, Digest, Disposition, Generation, LateAction,
    Outcome, Policy, PolicyError, Sha256, UnscannedReason, Verdict,
};

use crate::v1;

/// A message that breaks the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field that must be set is not.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// A field has a wrong length or value.
    #[error("{0} is not valid")]
    Invalid(&'static str),
    /// A policy that cannot be used.
    #[error("policy cannot be used")]
    Policy(#[source] PolicyError),
}

impl From<AccessClass> for v1::AccessClass {
    fn from(class: AccessClass) -> Self {
        match class {
            AccessClass::Exec => Self::Exec,
            AccessClass::Open => Self::Open,
            AccessClass::CloseWrite => Self::CloseWrite,
            AccessClass::OnDemand => Self::OnDemand,
            AccessClass::Ledger => Self::Ledger,
        }
    }
}

impl TryFrom<v1::AccessClass> for AccessClass {
    type Error = ConvertError;
    fn try_from(class: v1::AccessClass) -> Result<Self, ConvertError> {
        Ok(match class {
            v1::AccessClass::Unspecified => return Err(ConvertError::Missing("class")),
            v1::AccessClass::Exec => Self::Exec,
            v1::AccessClass::Open => Self::Open,
            v1::AccessClass::CloseWrite => Self::CloseWrite,
            v1::AccessClass::OnDemand => Self::OnDemand,
            v1::AccessClass::Ledger => Self::Ledger,
        })
    }
}

impl From<UnscannedReason> for v1::UnscannedReason {
    fn from(reason: UnscannedReason) -> Self {
        let number = UnscannedReason::ALL
            .iter()
            .position(|r| *r == reason)
            .map_or(0, |i| i as i32 + 1);
        Self::try_from(number).unwrap_or(Self::Other)
    }
}

impl From<v1::UnscannedReason> for UnscannedReason {
    fn from(reason: v1::UnscannedReason) -> Self {
        usize::try_from(reason as i32 - 1)
            .ok()
            .and_then(|i| Self::ALL.get(i).copied())
            .unwrap_or(Self::Other)
    }
}

impl From<&Detection> for v1::Detection {
    fn from(detection: &Detection) -> Self {
        Self {
            name: detection.name.clone(),
            engine: detection.engine.clone(),
            path_inside: detection.path_inside.clone(),
        }
    }
}

impl TryFrom<v1::Detection> for Detection {
    type Error = ConvertError;
    fn try_from(detection: v1::Detection) -> Result<Self, ConvertError> {
        if detection.name.is_empty() {
            return Err(ConvertError::Missing("detection.name"));
        }
        Ok(Self {
            name: detection.name,
            engine: detection.engine,
            path_inside: detection.path_inside,
        })
    }
}

/// Converts at most [`DETECTIONS_MAX`] of them; the second value counts the rest.
fn detections(list: Vec<v1::Detection>) -> Result<(Vec<Detection>, u32), ConvertError> {
    let omitted = list.len().saturating_sub(DETECTIONS_MAX);
    let kept = list.into_iter().take(DETECTIONS_MAX);
    let kept: Result<Vec<_>, _> = kept.map(Detection::try_from).collect();
    Ok((kept?, u32::try_from(omitted).unwrap_or(u32::MAX)))
}

impl From<&Outcome> for v1::verdict::Outcome {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Clean => Self::Clean(v1::Clean {}),
            Outcome::Malicious {
                detections,
                omitted,
            } => Self::Malicious(v1::Malicious {
                detections: detections.iter().map(Into::into).collect(),
                omitted: *omitted,
            }),
            Outcome::Unscanned { reason, detail } => Self::Unscanned(v1::Unscanned {
                reason: v1::UnscannedReason::from(*reason) as i32,
                detail: detail.clone(),
            }),
            Outcome::Error { message } => Self::Error(v1::Error {
                message: message.clone(),
            }),
        }
    }
}

impl TryFrom<v1::verdict::Outcome> for Outcome {
    type Error = ConvertError;
    fn try_from(outcome: v1::verdict::Outcome) -> Result<Self, ConvertError> {
        Ok(match outcome {
            v1::verdict::Outcome::Clean(_) => Self::Clean,
            v1::verdict::Outcome::Malicious(malicious) => {
                let (detections, more) = detections(malicious.detections)?;
                if detections.is_empty() {
                    return Err(ConvertError::Missing("malicious.detections"));
                }
                Self::Malicious {
                    detections,
                    omitted: malicious.omitted.saturating_add(more),
                }
            }
            v1::verdict::Outcome::Unscanned(unscanned) => Self::Unscanned {
                reason: unscanned.reason().into(),
                detail: unscanned.detail,
            },
            v1::verdict::Outcome::Error(error) => Self::Error {
                message: error.message,
            },
        })
    }
}

impl From<&Coverage> for v1::Coverage {
    fn from(coverage: &Coverage) -> Self {
        let range = |&(offset, length): &(u64, u64)| v1::ByteRange { offset, length };
        Self {
            bytes_total: coverage.bytes_total,
            bytes_judged: coverage.bytes_judged,
            ranges: coverage.ranges.iter().map(range).collect(),
            members_judged: coverage.members_judged,
            member_bytes_judged: coverage.member_bytes_judged,
        }
    }
}

impl From<v1::Coverage> for Coverage {
    fn from(coverage: v1::Coverage) -> Self {
        Self {
            bytes_total: coverage.bytes_total,
            bytes_judged: coverage.bytes_judged,
            ranges: coverage
                .ranges
                .iter()
                .map(|range| (range.offset, range.length))
                .collect(),
            members_judged: coverage.members_judged,
            member_bytes_judged: coverage.member_bytes_judged,
        }
    }
}

impl From<&Verdict> for v1::Verdict {
    fn from(verdict: &Verdict) -> Self {
        Self {
            outcome: Some((&verdict.outcome).into()),
            coverage: Some((&verdict.coverage).into()),
            generation: verdict.generation.0.to_vec(),
            blake3: verdict.digest.map_or_else(Vec::new, |d| d.0.to_vec()),
            sha256: verdict.sha256.map_or_else(Vec::new, |d| d.0.to_vec()),
        }
    }
}

impl TryFrom<v1::Verdict> for Verdict {
    type Error = ConvertError;
    fn try_from(verdict: v1::Verdict) -> Result<Self, ConvertError> {
        let outcome = verdict.outcome.ok_or(ConvertError::Missing("outcome"))?;
        let coverage = verdict.coverage.ok_or(ConvertError::Missing("coverage"))?;
        let optional = |bytes: &[u8], name| match bytes.len() {
            0 => Ok(None),
            32 => Ok(bytes.try_into().ok()),
            _ => Err(ConvertError::Invalid(name)),
        };
        Ok(Self {
            outcome: outcome.try_into()?,
            coverage: coverage.into(),
            generation: Generation::from_slice(&verdict.generation)
                .ok_or(ConvertError::Invalid("generation"))?,
            digest: optional(&verdict.blake3, "blake3")?.map(Digest),
            sha256: optional(&verdict.sha256, "sha256")?.map(Sha256),
        })
    }
}

impl From<Disposition> for v1::Disposition {
    fn from(disposition: Disposition) -> Self {
        match disposition {
            Disposition::Allow => Self::Allow,
            Disposition::Deny => Self::Deny,
        }
    }
}

/// Unset means `default`.
fn disposition(value: v1::Disposition, default: Disposition) -> Disposition {
    match value {
        v1::Disposition::Unspecified => default,
        v1::Disposition::Allow => Disposition::Allow,
        v1::Disposition::Deny => Disposition::Deny,
    }
}

fn late_action(value: v1::LateAction) -> LateAction {
    match value {
        v1::LateAction::Unspecified | v1::LateAction::Report => LateAction::Report,
        v1::LateAction::Kill => LateAction::Kill,
    }
}

impl From<LateAction> for v1::LateAction {
    fn from(action: LateAction) -> Self {
        match action {
            LateAction::Report => Self::Report,
            LateAction::Kill => Self::Kill,
        }
    }
}

impl From<&Policy> for v1::Policy {
    fn from(policy: &Policy) -> Self {
        let millis = |d: Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX);
        let rule = |(reason, disposition): (&UnscannedReason, &Disposition)| v1::UnscannedRule {
            reason: v1::UnscannedReason::from(*reason) as i32,
            disposition: v1::Disposition::from(*disposition) as i32,
        };
        Self {
            revision: policy.revision.to_vec(),
            exec_budget_ms: millis(policy.exec_budget),
            open_budget_ms: millis(policy.open_budget),
            size_max_bytes: policy.size_max_bytes,
            ride_along_max_bytes: policy.ride_along_max_bytes,
            on_malicious: v1::Disposition::from(policy.on_malicious) as i32,
            on_unscanned: v1::Disposition::from(policy.on_unscanned) as i32,
            unscanned_rules: policy.unscanned_rules.iter().map(rule).collect(),
            on_error: v1::Disposition::from(policy.on_error) as i32,
            context_sensitive: policy.context_sensitive,
            scan_on_close: policy.scan_on_close,
            on_late_malicious: v1::LateAction::from(policy.on_late_malicious) as i32,
            compress: policy.compress,
        }
    }
}

impl TryFrom<v1::Policy> for Policy {
    type Error = ConvertError;
    fn try_from(message: v1::Policy) -> Result<Self, ConvertError> {
        let policy = Self {
            revision: message.revision[..]
                .try_into()
                .map_err(|_| ConvertError::Invalid("policy.revision"))?,
            exec_budget: Duration::from_millis(message.exec_budget_ms.into()),
            open_budget: Duration::from_millis(message.open_budget_ms.into()),
            size_max_bytes: message.size_max_bytes,
            ride_along_max_bytes: message.ride_along_max_bytes,
            on_malicious: disposition(message.on_malicious(), Disposition::Deny),
            on_late_malicious: late_action(message.on_late_malicious()),
            on_unscanned: disposition(message.on_unscanned(), Disposition::Allow),
            unscanned_rules: message
                .unscanned_rules
                .iter()
                .map(|rule| {
                    let answer = disposition(rule.disposition(), Disposition::Allow);
                    (rule.reason().into(), answer)
                })
                .collect(),
            on_error: disposition(message.on_error(), Disposition::Allow),
            context_sensitive: message.context_sensitive,
            scan_on_close: message.scan_on_close,
            compress: message.compress,
        };
        policy.validate().map_err(ConvertError::Policy)?;
        Ok(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_the_numbers_of_the_contract() {
        for reason in UnscannedReason::ALL {
            let wire = v1::UnscannedReason::from(reason);
            assert_eq!(UnscannedReason::from(wire), reason);
            let name = wire.as_str_name().to_ascii_lowercase();
            assert_eq!(name, format!("unscanned_reason_{}", reason.name()));
        }
        let unset = v1::UnscannedReason::Unspecified;
        assert_eq!(UnscannedReason::from(unset), UnscannedReason::Other);
    }

    #[test]
    fn verdict_round_trip() {
        let verdict = Verdict {
            outcome: Outcome::Malicious {
                detections: vec![Detection {
                    name: "Eicar".into(),
                    engine: "yara".into(),
                    path_inside: vec![b"a.zip".to_vec(), vec![0xff]],
                }],
                omitted: 3,
            },
            coverage: Coverage::whole(68),
            generation: Generation([1; 16]),
            digest: Some(Digest::of(b"x")),
            sha256: None,
        };
        let wire = v1::Verdict::from(&verdict);
        assert_eq!(Verdict::try_from(wire), Ok(verdict));
    }

    #[test]
    fn no_verdict_is_made_from_nothing() {
        let wire = v1::Verdict::default();
        assert_eq!(
            Verdict::try_from(wire),
            Err(ConvertError::Missing("outcome"))
        );
        let wire = v1::Verdict {
            outcome: Some(v1::verdict::Outcome::Clean(v1::Clean {})),
            ..v1::Verdict::default()
        };
        assert_eq!(
            Verdict::try_from(wire),
            Err(ConvertError::Missing("coverage"))
        );
    }

    #[test]
    fn policy_round_trip() {
        let mut policy = Policy {
            revision: [9; 16],
            on_error: Disposition::Deny,
            ..Policy::default()
        };
        policy
            .unscanned_rules
            .insert(UnscannedReason::TooLarge, Disposition::Deny);
        let wire = v1::Policy::from(&policy);
        assert_eq!(Policy::try_from(wire), Ok(policy));
    }
}
