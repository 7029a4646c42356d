//! Limits: each stops a way of using the appliance up.

use std::time::Duration;

use scan_core::{BudgetLimits, QueueLimits};
use serde::Deserialize;

use super::Ranged;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Whatever size and rate say; a day.
const UPLOAD_TIME_MAX_MS: u64 = 86_400_000;

/// Every limit of the appliance that is not one of an engine, of unpacking or of policy.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections of all agents. 1000.
    pub sessions_max: Ranged<1, 1_000_000>,
    /// Connections of one guest: its gate and its on-demand scans. 16.
    pub guest_sessions_max: Ranged<1, 1000>,
    /// Checks of one session that are not answered yet. 256.
    pub in_flight_max: Ranged<1, 65_536>,
    /// Content of more bytes is held on disk rather than in memory. 8 MiB.
    pub upload_memory_max_bytes: Ranged<0>,
    /// Content held in memory for all guests. 512 MiB.
    pub memory_bytes_max: Ranged<1>,
    /// Content held on disk for all guests. 8 GiB.
    pub spool_bytes_max: Ranged<1>,
    /// Content held for one guest. 1 GiB.
    pub guest_bytes_in_flight_max: Ranged<1>,
    /// Of `memory_bytes_max` and of `spool_bytes_max`, what one guest may hold, in percent. 25.
    pub guest_share_max_percent: Ranged<1, 100>,
    /// Requests of one guest that hold content. 256.
    pub guest_requests_in_flight_max: Ranged<1, 1_000_000>,
    /// Bytes that one guest may send in a second on average. 0: any. 256 MiB.
    pub guest_bytes_per_second: Ranged<0>,
    /// Bytes that it may send at once after a rest. 2 GiB.
    pub guest_burst_bytes: Ranged<1>,
    /// An upload that brings nothing for this long is given up. 10 s.
    pub upload_idle_timeout_ms: Ranged<10, 600_000>,
    /// An upload must be over within `upload_idle_timeout_ms` and the time that its size takes at
    /// this rate. 64 KiB.
    pub upload_bytes_per_second_min: Ranged<1>,
    /// Bytes under way for one upload. 1 MiB.
    pub upload_credit_bytes: Ranged<131_072, 67_108_864>,
    /// Chunks kept of what guests have sent, on disk, for all guests. 0: none. 8 GiB.
    pub chunk_bytes_max: Ranged<0>,
    /// Chunks kept for one guest. 0: none. 256 MiB.
    pub guest_chunk_bytes_max: Ranged<0>,
    /// Scans that wait for an engine. 4096.
    pub queue_len_max: Ranged<1, 1_000_000>,
    /// Scans of one guest that wait for an engine. 512.
    pub guest_queue_len_max: Ranged<1, 1_000_000>,
    /// Scans that run at once. 0: one for each worker of the engine with the most.
    pub scans_running_max: Ranged<0, 4096>,
    /// Of those, places that only openers may take. 1.
    pub reserved_for_openers: Ranged<0, 4096>,
    /// Scans of one guest that run at once. 0: all places but one, and at least one.
    pub guest_running_max: Ranged<0, 4096>,
    /// Checks that may wait for one scan. 4096.
    pub waiters_per_scan_max: Ranged<1, 1_000_000>,
    /// Files of one guest whose checks it cancelled while their scan goes on, and which a bad
    /// verdict still removes. 512.
    pub guest_late_max: Ranged<0, 1_000_000>,
    /// Verdicts kept in memory. 64 MiB.
    pub verdict_memory_bytes_max: Ranged<0>,
    /// Verdicts that rest on a guest's own report, kept in memory for that guest. 16 MiB.
    pub reported_memory_bytes_max: Ranged<0>,
    /// Verdicts kept on disk; about 200 bytes each. 1 GiB.
    pub verdict_store_bytes_max: Ranged<65_536>,
    /// Content kept in memory and on the spool after it was judged, so that it can be judged again
    /// when rules change. 0: none. 256 MiB.
    pub retained_bytes_max: Ranged<0>,
    /// Detections kept in memory for `lazaret detections`. 10,000.
    pub detections_kept_max: Ranged<1, 1_000_000>,
    /// New detections of one guest in a minute; what comes beyond is counted only. 600.
    pub guest_detections_per_minute_max: Ranged<1, 1_000_000>,
    /// Bytes of those, roughly. 1 MiB.
    pub guest_detection_bytes_per_minute_max: Ranged<65_536>,
    /// A detection log of more bytes is rotated. 16 MiB.
    pub detection_log_bytes_max: Ranged<4096>,
    /// Detection logs kept beside the current one. 4.
    pub detection_logs_kept: Ranged<1, 1000>,
    /// Contents that may be released. 65,536.
    pub released_max: Ranged<1, 10_000_000>,
    /// Bytes of one allowlist, all of which are held in memory. 512 MiB.
    pub allowlist_bytes_max: Ranged<1024>,
    /// Allowlisted contents that may be recalled; agents with as many let nothing through by list.
    /// 65,536.
    pub allowlist_recalls_max: Ranged<1, 1_000_000>,
    /// Removals that wait for an agent's result, a tenth of them of one guest. 10,000.
    pub orders_pending_max: Ranged<1, 1_000_000>,
    /// How long an administrator's command waits for an agent. 30 s.
    pub order_timeout_ms: Ranged<10, 600_000>,
    /// Administrators' connections at once. 16.
    pub admin_connections_max: Ranged<1, 1000>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions_max: Ranged::new(1000),
            guest_sessions_max: Ranged::new(16),
            in_flight_max: Ranged::new(256),
            upload_memory_max_bytes: Ranged::new(8 * MIB),
            memory_bytes_max: Ranged::new(512 * MIB),
            spool_bytes_max: Ranged::new(8 * GIB),
            guest_bytes_in_flight_max: Ranged::new(GIB),
            guest_share_max_percent: Ranged::new(25),
            guest_requests_in_flight_max: Ranged::new(256),
            guest_bytes_per_second: Ranged::new(256 * MIB),
            guest_burst_bytes: Ranged::new(2 * GIB),
            upload_idle_timeout_ms: Ranged::new(10_000),
            upload_bytes_per_second_min: Ranged::new(64 << 10),
            upload_credit_bytes: Ranged::new(MIB),
            chunk_bytes_max: Ranged::new(8 * GIB),
            guest_chunk_bytes_max: Ranged::new(256 * MIB),
            queue_len_max: Ranged::new(4096),
            guest_queue_len_max: Ranged::new(512),
            scans_running_max: Ranged::new(0),
            reserved_for_openers: Ranged::new(1),
            guest_running_max: Ranged::new(0),
            waiters_per_scan_max: Ranged::new(4096),
            guest_late_max: Ranged::new(512),
            verdict_memory_bytes_max: Ranged::new(64 * MIB),
            reported_memory_bytes_max: Ranged::new(16 * MIB),
            verdict_store_bytes_max: Ranged::new(GIB),
            retained_bytes_max: Ranged::new(256 * MIB),
            detections_kept_max: Ranged::new(10_000),
            guest_detections_per_minute_max: Ranged::new(600),
            guest_detection_bytes_per_minute_max: Ranged::new(MIB),
            detection_log_bytes_max: Ranged::new(16 * MIB),
            detection_logs_kept: Ranged::new(4),
            released_max: Ranged::new(65_536),
            allowlist_bytes_max: Ranged::new(512 * MIB),
            allowlist_recalls_max: Ranged::new(65_536),
            orders_pending_max: Ranged::new(10_000),
            order_timeout_ms: Ranged::new(30_000),
            admin_connections_max: Ranged::new(16),
        }
    }
}

