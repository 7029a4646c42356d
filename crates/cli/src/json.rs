//! What programs read: stable keys; bytes that are no text are escaped and given in hexadecimal
//! beside it.

use daemon::log::escape;
use proto::v1;
use serde_json::{Map, Value, json};

use crate::show::{hex, time};

pub(crate) fn print(value: &Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

pub(crate) fn status(status: &v1::StatusReply) -> Value {
    let engines = status.engines.iter().map(|engine| {
        json!({
            "name": engine.name,
            "version": engine.version,
            "rules": engine.rules,
            "workers": engine.workers,
            "scanned_total": engine.scanned_total,
            "killed_total": engine.killed_total,
        })
    });
    let guests = status.guests.iter().map(|guest| {
        json!({
            "guest_id": hex(&guest.guest_id),
            "hostname": guest.hostname,
            "address": guest.address,
            "ledger_open": guest.ledger_open,
            "bytes_received": guest.bytes_received,
        })
    });
    json!({
        "version": status.version,
        "generation": hex(&status.generation),
        "engines": engines.collect::<Value>(),
        "guests": guests.collect::<Value>(),
    })
}

pub(crate) fn detections(records: &[v1::DetectionRecord]) -> Value {
    let records = records.iter().map(|record| {
        let mut out = object(json!({
            "at": time(record.at_ms / 1000),
            "at_ms": record.at_ms,
            "guest_id": hex(&record.guest_id),
            "blake3": hex(&record.blake3),
            "sha256": hex(&record.sha256),
            "detections": found(&record.detections),
            "removal": removal(record.removal()),
        }));
        put_path(&mut out, &record.path);
        Value::Object(out)
    });
    records.collect()
}

pub(crate) fn holders(digest: &model::Digest, reply: &v1::HoldersReply) -> Value {
    let holders = reply.holders.iter().map(|holder| {
        json!({
            "guest_id": hex(&holder.guest_id),
            "hostname": holder.hostname,
            "first_seen": time(holder.first_seen_s),
            "first_seen_s": holder.first_seen_s,
            "last_seen": time(holder.last_seen_s),
            "last_seen_s": holder.last_seen_s,
        })
    });
    json!({
        "blake3": digest.to_string(),
        "holders": holders.collect::<Value>(),
        "more": reply.more,
    })
}

pub(crate) fn items(items: &[v1::QuarantineItem]) -> Value {
    let items = items.iter().map(|item| {
        let mut out = object(json!({
            "item_id": hex(&item.item_id),
            "blake3": hex(&item.blake3),
            "size": item.size,
            "taken_at": time(item.taken_at_s),
            "detections": found(&item.detections),
        }));
        put_path(&mut out, &item.path);
        Value::Object(out)
    });
    items.collect()
}

fn found(detections: &[v1::Detection]) -> Value {
    let found = detections.iter().map(|detection| {
        let inside = detection.path_inside.iter().map(|part| text(part));
        json!({
            "name": detection.name,
            "engine": detection.engine,
            "path_inside": inside.collect::<Vec<_>>(),
        })
    });
    found.collect()
}

fn removal(status: v1::OrderStatus) -> Value {
    match status {
        v1::OrderStatus::Unspecified => Value::Null,
        v1::OrderStatus::Done => "done".into(),
        v1::OrderStatus::RefusedChanged => "refused_changed".into(),
        v1::OrderStatus::RefusedMissing => "refused_missing".into(),
        v1::OrderStatus::RefusedConflict => "refused_conflict".into(),
        v1::OrderStatus::Failed => "failed".into(),
    }
}

pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

pub(crate) fn put_path(out: &mut Map<String, Value>, path: &[u8]) {
    out.insert("path".into(), text(path).into());
    if std::str::from_utf8(path).is_err() {
        out.insert("path_hex".into(), hex(path).into());
    }
}

/// Text as it is; anything else escaped.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => escape(bytes).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_no_text_is_not_lost() {
        let item = v1::QuarantineItem {
            path: b"/a\xff".to_vec(),
            ..v1::QuarantineItem::default()
        };
        let value = items(&[item]);
        assert_eq!(value[0]["path"], "/a\\xff");
        assert_eq!(value[0]["path_hex"], "2f61ff");
        assert_eq!(items(&[]).to_string(), "[]");
    }
}
