//! One line of the log.

use model::{Detection, Digest, GuestId, Sha256};
use proto::v1::OrderStatus;
use serde::{Deserialize, Serialize};

use super::Record;

/// What an agent says of a removal is cut to this.
pub(super) const DETAIL_MAX_BYTES: usize = 512;

/// A line as it is written. Fields are only ever added.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(super) enum Line {
    Detection {
        id: u64,
        at_ms: u64,
        guest: String,
        path: Bytes,
        blake3: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
        detections: Vec<Found>,
    },
    Removal {
        id: u64,
        at_ms: u64,
        status: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Found {
    name: String,
    engine: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inside: Vec<Bytes>,
}

/// Bytes from a guest: text where they are text, else hexadecimal, so that nothing is lost.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Bytes {
    Text(String),
    Hex { hex: String },
}

/// What a line says, checked.
pub(super) enum Event {
    Detection(Record),
    Removal { id: u64, status: OrderStatus },
}

impl Line {
    pub(super) fn detection(record: &Record) -> Self {
        Self::Detection {
            id: record.id,
            at_ms: record.at_ms,
            guest: record.guest.to_string(),
            path: Bytes::of(&record.path),
            blake3: record.digest.to_string(),
            sha256: record.sha256.map(|digest| digest.to_string()),
            detections: record.detections.iter().map(Found::of).collect(),
        }
    }

    pub(super) fn removal(id: u64, status: OrderStatus, detail: &str, now_ms: u64) -> Self {
        Self::Removal {
            id,
            at_ms: now_ms,
            status: status_name(status).to_owned(),
            detail: detail
                .get(..detail.floor_char_boundary(DETAIL_MAX_BYTES))
                .unwrap_or_default()
                .to_owned(),
        }
    }

    /// `None` where a value is not one.
    pub(super) fn into_event(self) -> Option<Event> {
        match self {
            Self::Detection {
                id,
                at_ms,
                guest,
                path,
                blake3,
                sha256,
                detections,
            } => Some(Event::Detection(Record {
                id,
                at_ms,
                guest: GuestId::from_hex(&guest)?,
                path: path.into_vec()?,
                digest: blake3.parse().ok()?,
                sha256: match sha256 {
                    Some(text) => Some(Sha256(text.parse::<Digest>().ok()?.0)),
                    None => None,
                },
                detections: detections
                    .into_iter()
                    .map(Found::into_detection)
                    .collect::<Option<_>>()?,
                removal: None,
            })),
            Self::Removal { id, status, .. } => {
                let status = ALL_STATUSES
                    .into_iter()
                    .find(|s| status_name(*s) == status)?;
                Some(Event::Removal { id, status })
            }
        }
    }
}

impl Found {
    fn of(detection: &Detection) -> Self {
        Self {
            name: detection.name.clone(),
            engine: detection.engine.clone(),
            inside: detection.path_inside.iter().map(|p| Bytes::of(p)).collect(),
        }
    }

    fn into_detection(self) -> Option<Detection> {
        let inside = self.inside.into_iter().map(Bytes::into_vec);
        Some(Detection {
            name: self.name,
            engine: self.engine,
            path_inside: inside.collect::<Option<_>>()?,
        })
    }
}

impl Bytes {
    fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Hex {
                hex: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            },
        }
    }

    fn into_vec(self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.into_bytes()),
            Self::Hex { hex } => hex
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                .collect(),
        }
    }
}

const ALL_STATUSES: [OrderStatus; 5] = [
    OrderStatus::Done,
    OrderStatus::RefusedChanged,
    OrderStatus::RefusedMissing,
    OrderStatus::RefusedConflict,
    OrderStatus::Failed,
];

/// The stable name used in logs and metrics.
pub(crate) fn status_name(status: OrderStatus) -> &'static str {
    match status {
        OrderStatus::Unspecified => "unspecified",
        OrderStatus::Done => "done",
        OrderStatus::RefusedChanged => "refused_changed",
        OrderStatus::RefusedMissing => "refused_missing",
        OrderStatus::RefusedConflict => "refused_conflict",
        OrderStatus::Failed => "failed",
    }
}
