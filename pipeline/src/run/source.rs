//! The source that the configuration asks for: checked, opened, where it goes on.

use super::Failure;
use super::standing::Marks;
use crate::committer::wall_now;
use crate::config::{Config, SourceKind};
use marea_model::codec::Decoder;
use marea_model::time::SECOND;
use marea_model::{Instruments, Nanos, PartitionMark};
use marea_sources::file::{FileConfig, FileProgress};
use marea_sources::kafka::KafkaError;
use marea_sources::kafka::{self, KafkaConfig};
use marea_sources::rabbitmq::{self, RabbitConfig, RabbitError};
use marea_sources::synthetic::Synthetic;
use marea_sources::{Gap, Gaps, Lags, Resume, Stop, file, synthetic};
use std::sync::Arc;
use std::time::Duration;

/// Reads until its end.
pub(super) type Source = Box<dyn FnOnce(&marea_sources::Sender, &Stop) -> Result<(), Failure> + Send>;

/// A source, checked but not yet running.
pub(super) struct Prepared {
    pub(super) run: Source,
    /// How far files have been read.
    pub(super) progress: Option<Arc<FileProgress>>,
    /// What it skips.
    pub(super) gaps: Gaps,
}

impl Prepared {
    fn new(run: impl FnOnce(&marea_sources::Sender, &Stop) -> Result<(), Failure> + Send + 'static) -> Prepared {
        Prepared { run: Box::new(run), progress: None, gaps: Gaps::default() }
    }
}

/// What is lost stays lost: to start again is no use.
fn kafka_failed(error: KafkaError) -> Failure {
    match error {
        KafkaError::Gap { .. } | KafkaError::Recreated { .. } => Failure::refused(error),
        error => Failure::failed(error),
    }
}

/// What is lost stays lost: to start again is no use.
fn rabbit_failed(error: RabbitError) -> Failure {
    match error {
        RabbitError::Gap { .. } | RabbitError::Recreated { .. } | RabbitError::Lost { .. } => Failure::refused(error),
        error => Failure::failed(error),
    }
}

/// How far an event time may be ahead of its receipt.
pub(super) const MAX_AHEAD: Nanos = 5 * SECOND;
/// How long a broker may take to say what it has.
const CHECK_FOR: Duration = Duration::from_secs(10);

/// What a source is made of.
pub(super) struct Preparing<'a> {
    pub(super) config: &'a Config,
    pub(super) instruments: &'a Arc<Instruments>,
    pub(super) acknowledge: &'a marea_sources::Committed,
    pub(super) lags: &'a Lags,
    /// Where the run has come to that goes on.
    pub(super) marks: &'a Marks,
}

