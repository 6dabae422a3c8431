//! How the pipeline itself is doing, for Prometheus. Names and labels are those of the wire; no symbol, no account.
//!
//! `marea_records_total{outcome}` has `in`, `accepted`, `duplicate` and `dead`, and `marea_records_held` how many wait
//! now, so that `in = accepted + duplicate + dead + held` can be read off one scrape.
//!
//! `marea_stage_latency_seconds{stage}` splits `marea_end_to_end_latency_seconds` by [`Stage`]: where a millisecond goes.

use crate::store::Committed;
use marea_model::output::{Change, ClosedEpoch, Output};
use marea_model::{BlockReason, Partition, Reason};
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use std::sync::Arc;
use std::time::Duration;

/// From 10 µs to about 10 s: a bucket doubles, and twice in between.
const SECONDS: [f64; 19] = [
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// A part of the way of an epoch's first record. Together they are all of it, but for those of Redis, which are beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// From its receipt until the cutter has it: decoded, and through the channel, where it waits while the pipeline is
    /// behind. By the wall clock, like the next: a receipt is stamped by it.
    Decode,
    /// From there until its epoch is cut.
    EpochWait,
    /// From there until all workers are through with it.
    Dataflow,
    /// From there until the transaction that has it is committed: with the wait for its turn.
    Commit,
    /// From there until the feed has told it.
    Publish,
    /// Where values are published before their commit, from when the oldest epoch of those sent together closed until they
    /// are written to Redis' connection, or, of those that found no room there, until Redis has said that it has them: beside
    /// the stages from there to the commit, which are then some time apart.
    Early,
    /// From the oldest commit of a flush until Redis has its recommendations and verdicts.
    Redis,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Stage; 7] =
        [Stage::Decode, Stage::EpochWait, Stage::Dataflow, Stage::Commit, Stage::Publish, Stage::Early, Stage::Redis];

    /// Its label.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Decode => "decode",
            Stage::EpochWait => "epoch_wait",
            Stage::Dataflow => "dataflow",
            Stage::Commit => "commit",
            Stage::Publish => "publish",
            Stage::Early => "early",
            Stage::Redis => "redis",
        }
    }
}

/// Every metric of a process. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    source: String,
    ingest: IntCounterVec,
    records: IntCounterVec,
    held: IntGauge,
    unknown_fields: prometheus::IntCounter,
    price_jumps: prometheus::IntCounter,
    dead_letters: IntCounterVec,
    frontier_lag: GaugeVec,
    end_to_end: Histogram,
    /// As [`Stage::ALL`].
    stages: [Histogram; Stage::ALL.len()],
    commit: HistogramVec,
    commit_failures: IntCounterVec,
    corrections: IntCounterVec,
    blocked: IntCounterVec,
    state_bytes: IntGaugeVec,
    config_revision: IntGauge,
    config_stale: IntGauge,
    consumer_lag: IntGaugeVec,
    recovery_differences: prometheus::IntCounter,
    tick_rate: Gauge,
}

