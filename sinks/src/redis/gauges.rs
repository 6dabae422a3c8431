//! How Redis is doing, for Prometheus.

use super::shell::kind;
use crate::Metrics;
use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts};
use redis::RedisError;

/// What is counted. Cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct Gauges {
    pub(super) up: IntGauge,
    pub(super) lag: Gauge,
    pub(super) errors: IntCounterVec,
    pub(super) rebuilds: IntCounter,
    /// By the way that they took: `direct`, or `queued` for the shell.
    pub(super) early: IntCounterVec,
}

/// Kinds of errors, as they are labelled.
pub(super) const KINDS: [&str; 10] =
    ["connection", "timeout", "oom", "readonly", "wrongtype", "loading", "auth", "newer", "store", "other"];

impl Gauges {
    /// Counts a failure of a connection.
    pub(super) fn failed(&self, error: &RedisError) {
        self.errors.with_label_values(&[kind(error)]).inc();
    }

    /// Registers them; a second sink of a process shows nothing of its own.
    ///
    /// # Panics
    /// Never: names are fixed.
    pub(super) fn new(metrics: &Metrics) -> Gauges {
        let made = "metric names and labels are fixed and valid";
        let gauges = Gauges {
            up: IntGauge::new("marea_redis_up", "1 while Redis has all that is committed and takes more").expect(made),
            lag: Gauge::new("marea_redis_lag_seconds", "How long the oldest change has waited to be in Redis")
                .expect(made),
            errors: IntCounterVec::new(Opts::new("marea_redis_errors_total", "Failures of Redis by kind"), &["kind"])
                .expect(made),
            rebuilds: IntCounter::new("marea_redis_rebuilds_total", "How often Redis was built anew").expect(made),
            early: IntCounterVec::new(
                Opts::new(
                    "marea_redis_early_values_total",
                    "Values sent before their commit: by whoever had them, or queued",
                ),
                &["way"],
            )
            .expect(made),
        };
        for way in ["direct", "queued"] {
            gauges.early.with_label_values(&[way]);
        }
        for kind in KINDS {
            gauges.errors.with_label_values(&[kind]);
        }
        let registry = metrics.registry();
        let (up, lag) = (Box::new(gauges.up.clone()), Box::new(gauges.lag.clone()));
        let (errors, rebuilds) = (Box::new(gauges.errors.clone()), Box::new(gauges.rebuilds.clone()));
        let early = Box::new(gauges.early.clone());
        for registered in [
            registry.register(up),
            registry.register(lag),
            registry.register(errors),
            registry.register(rebuilds),
            registry.register(early),
        ] {
            if let Err(error) = registered {
                tracing::warn!(%error, "a metric of Redis is not shown");
            }
        }
        gauges
    }
}