impl Preparing<'_> {
    fn decoder(&self) -> Decoder {
        let base_timeframe = self.config.pipeline.timeframes[0];
        Decoder { instruments: self.instruments.clone(), base_timeframe, max_ahead: Some(MAX_AHEAD) }
    }

    /// Where to read on. Refuses a run of another source: what it has read could not be read again.
    fn resume(&self) -> Result<Vec<Resume>, Failure> {
        let source = &self.config.source;
        let known = |partition: &str| match source.kind {
            SourceKind::Synthetic => partition == synthetic::PARTITION,
            SourceKind::File => {
                let accounts = source.accounts.iter();
                partition == file::PARTITION
                    || source.paths.iter().chain(accounts).any(|path| path.as_os_str() == partition)
            }
            SourceKind::Kafka => {
                let topics = [Some(&source.kafka.topic), source.kafka.accounts_topic.as_ref()];
                let of =
                    |topic: &String| partition.rsplit_once('/').is_some_and(|(p, _)| p == format!("kafka:{topic}"));
                topics.into_iter().flatten().any(of)
            }
            SourceKind::RabbitMq => {
                let queues = [Some(&source.rabbitmq.name), source.rabbitmq.accounts.as_ref()];
                let of =
                    |queue: &String| partition.starts_with("rabbitmq:") && partition.ends_with(&format!("/{queue}"));
                queues.into_iter().flatten().any(of)
            }
        };
        let strange = self.marks.keys().filter(|partition| !known(partition.as_str()));
        let strange: Vec<String> = strange
            .map(|partition| format!("the store holds a run that has read {partition}, which is not a part of the source: name it, or another store"))
            .collect();
        if !strange.is_empty() {
            return Err(Failure::Refused(strange));
        }
        let resume = |mark: &PartitionMark| {
            let PartitionMark { partition, low, upper, fingerprint, .. } = *mark;
            Resume { partition, low, upper, fingerprint }
        };
        Ok(self.marks.values().map(resume).collect())
    }

    /// What is lost of what a restart reads once more, where that is accepted: else it is refused. A broker that does not
    /// answer is not waited for long: the source asks it again, and accepts no such loss.
    pub(super) fn lost(self, stop: &Stop) -> Result<Vec<Gap>, Failure> {
        let resume = self.resume()?;
        if self.config.source.kind != SourceKind::Kafka || resume.is_empty() {
            return Ok(Vec::new());
        }
        let (decoder, lags) = (self.decoder(), self.lags.clone());
        let kafka = kafka::open(self.config.source.kafka.clone(), decoder, resume, Default::default(), lags);
        let gaps = kafka.and_then(|kafka| kafka.check(CHECK_FOR, stop)).map_err(kafka_failed)?;
        let mut gaps = gaps.unwrap_or_default();
        // What was not committed is not in what stands: the source notes it when it comes to it.
        gaps.retain(|gap| gap.committed);
        Ok(gaps)
    }

    /// The source, checked but not yet running. A topic, stream or queue ends only if it is asked to, at what it has now.
    pub(super) fn prepare(self, market: Synthetic, until_end: bool) -> Result<Prepared, Failure> {
        let Preparing { config, .. } = self;
        let instruments = self.instruments.clone();
        let (acknowledge, lags) = (self.acknowledge.clone(), self.lags.clone());
        let resume = self.resume()?;
        match config.source.kind {
            SourceKind::Kafka => {
                let kafka = KafkaConfig { until_end, ..config.source.kafka.clone() };
                let kafka = kafka::open(kafka, self.decoder(), resume, acknowledge, lags).map_err(Failure::refused)?;
                let gaps = kafka.gaps();
                Ok(Prepared { gaps, ..Prepared::new(move |out, stop| kafka.run(out, stop).map_err(kafka_failed)) })
            }
            SourceKind::RabbitMq => {
                let rabbit = RabbitConfig { until_end, ..config.source.rabbitmq.clone() };
                let rabbit = rabbitmq::open(rabbit, self.decoder(), resume, acknowledge, lags);
                let rabbit = rabbit.map_err(Failure::refused)?;
                Ok(Prepared::new(move |out, stop| rabbit.run(out, stop).map_err(rabbit_failed)))
            }
            SourceKind::Synthetic => {
                let market = match resume.iter().find_map(|resume| resume.fingerprint) {
                    None => market,
                    Some(left) => market.resumed(left).ok_or_else(|| {
                        Failure::refused(
                            "the store holds a run of another synthetic market: set seed and rate as they were, or name \
                             another store",
                        )
                    })?,
                };
                synthetic::Market::new(&market, &instruments).map_err(|e| Failure::refused(format!("source.{e}")))?;
                Ok(Prepared::new(move |out, stop| {
                    synthetic::run(&market, &instruments, out, stop).map_err(Failure::failed)
                }))
            }
            SourceKind::File => {
                let files = open_files(config, instruments).map_err(Failure::Refused)?.resumed(&resume);
                let progress = Some(files.progress());
                Ok(Prepared {
                    progress,
                    ..Prepared::new(move |out, stop| files.run(out, stop).map_err(Failure::failed))
                })
            }
        }
    }
}

/// The configured files, open; or everything that is wrong with them.
pub fn open_files(config: &Config, instruments: Arc<Instruments>) -> Result<file::Files, Vec<String>> {
    let source = &config.source;
    let files = FileConfig {
        files: source.paths.clone(),
        accounts: source.accounts.clone(),
        csv_format: source.csv_format,
        speed: source.speed,
    };
    let decoder = Decoder { instruments, base_timeframe: config.pipeline.timeframes[0], max_ahead: None };
    file::open(&files, &decoder).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// What is wrong with the configured files, as far as opening them tells.
pub fn check_files(config: &Config, instruments: &Instruments) -> Vec<String> {
    open_files(config, Arc::new(instruments.clone())).err().unwrap_or_default()
}

/// The synthetic market of a configuration, with its history ending now.
pub fn market(config: &Config, history: Nanos) -> Synthetic {
    Synthetic {
        seed: config.source.seed,
        rate: config.source.rate,
        start: wall_now() / SECOND * SECOND,
        history,
        ..Synthetic::default()
    }
}
