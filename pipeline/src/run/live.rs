//! The live configuration to begin with, and its history as operators have read it.

use super::Failure;
use crate::config::{Config, SourceKind};
use marea_model::instrument::InstrumentSpec;
use marea_model::live::decode_segment;
use marea_model::{ConfigUpdate, Instrument, Instruments, LiveConfig, Symbol};
use marea_sources::etcd::{self, EtcdConfig};
use marea_sources::{Stop, live_file, synthetic};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The live configuration where none is named.
pub const DEFAULT_LIVE: &str = include_str!("../default_live.toml");

/// The live configuration to begin with, and where to watch for more.
#[derive(Clone, Debug)]
pub struct Live {
    /// Keys and values.
    pub tree: BTreeMap<String, String>,
    /// Their revision.
    pub revision: u64,
    /// What is watched.
    pub watch: Watch,
}

/// Where changes of the live configuration come from.
#[derive(Clone, Debug)]
pub enum Watch {
    /// There are none.
    Nothing,
    /// A file.
    File(PathBuf),
    /// etcd, from where it was read.
    Etcd(Box<(EtcdConfig, etcd::Snapshot)>),
}

impl Live {
    /// Of a file.
    pub fn of(path: &Path, watch: bool) -> Result<Live, Failure> {
        let tree = live_file::load(path).map_err(Failure::refused)?;
        let watch = if watch { Watch::File(path.to_owned()) } else { Watch::Nothing };
        Ok(Live { tree, revision: 1, watch })
    }

    /// The embedded one that goes with a kind of source.
    pub fn embedded(kind: SourceKind) -> Live {
        let text = match kind {
            SourceKind::Synthetic => synthetic::LIVE_CONFIG,
            SourceKind::File | SourceKind::Kafka | SourceKind::RabbitMq => DEFAULT_LIVE,
        };
        let tree = live_file::parse(Path::new("embedded"), text.as_bytes()).expect("the embedded file is valid TOML");
        Live { tree, revision: 1, watch: Watch::Nothing }
    }

    /// As the configuration says. Waits until etcd answers, if it is there, or until it is stopped.
    pub fn configured(config: &Config, watch: bool, stop: &Stop) -> Result<Live, Failure> {
        match (&config.live_file, &config.etcd) {
            (Some(path), _) => Live::of(path, watch),
            (None, Some(etcd)) => {
                let snapshot = etcd::load(etcd, stop).map_err(Failure::failed)?;
                let (tree, revision) = (snapshot.tree.clone(), snapshot.revision);
                let watch = if watch { Watch::Etcd(Box::new((etcd.clone(), snapshot))) } else { Watch::Nothing };
                Ok(Live { tree, revision, watch })
            }
            (None, None) => Ok(Live::embedded(config.source.kind)),
        }
    }

    /// Read as the operators will read it.
    pub fn read(&self, config: &Config) -> LiveConfig {
        read_updates(&live_file::diff(&BTreeMap::new(), &self.tree, self.revision), config)
    }
}

/// Keys of instruments start so.
pub(super) const INSTRUMENTS: &str = "/marea/instruments/";

/// Every change of a run, read as its operators have read it: the first revision has the instruments to begin with.
pub fn read_updates(updates: &[ConfigUpdate], config: &Config) -> LiveConfig {
    let mut puts = updates.iter().filter_map(|update| match update {
        ConfigUpdate::Put { key, value, revision } => Some((key.as_str(), value.as_str(), *revision)),
        ConfigUpdate::Delete { .. } | ConfigUpdate::Stale(_) => None,
    });
    let first = match updates.first() {
        Some(ConfigUpdate::Put { revision, .. }) => Some(*revision),
        _ => None,
    };
    let first = puts.by_ref().take_while(|(.., revision)| Some(*revision) == first);
    let tree = first.map(|(key, value, _)| (key, value)).collect();
    let mut live = LiveConfig::new(&initial_instruments(&tree)).with_timeframes(&config.pipeline.timeframes);
    for update in updates {
        live.apply(update);
    }
    live
}

/// The instruments to begin with: their scale and price source hold as long as the process runs. One that cannot be read
/// is left out here, and a problem of the [`LiveConfig`].
fn initial_instruments(tree: &BTreeMap<&str, &str>) -> Instruments {
    let mut instruments = Instruments::default();
    let of = |name: &str, base: &Instrument| {
        let spec: InstrumentSpec = serde_json::from_str(tree.get(format!("{INSTRUMENTS}{name}").as_str())?).ok()?;
        spec.over(base).ok()
    };
    instruments.default = of("default", &instruments.default).unwrap_or(instruments.default);
    for name in tree.keys().filter_map(|key| key.strip_prefix(INSTRUMENTS)).filter(|name| *name != "default") {
        let symbol = decode_segment(name).and_then(|text| Symbol::canonical(&text).ok());
        if let (Some(symbol), Some(instrument)) = (symbol, of(name, &instruments.default)) {
            instruments.by_symbol.insert(symbol, instrument);
        }
    }
    instruments
}
