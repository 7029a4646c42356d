//! What an appliance and a guest on its host say through a virtio-serial port. The appliance writes
//! a line with an id that it has just made up, and again until the guest says that it took it; an
//! empty line from the guest asks for it again. The port is a stream that may change its other end in
//! the middle of a line (live migration): what is no whole line of ours is passed over.

use model::ChannelId;

/// The port's name.
pub const PORT_NAME: &str = "org.lazaret.0";
/// What a guest writes to be told the id again.
pub const ASK: u8 = b'\n';
/// Begins each line.
const MAGIC: &str = "lazaret-channel/1 ";
/// Longer lines are none of ours.
const LINE_BYTES_MAX: usize = 128;

/// As an appliance writes an id into a channel, with a line's end before it, too: what another one
/// left unfinished there ends.
#[must_use]
pub fn line(id: ChannelId) -> String {
    format!("\n{MAGIC}{id}\n")
}

/// As a guest says that it has read an id. It may reach another appliance than the one that told it.
#[must_use]
pub fn taken(id: ChannelId) -> String {
    format!("+{id}\n")
}

/// Puts lines together.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    is_too_long: bool,
}

impl Lines {
    /// Takes what was read; the last id in it.
    pub fn take(&mut self, bytes: &[u8]) -> Option<ChannelId> {
        let mut latest = None;
        for byte in bytes {
            if *byte != b'\n' {
                self.is_too_long |= self.line.len() >= LINE_BYTES_MAX;
                if !self.is_too_long {
                    self.line.push(*byte);
                }
                continue;
            }
            if !self.is_too_long {
                latest = id_of(&self.line).or(latest);
            }
            self.line.clear();
            self.is_too_long = false;
        }
        latest
    }
}

fn id_of(line: &[u8]) -> Option<ChannelId> {
    let hex = std::str::from_utf8(line).ok()?.strip_prefix(MAGIC)?;
    ChannelId::from_hex(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ChannelId = ChannelId([0xab; 16]);

    #[test]
    fn a_line_is_read_in_any_pieces() {
        let line = line(ID);
        for cut in 0..line.len() {
            let mut lines = Lines::default();
            let (head, tail) = line.as_bytes().split_at(cut);
            let ids = [lines.take(head), lines.take(tail)];
            assert_eq!(ids.into_iter().flatten().collect::<Vec<_>>(), [ID], "{cut}");
        }
    }

    #[test]
    fn what_is_no_line_of_ours_is_passed_over() {
        let mut lines = Lines::default();
        let long = "x".repeat(10_000);
        let truncated = &line(ID)[..30];
        for other in [
            "\n\n",
            &long,
            "\n",
            truncated,
            "\nlazaret-channel/1 zz\n",
            "\u{1f}",
        ] {
            assert_eq!(lines.take(other.as_bytes()), None, "{other}");
        }
        assert!(lines.line.capacity() <= 2 * LINE_BYTES_MAX);
        assert_eq!(lines.take(line(ID).as_bytes()), Some(ID));
    }
}