impl Metrics {
    /// Metrics of a process of this version whose records come from `source` (`synthetic`, `file`, `kafka`, `rabbitmq`).
    ///
    /// # Panics
    /// Never: names are fixed, and each is registered once in a registry of its own.
    pub fn new(version: &str, source: &str) -> Metrics {
        let registry = Registry::new();
        let made = "metric names and labels are fixed and valid";
        macro_rules! register {
            ($metric:expr) => {{
                let metric = $metric.expect(made);
                registry.register(Box::new(metric.clone())).expect(made);
                metric
            }};
        }
        let build = register!(IntGaugeVec::new(Opts::new("marea_build_info", "Always 1; the version"), &["version"]));
        build.with_label_values(&[version]).set(1);
        let stages = register!(HistogramVec::new(
            HistogramOpts::new(
                "marea_stage_latency_seconds",
                "The way of an epoch's first record, by its parts; early and redis beside it"
            )
            .buckets(SECONDS.to_vec()),
            &["stage"]
        ));
        let inner = Inner {
            source: source.to_owned(),
            ingest: register!(IntCounterVec::new(
                Opts::new("marea_ingest_records_total", "Records that arrived, readable or not"),
                &["source"]
            )),
            records: register!(IntCounterVec::new(
                Opts::new("marea_records_total", "in = accepted + duplicate + dead + marea_records_held"),
                &["outcome"]
            )),
            held: register!(IntGauge::new(
                "marea_records_held",
                "Busts, corrections and amends that wait for their target or seal"
            )),
            unknown_fields: register!(prometheus::IntCounter::new(
                "marea_unknown_fields_records_total",
                "Records whose unknown fields were ignored"
            )),
            price_jumps: register!(prometheus::IntCounter::new(
                "marea_price_jumps_total",
                "Accepted prices more than 10 % from the one accepted before"
            )),
            dead_letters: register!(IntCounterVec::new(
                Opts::new("marea_dead_letters_total", "Records that could not be counted"),
                &["source", "reason"]
            )),
            frontier_lag: register!(GaugeVec::new(
                Opts::new("marea_frontier_lag_seconds", "Wall clock minus the clock of the last epoch past a stage"),
                &["stage"]
            )),
            end_to_end: register!(Histogram::with_opts(
                HistogramOpts::new("marea_end_to_end_latency_seconds", "From a record's receipt to its publication")
                    .buckets(SECONDS.to_vec())
            )),
            stages: Stage::ALL.map(|stage| stages.with_label_values(&[stage.as_str()])),
            commit: register!(HistogramVec::new(
                HistogramOpts::new("marea_sink_commit_duration_seconds", "One transaction, several epochs")
                    .buckets(SECONDS.to_vec()),
                &["sink"]
            )),
            commit_failures: register!(IntCounterVec::new(
                Opts::new("marea_sink_commit_failures_total", "Transactions that failed and are tried again"),
                &["sink"]
            )),
            corrections: register!(IntCounterVec::new(
                Opts::new("marea_corrections_total", "Closed rows that changed afterwards"),
                &["stage"]
            )),
            blocked: register!(IntCounterVec::new(
                Opts::new("marea_blocked_verdicts_total", "New verdicts that block, by each of their reasons"),
                &["reason"]
            )),
            state_bytes: register!(IntGaugeVec::new(
                Opts::new("marea_operator_state_bytes", "Memory that an operator retains"),
                &["operator"]
            )),
            config_revision: register!(IntGauge::new(
                "marea_config_revision",
                "Revision of the live configuration in effect"
            )),
            config_stale: register!(IntGauge::new(
                "marea_config_stale",
                "1 while the source of the live configuration does not answer: nobody may enter"
            )),
            consumer_lag: register!(IntGaugeVec::new(
                Opts::new(
                    format!("marea_{source}_consumer_lag_records"),
                    "Messages that the broker has and marea has not read"
                ),
                &["partition"]
            )),
            recovery_differences: register!(prometheus::IntCounter::new(
                "marea_recovery_differences_total",
                "Rows that a restart computed otherwise than they stood: mended, and never expected"
            )),
            tick_rate: register!(Gauge::new("marea_ticks_per_second", "Records committed a second, over five seconds")),
            registry,
        };
        // Series that exist from the start read 0 instead of nothing, so that the sum can be formed at once.
        inner.ingest.with_label_values(&[source]);
        for outcome in ["in", "accepted", "duplicate", "dead"] {
            inner.records.with_label_values(&[outcome]);
        }
        for reason in Reason::ALL {
            inner.dead_letters.with_label_values(&[source, reason.as_str()]);
        }
        for reason in BlockReason::ALL {
            inner.blocked.with_label_values(&[reason.as_str()]);
        }
        Metrics { inner: Arc::new(inner) }
    }

    /// Counts what these epochs did, once they are committed. [`Feed::publish`](crate::Feed::publish) calls it.
    pub fn committed(&self, epochs: &[ClosedEpoch], committed: &Committed) {
        let inner = &self.inner;
        for closed in epochs {
            let totals = &closed.totals;
            let count = |counter: prometheus::IntCounter, n: i64| counter.inc_by(u64::try_from(n).unwrap_or_default());
            count(inner.ingest.with_label_values(&[inner.source.as_str()]), totals.records_in);
            count(inner.records.with_label_values(&["in"]), totals.records_in);
            count(inner.records.with_label_values(&["accepted"]), totals.accepted);
            count(inner.records.with_label_values(&["duplicate"]), totals.duplicate);
            count(inner.records.with_label_values(&["dead"]), totals.dead);
            count(inner.unknown_fields.clone(), totals.unknown_fields);
            count(inner.price_jumps.clone(), closed.price_jumps);
            for letter in &closed.dead {
                inner.dead_letters.with_label_values(&[inner.source.as_str(), letter.reason.as_str()]).inc();
            }
            for change in &closed.changes {
                if let Change::Upsert(Output::Verdict(verdict)) = change {
                    for reason in &verdict.reasons {
                        inner.blocked.with_label_values(&[reason.as_str()]).inc();
                    }
                }
            }
        }
        inner.held.set(committed.totals.held);
    }

    /// Wall clock minus the clock of the last epoch that is past `stage`: `cut`, `closed`, `committed`, `published`.
    pub fn frontier_lag(&self, stage: &str, seconds: f64) {
        self.inner.frontier_lag.with_label_values(&[stage]).set(seconds);
    }

    /// One record's way from its receipt to its publication.
    pub fn end_to_end(&self, seconds: f64) {
        self.inner.end_to_end.observe(seconds);
    }

    /// How long the first record of an epoch was in a stage.
    pub fn stage_took(&self, stage: Stage, duration: Duration) {
        self.inner.stages[stage as usize].observe(duration.as_secs_f64());
    }

    /// One transaction of a sink, committed: `sqlite`, `postgres`.
    pub fn commit_took(&self, sink: &str, duration: Duration) {
        self.inner.commit.with_label_values(&[sink]).observe(duration.as_secs_f64());
    }