impl Limits {
    pub(crate) fn budget(&self) -> BudgetLimits {
        BudgetLimits {
            memory_bytes_max: self.memory_bytes_max.get(),
            spool_bytes_max: self.spool_bytes_max.get(),
            guest_bytes_in_flight_max: self.guest_bytes_in_flight_max.get(),
            guest_share_max_percent: self.guest_share_max_percent.get(),
            guest_requests_in_flight_max: self.guest_requests_in_flight_max.u32(),
            guest_bytes_per_second: self.guest_bytes_per_second.get(),
            guest_burst_bytes: self.guest_burst_bytes.get(),
        }
    }

    /// `workers`: those of the engine that has the most.
    pub(crate) fn queue(&self, workers: usize) -> QueueLimits {
        let running_max = match self.scans_running_max.count() {
            0 => workers.max(1),
            configured => configured,
        };
        let guest_running_max = match self.guest_running_max.count() {
            0 => running_max.saturating_sub(1).max(1),
            configured => configured,
        };
        QueueLimits {
            queue_len_max: self.queue_len_max.count(),
            guest_queue_len_max: self.guest_queue_len_max.count(),
            running_max,
            reserved_for_openers: self.reserved_for_openers.count(),
            guest_running_max,
        }
    }

    pub(crate) fn upload_idle_timeout(&self) -> Duration {
        Duration::from_millis(self.upload_idle_timeout_ms.get())
    }

    /// How long an upload of `size` bytes may take in all.
    pub(crate) fn upload_time_max(&self, size: u64) -> Duration {
        let ms = u128::from(size) * 1000 / u128::from(self.upload_bytes_per_second_min.get());
        let ms = u64::try_from(ms)
            .unwrap_or(u64::MAX)
            .min(UPLOAD_TIME_MAX_MS);
        self.upload_idle_timeout() + Duration::from_millis(ms)
    }

    pub(crate) fn order_timeout(&self) -> Duration {
        Duration::from_millis(self.order_timeout_ms.get())
    }
}
