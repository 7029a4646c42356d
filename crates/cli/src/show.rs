//! What people read. Everything that a guest named is escaped.

use std::fmt::Write;

use daemon::log::escape;
use proto::v1;

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A further remark, where there is one.
pub(crate) fn detail(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    format!(": {}", escape(text.as_bytes()))
}

pub(crate) fn order_status(status: v1::OrderStatus) -> &'static str {
    match status {
        v1::OrderStatus::Unspecified => "nothing",
        v1::OrderStatus::Done => "done",
        v1::OrderStatus::RefusedChanged => "refused, the content is another by now",
        v1::OrderStatus::RefusedMissing => "refused, there is no such file or item",
        v1::OrderStatus::RefusedConflict => "refused, something is in the way",
        v1::OrderStatus::Failed => "failed, nothing was changed",
    }
}

/// Seconds since 1970 as a date and time in UTC.
pub(crate) fn time(seconds: u64) -> String {
    // Days of the proleptic Gregorian calendar, counted in eras of 400 years from March 1, 0000.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    let second = seconds % 60;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

pub(crate) fn status(status: &v1::StatusReply) -> String {
    let mut out = String::new();
    line(
        &mut out,
        format_args!("lazaret {}", escape(status.version.as_bytes())),
    );
    line(
        &mut out,
        format_args!("generation {}", hex(&status.generation)),
    );
    for engine in &status.engines {
        line(
            &mut out,
            format_args!(
                "engine {}: {}, {} rules, {} workers, {} files judged, {} workers killed",
                escape(engine.name.as_bytes()),
                escape(engine.version.as_bytes()),
                engine.rules,
                engine.workers,
                engine.scanned_total,
                engine.killed_total,
            ),
        );
    }
    if status.guests.is_empty() {
        line(&mut out, format_args!("no guest is connected"));
    }
    for guest in &status.guests {
        line(
            &mut out,
            format_args!(
                "guest {} {} at {}: {} bytes received, {} opens not yet judged",
                hex(&guest.guest_id),
                escape(guest.hostname.as_bytes()),
                escape(guest.address.as_bytes()),
                guest.bytes_received,
                guest.ledger_open,
            ),
        );
    }
    out
}

pub(crate) fn detections(records: &[v1::DetectionRecord]) -> String {
    let mut out = String::new();
    if records.is_empty() {
        line(&mut out, format_args!("nothing was detected"));
    }
    for record in records {
        let removal = match record.removal() {
            v1::OrderStatus::Unspecified => String::new(),
            status => format!("; removal: {}", order_status(status)),
        };
        line(
            &mut out,
            format_args!(
                "{} guest {} {}: {}{removal}",
                time(record.at_ms / 1000),
                hex(&record.guest_id),
                escape(&record.path),
                names(&record.detections),
            ),
        );
        line(&mut out, format_args!("  blake3 {}", hex(&record.blake3)));
    }
    out
}

pub(crate) fn holders(reply: &v1::HoldersReply) -> String {
    let mut out = String::new();
    if reply.holders.is_empty() {
        line(&mut out, format_args!("no guest was seen with it"));
        return out;
    }
    line(
        &mut out,
        format_args!(
            "{:32}  {:20}  {:20}  host",
            "guest", "first seen", "last seen"
        ),
    );
    for holder in &reply.holders {
        line(
            &mut out,
            format_args!(
                "{:32}  {:20}  {:20}  {}",
                hex(&holder.guest_id),
                time(holder.first_seen_s),
                time(holder.last_seen_s),
                escape(holder.hostname.as_bytes()),
            ),
        );
    }
    if reply.more {
        line(&mut out, format_args!("… and more; use --limit"));
    }
    out
}

pub(crate) fn items(items: &[v1::QuarantineItem]) -> String {
    let mut out = String::new();
    if items.is_empty() {
        line(&mut out, format_args!("the quarantine is empty"));
    }
    for item in items {
        line(
            &mut out,
            format_args!(
                "{} {} {}: {} bytes, {}",
                hex(&item.item_id),
                time(item.taken_at_s),
                escape(&item.path),
                item.size,
                names(&item.detections),
            ),
        );
    }
    out
}

fn names(detections: &[v1::Detection]) -> String {
    let named = detections.iter().map(|detection| {
        let mut text = format!(
            "{} ({})",
            escape(detection.name.as_bytes()),
            escape(detection.engine.as_bytes())
        );
        for part in &detection.path_inside {
            let _never_fails = write!(text, " > {}", escape(part));
        }
        text
    });
    named.collect::<Vec<_>>().join(", ")
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _never_fails = writeln!(out, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(time(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(time(1_735_689_599), "2024-12-31T23:59:59Z");
    }

    #[test]
    fn hostile_names_stay_on_their_line() {
        let record = v1::DetectionRecord {
            path: b"/a\n\x1b[31mb\xff".to_vec(),
            detections: vec![v1::Detection {
                name: "x\ny".into(),
                engine: "e".into(),
                path_inside: vec![b"in\rside".to_vec()],
            }],
            ..v1::DetectionRecord::default()
        };
        let text = detections(&[record]);
        assert_eq!(text.lines().count(), 2);
        assert!(!text.contains('\x1b') && !text.contains('\r'));
        assert!(text.contains("x\\ny (e) > in\\rside"), "{text}");
    }
}