    /// One transaction of a sink that failed and is tried again.
    pub fn commit_failed(&self, sink: &str) {
        self.inner.commit_failures.with_label_values(&[sink]).inc();
    }

    /// Closed rows of `stage` that changed afterwards.
    pub fn corrections(&self, stage: &str, n: u64) {
        self.inner.corrections.with_label_values(&[stage]).inc_by(n);
    }

    /// Memory that an operator retains.
    pub fn operator_state_bytes(&self, operator: &str, bytes: u64) {
        self.inner.state_bytes.with_label_values(&[operator]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The revision of the live configuration in effect.
    pub fn config_revision(&self, revision: u64) {
        self.inner.config_revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
    }

    /// Whether the source of the live configuration does not answer.
    pub fn config_stale(&self, stale: bool) {
        self.inner.config_stale.set(i64::from(stale));
    }

    /// Messages that the broker has in a partition and that were not read.
    pub fn consumer_lag(&self, partition: Partition, records: u64) {
        let records = i64::try_from(records).unwrap_or(i64::MAX);
        self.inner.consumer_lag.with_label_values(&[partition.as_str()]).set(records);
    }

    /// Rows that a restart computed otherwise than they stood.
    pub fn recovery_differences(&self, n: u64) {
        self.inner.recovery_differences.inc_by(n);
    }

    /// Records committed a second.
    pub fn tick_rate(&self, per_second: f64) {
        self.inner.tick_rate.set(per_second);
    }

    /// For metrics that a sink has beside these.
    pub(crate) fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// The text that Prometheus scrapes.
    pub fn text(&self) -> String {
        let families = self.inner.registry.gather();
        // A family that cannot be encoded is a bug in this file; a scrape must not take the process down with it.
        TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| format!("# {error}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use marea_model::output::Totals;
    use marea_model::{Cursor, DeadLetter, Partition};

    fn epoch(totals: Totals, dead: Vec<DeadLetter>) -> ClosedEpoch {
        ClosedEpoch { dead, totals, ..ClosedEpoch::empty(1) }
    }

    #[test]
    fn the_sum_can_be_read_off() {
        let metrics = Metrics::new("0.1.0", "synthetic");
        assert!(metrics.text().contains("marea_records_total{outcome=\"dead\"} 0"), "series exist from the start");
        let cursor = Cursor { partition: Partition::new("synthetic").unwrap(), offset: 7, row: 0 };
        let letter = DeadLetter {
            cursor,
            reason: Reason::Late,
            field: String::new(),
            value: String::new(),
            detail: String::new(),
            original: Vec::new(),
        };
        let totals = Totals { records_in: 10, accepted: 6, duplicate: 2, dead: 1, held: 1, ..Totals::default() };
        let committed = Committed { upper: 2, generation: 1, last_seq: 0, totals, audit: Vec::new() };
        let closed = ClosedEpoch { price_jumps: 3, ..epoch(totals, vec![letter]) };
        metrics.committed(&[closed], &committed);
        metrics.commit_took("sqlite", Duration::from_millis(3));
        metrics.frontier_lag("committed", 0.25);
        metrics.corrections("bars", 2);
        metrics.operator_state_bytes("scan", 4096);
        metrics.config_revision(5);
        metrics.end_to_end(0.002);
        metrics.stage_took(Stage::Dataflow, Duration::from_micros(30));
        metrics.commit_failed("postgres");
        metrics.config_stale(true);
        let text = metrics.text();
        for line in [
            "marea_ingest_records_total{source=\"synthetic\"} 10",
            "marea_price_jumps_total 3",
            "marea_records_total{outcome=\"in\"} 10",
            "marea_records_total{outcome=\"accepted\"} 6",
            "marea_records_total{outcome=\"duplicate\"} 2",
            "marea_records_total{outcome=\"dead\"} 1",
            "marea_records_held 1",
            "marea_dead_letters_total{reason=\"late\",source=\"synthetic\"} 1",
            "marea_dead_letters_total{reason=\"conflict\",source=\"synthetic\"} 0",
            "marea_blocked_verdicts_total{reason=\"KILL_SWITCH\"} 0",
            "marea_frontier_lag_seconds{stage=\"committed\"} 0.25",
            "marea_sink_commit_duration_seconds_count{sink=\"sqlite\"} 1",
            "marea_corrections_total{stage=\"bars\"} 2",
            "marea_operator_state_bytes{operator=\"scan\"} 4096",
            "marea_config_revision 5",
            "marea_end_to_end_latency_seconds_count 1",
            "marea_stage_latency_seconds_bucket{stage=\"dataflow\",le=\"0.000025\"} 0",
            "marea_stage_latency_seconds_bucket{stage=\"dataflow\",le=\"0.00005\"} 1",
            "marea_stage_latency_seconds_count{stage=\"decode\"} 0",
            "marea_sink_commit_failures_total{sink=\"postgres\"} 1",
            "marea_config_stale 1",
            "marea_build_info{version=\"0.1.0\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
