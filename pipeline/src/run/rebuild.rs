//! A rebuild: the state at the store's upper, computed anew by this logic, compared with what stands, and taken over if
//! that is wanted. As a restart does it, without a feed, and ending there.

use super::source::{MAX_AHEAD, Preparing};
use super::{BATCHES, Failure, METRICS_EVERY, read_updates, spawn};
use crate::committer::wall_now;
use crate::config::Config;
use crate::cutter::{Cut, Cutter, CutterConfig};
use crate::dataflow::DataflowConfig;
use crate::engine::{Engine, EngineConfig};
use crossbeam_channel::{Receiver, bounded};
use marea_model::codec::Decoder;
use marea_model::cursor::Batch;
use marea_model::output::ClosedEpoch;
use marea_model::{Epoch, Restoration};
use marea_sinks::Store;
use marea_sinks::store::Difference;
use marea_sources::synthetic::Synthetic;
use marea_sources::{Input, Lags, Stop, message};
use std::sync::Arc;

/// What a rebuild found.
pub struct Rebuilt {
    /// Which logic had computed the store.
    pub logic_version: i64,
    /// The last committed epoch, as of which everything was computed anew.
    pub epoch: Epoch,
    /// The sealed bars that it was computed from.
    pub bars: usize,
    /// Everything that stands otherwise, ordered by key.
    pub differences: Vec<Difference>,
    /// Under which name the old state is kept, if the new one was taken over.
    pub kept: Option<String>,
}

/// Computes the configured store's state anew; with `swap` takes it over. Needs of the source what a restart needs.
pub fn rebuild(config: &Config, market: Synthetic, swap: bool) -> Result<Rebuilt, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(Failure::failed)?;
    let target = &config.store;
    let store = runtime.block_on(Store::try_open_to_rebuild(target)).map_err(Failure::refused)?;
    let Some(mut store) = store else {
        return Err(Failure::refused(format!("store {target}: another process has it: stop that one first")));
    };
    let logic_version = runtime.block_on(store.logic_version()).map_err(Failure::failed)?;
    let restoration = runtime.block_on(store.restoration(config.pipeline.timeframes[0])).map_err(Failure::refused)?;
    let Some(restoration) = restoration else {
        return Err(Failure::refused(format!("store {target}: holds no run: there is nothing to compute anew")));
    };
    let (epoch, bars) = (restoration.epoch, restoration.sealed.bars.len());
    let closed = computed_anew(config, market, restoration)?;
    let differences = runtime.block_on(store.differences(&closed)).map_err(Failure::failed)?;
    let kept = swap.then(|| runtime.block_on(store.swap(&closed))).transpose().map_err(Failure::failed)?;
    runtime.block_on(store.close()).map_err(Failure::failed)?;
    Ok(Rebuilt { logic_version, epoch, bars, differences, kept })
}

/// The whole state at the last committed epoch.
fn computed_anew(config: &Config, market: Synthetic, mut restoration: Restoration) -> Result<ClosedEpoch, Failure> {
    let instruments = Arc::new(read_updates(&restoration.config, config).initial().clone());
    let (marks, raw) = (restoration.partitions.clone(), std::mem::take(&mut restoration.raw));
    let timeframes = config.pipeline.timeframes.clone();
    let (acknowledge, lags) = (marea_sources::Committed::default(), Lags::default());
    let preparing =
        Preparing { config, instruments: &instruments, acknowledge: &acknowledge, lags: &lags, marks: &marks };
    let source = preparing.prepare(market, true)?.run;
    let cutter = CutterConfig {
        clock: config.pipeline.clock,
        lateness: config.pipeline.lateness,
        max_ticks: config.pipeline.max_ticks,
        timeframes: timeframes.clone(),
        instruments: instruments.clone(),
        metrics_every: METRICS_EVERY,
    };
    let mut cutter = Cutter::resume(cutter, restoration);
    let decoder =
        Decoder { instruments: instruments.clone(), base_timeframe: timeframes[0], max_ahead: Some(MAX_AHEAD) };
    for batch in message::replay(&decoder, &raw) {
        let upper = marks.get(&batch.partition).map_or(batch.upper, |mark| mark.upper.max(batch.upper));
        cutter.push(Input::Batch(Batch { upper, ..batch }), wall_now());
    }
    let mut engine = Engine::start(&EngineConfig {
        workers: config.pipeline.workers,
        dataflow: DataflowConfig {
            indicators: config.indicators.timeframes.iter().map(|t| (*t, config.indicators.list.clone())).collect(),
            timeframes,
            instruments,
        },
    })
    .map_err(Failure::failed)?;
    let (out, inputs) = bounded(BATCHES);
    let stop = Stop::new();
    let source = spawn("source", {
        let stop = stop.clone();
        move || source(&out.into(), &stop)
    })?;
    let cut = replayed(&mut cutter, &inputs);
    stop.stop();
    drop(inputs);
    let ended = source.join().map_err(|_| Failure::failed("the source has panicked"))?;
    let Some(cut) = cut else {
        let early = || Failure::failed("the source ended before it came to where the store stands");
        return Err(ended.err().unwrap_or_else(early));
    };
    let outputs = engine.take_outputs();
    engine.submit(cut).map_err(Failure::failed)?;
    let mut closed = outputs.recv().map_err(|_| Failure::failed("the engine has stopped"))?;
    closed.expand();
    Ok(closed)
}

/// Reads until everything has been read that a restart reads; none if the source ended before.
fn replayed(cutter: &mut Cutter, inputs: &Receiver<Input>) -> Option<Cut> {
    loop {
        if let Some(cut) = cutter.restored() {
            return Some(cut);
        }
        cutter.push(inputs.recv().ok()?, wall_now());
    }
}
