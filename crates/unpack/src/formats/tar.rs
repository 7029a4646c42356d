//! tar, through the crate `tar`: v7, ustar, GNU and pax names, GNU sparse files.

use crate::fields;
use crate::summary::Problem;
use crate::walker::{Halt, Walker};

const HEADER_BYTES: usize = 512;

/// A header whose checksum holds: the sum of its bytes, the checksum field counted as blanks.
/// Old tars have no magic; a file of zeros has sum 256 and a blank checksum, so the name must
/// not be empty.
pub(crate) fn is_tar(bytes: &[u8]) -> bool {
    let Some(header) = fields::slice(bytes, 0, HEADER_BYTES) else {
        return false;
    };
    let field = &header[148..156];
    let digits = fields::until_nul(field).trim_ascii();
    let sum: u64 = header.iter().map(|&b| u64::from(b)).sum();
    let own: u64 = field.iter().map(|&b| u64::from(b)).sum();
    let plain_sum = sum - own + 8 * u64::from(b' ');
    // Old writers on some machines summed up signed bytes: 256 less for each from 128 on.
    let high = |bytes: &[u8]| bytes.iter().filter(|b| **b >= 128).count() as u64;
    let signed_sum = plain_sum.checked_sub(256 * (high(header) - high(field)));
    let told = fields::ascii_number(digits, 8);
    header[0] != 0 && told.is_some() && (told == Some(plain_sum) || told == signed_sum)
}

pub(crate) fn open(walker: &mut Walker<'_>, bytes: &[u8]) -> Result<(), Halt> {
    let mut archive = ::tar::Archive::new(walker.source(bytes));
    let entries = archive.entries().map_err(|e| Problem::of_io("tar", &e))?;
    for entry in entries {
        walker.step()?;
        let mut entry = entry.map_err(|e| Problem::of_io("tar", &e))?;
        let kind = entry.header().entry_type();
        let holds_data = !(kind.is_dir()
            || kind.is_symlink()
            || kind.is_hard_link()
            || kind.is_character_special()
            || kind.is_block_special()
            || kind.is_fifo()
            || kind.is_pax_global_extensions());
        if !holds_data && entry.size() == 0 {
            continue;
        }
        let name = entry.path_bytes().into_owned();
        let promised = entry.size();
        // A sparse file's holes are not in the archive; else the member lies there as it is.
        let packed = usize::try_from(promised).map_or(bytes.len(), |len| len.min(bytes.len()));
        let mut sink = walker.sink(packed);
        if sink.fill("tar", &mut entry) && sink.len() < promised {
            sink.note(Problem::malformed(format!(
                "tar: {} of the member's {promised} bytes are there",
                sink.len()
            )));
        }
        walker.unpacked(&name, sink.finish())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_and_text_are_no_tar() {
        assert!(!is_tar(&[0; 1024]));
        assert!(!is_tar(&[b' '; 1024]));
        assert!(!is_tar(b"short"));
    }
}
