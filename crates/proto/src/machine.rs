//! Conversions of what a machine says that it is.

use model::{MACS_MAX, Machine};

use crate::{ConvertError, v1};

impl From<&Machine> for v1::MachineFacts {
    fn from(machine: &Machine) -> Self {
        let id = |id: Option<[u8; 16]>| id.map_or_else(Vec::new, |id| id.to_vec());
        Self {
            generation_id: id(machine.generation_id),
            system_uuid: id(machine.system_uuid),
            macs: machine.macs.iter().map(|mac| mac.to_vec()).collect(),
            boot_id: id(machine.boot_id),
        }
    }
}

impl TryFrom<&v1::MachineFacts> for Machine {
    type Error = ConvertError;
    fn try_from(facts: &v1::MachineFacts) -> Result<Self, ConvertError> {
        if facts.macs.len() > MACS_MAX || !facts.macs.is_sorted() {
            return Err(ConvertError::Invalid("macs"));
        }
        let macs = facts.macs.iter().map(|mac| mac.as_slice().try_into());
        let macs: Result<Vec<[u8; 6]>, _> = macs.collect();
        Ok(Self {
            generation_id: id(&facts.generation_id, "generation_id")?,
            system_uuid: id(&facts.system_uuid, "system_uuid")?,
            macs: macs.map_err(|_| ConvertError::Invalid("macs"))?,
            boot_id: id(&facts.boot_id, "boot_id")?,
        })
    }
}

/// Empty: unknown.
fn id(bytes: &[u8], field: &'static str) -> Result<Option<[u8; 16]>, ConvertError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let id = bytes.try_into();
    Ok(Some(id.map_err(|_| ConvertError::Invalid(field))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_says_comes_through_and_what_it_cannot_be_is_refused() {
        let machine = Machine {
            generation_id: Some([1; 16]),
            system_uuid: None,
            macs: vec![[2; 6], [3; 6]],
            boot_id: Some([4; 16]),
        };
        let facts = v1::MachineFacts::from(&machine);
        assert_eq!(Machine::try_from(&facts), Ok(machine));
        assert_eq!(
            Machine::try_from(&v1::MachineFacts::default()),
            Ok(Machine::default())
        );
        let refused = |spoil: &dyn Fn(&mut v1::MachineFacts)| {
            let mut spoilt = facts.clone();
            spoil(&mut spoilt);
            Machine::try_from(&spoilt).unwrap_err()
        };
        for (field, error) in [
            (
                "generation_id",
                refused(&|it| it.generation_id.truncate(15)),
            ),
            ("system_uuid", refused(&|it| it.system_uuid = vec![0; 17])),
            ("boot_id", refused(&|it| it.boot_id.truncate(1))),
            ("macs", refused(&|it| it.macs[0] = vec![0; 5])),
            ("macs", refused(&|it| it.macs.reverse())),
            ("macs", refused(&|it| it.macs = vec![vec![0; 6]; 17])),
        ] {
            assert_eq!(error, ConvertError::Invalid(field));
        }
    }
}
