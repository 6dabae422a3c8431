//! `scan`: an ordered, checkpointed fold over every (symbol, timeframe)'s closed bars, for thousands of consumers:
//! indicators, and strategies with their positions and metrics.
//!
//! - **Input**: base bars of all symbols (every worker gets all: bars are few), progress, configuration.
//! - **Output**: rows of `bars`, `indicators`, `trades`, `metrics`; one [`Contribution`] a strategy and symbol; one
//!   [`DecisionBar`] a symbol.
//! - **Corrects**: yes. All edits of an epoch are one diff; each consumer restores its checkpoint before the earliest
//!   edit and steps the old and the new bars side by side, merged by open time. An indicator stops where both states
//!   are equal and no window reaches an edit; strategies, whose state holds sums, usually run to the tip.
//! - **Who does what**: a symbol's bars, indicators and decision bar come from the worker that owns it
//!   ([`owner`]); its strategies are spread over all workers by a hash of (strategy, symbol).
//! - **State**: one exact columnar history a (symbol, timeframe), rolled up here so that a worker holds it once; a state
//!   a consumer, and some 96 checkpoints of it over a million bars (gap ≤ max(64, distance to the tip ÷ 8)).
//! - **Cost**: a closed bar costs one step a consumer; an edit `d` bars back at most `2·(d + max(64, d ÷ 8))` steps a
//!   consumer, whatever the history before it; a new consumer one pass over the history.
//! - **Frontier**: output at epoch e is complete when the input frontier has passed e.

mod lane;
#[cfg(test)]
mod tests;
mod track;

use crate::bars::BarUpsert;
use crate::epochs::{EpochOperator, EpochStream};
use crate::indicators::IndicatorSpec;
use crate::rollup::{BarChange, Rollup, RollupError};
use lane::{DECISION_ATR, Edit, Lane};
use marea_model::live::Touched;
use marea_model::recommendation::{Contribution, DecisionBar};
use marea_model::{
    ConfigUpdate, Delta, Instruments, LiveConfig, Output, Progress, Strategy, StrategyId, Symbol, Timeframe,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use timely::dataflow::channels::pact::Pipeline;

/// What a scan is built from.
#[derive(Clone, Debug)]
pub struct ScanConfig {
    /// The timeframes, the base first.
    pub timeframes: Vec<Timeframe>,
    /// The indicators kept for every symbol, on these timeframes.
    pub indicators: Vec<(Timeframe, Vec<IndicatorSpec>)>,
    /// Scales, price sources, and the decision timeframes to begin with.
    pub instruments: Arc<Instruments>,
    /// This worker.
    pub index: usize,
    /// All workers.
    pub peers: usize,
}

/// The worker that owns a symbol, of `peers`.
pub fn owner(symbol: Symbol, peers: usize) -> usize {
    (symbol.stable_hash() % peers as u64) as usize
}

/// Whether worker `index` of `peers` runs a strategy on a symbol's bars.
fn runs(strategy: &Strategy, symbol: Symbol, timeframe: Timeframe, index: usize, peers: usize) -> bool {
    let mixed = strategy.id.stable_hash() ^ symbol.stable_hash().rotate_left(17);
    strategy.timeframe == timeframe && strategy.symbols.contains(symbol) && mixed % peers as u64 == index as u64
}

/// What an epoch changed.
#[derive(Debug, Default)]
pub struct ScanOutput {
    /// Rows of bars, indicators, trades and metrics.
    pub deltas: Vec<Delta>,
    /// What strategies say.
    pub contributions: Vec<(Contribution, i64)>,
    /// What they say it about.
    pub decisions: Vec<(DecisionBar, i64)>,
}

/// The kernel.
pub struct Scan {
    config: ScanConfig,
    rollup: Rollup,
    live: LiveConfig,
    /// Those that run, as of the last epoch.
    strategies: BTreeMap<StrategyId, Arc<Strategy>>,
    lanes: BTreeMap<(Symbol, Timeframe), Lane>,
    decisions: BTreeMap<Symbol, DecisionBar>,
    /// Lanes whose bars or strategies have changed in this epoch.
    touched: BTreeSet<(Symbol, Timeframe)>,
}

impl Scan {
    /// A scan that has seen nothing; an error where the timeframes do not roll up.
    pub fn new(config: ScanConfig) -> Result<Self, RollupError> {
        let rollup = Rollup::new(&config.timeframes, config.instruments.clone())?;
        let live = LiveConfig::new(&config.instruments).with_timeframes(&config.timeframes);
        Ok(Scan {
            config,
            rollup,
            live,
            strategies: BTreeMap::new(),
            lanes: BTreeMap::new(),
            decisions: BTreeMap::new(),
            touched: BTreeSet::new(),
        })
    }

    fn owns(&self, symbol: Symbol) -> bool {
        owner(symbol, self.config.peers) == self.config.index
    }

    /// Takes an epoch's base bars, progress and configuration; gives what they changed.
    pub fn epoch(
        &mut self,
        bars: impl IntoIterator<Item = BarUpsert>,
        progress: Option<Progress>,
        config: &[ConfigUpdate],
    ) -> ScanOutput {
        let mut out = ScanOutput::default();
        let changes = self.rollup.epoch(bars, progress);
        let mut moved: BTreeSet<Symbol> = BTreeSet::new();
        for group in changes.chunk_by(|a, b| (a.symbol, a.timeframe) == (b.symbol, b.timeframe)) {
            self.change(group, &mut moved, &mut out);
        }
        if !config.is_empty() {
            self.configure(config, &mut moved, &mut out);
        }
        for key in std::mem::take(&mut self.touched) {
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.publish(&mut out);
            }
        }
        for symbol in moved {
            self.decide(symbol, &mut out);
        }
        out
    }

    /// The changes of one (symbol, timeframe), ordered by open time.
    fn change(&mut self, changes: &[BarChange], moved: &mut BTreeSet<Symbol>, out: &mut ScanOutput) {
        let Some(BarChange { symbol, timeframe, scale, .. }) = changes.first().copied() else { return };
        if self.owns(symbol) {
            moved.insert(symbol);
            for change in changes {
                for (row, diff) in [(change.old_row(), -1), (change.new_row(), 1)] {
                    out.deltas.extend(row.map(|bar| Delta { output: Output::Bar(bar), diff }));
                }
            }
        }
        let closed = |side: Option<(_, bool)>| side.filter(|(_, closed)| *closed).map(|(body, _)| body);
        let edits: Vec<Edit> = changes
            .iter()
            .map(|c| Edit { open_time: c.open_time, old: closed(c.old), new: closed(c.new) })
            .filter(|e| e.old != e.new)
            .collect();
        if edits.is_empty() {
            return;
        }
        if !self.lanes.contains_key(&(symbol, timeframe)) {
            self.open_lane(symbol, timeframe, scale, out);
        }
        let (Some(lane), Some(history)) =
            (self.lanes.get_mut(&(symbol, timeframe)), self.rollup.history(symbol, timeframe))
        else {
            return;
        };
        lane.apply(&edits, history, out);
        self.touched.insert((symbol, timeframe));
    }

    fn open_lane(&mut self, symbol: Symbol, timeframe: Timeframe, scale: u8, out: &mut ScanOutput) {
        let Some(history) = self.rollup.history(symbol, timeframe) else { return };
        let mut lane = Lane::new(symbol, timeframe, scale);
        if self.owns(symbol) {
            for (_, specs) in self.config.indicators.iter().filter(|(t, _)| *t == timeframe) {
                lane.add_indicators(specs, true, history, out);
            }
            if self.live.instruments().get(symbol).decision_timeframe == timeframe {
                lane.add_indicators(&[DECISION_ATR], false, history, out);
            }
        }
        let (index, peers) = (self.config.index, self.config.peers);
        let strategies = self.strategies.values().filter(|s| runs(s, symbol, timeframe, index, peers));
        lane.add_backtests(&strategies.cloned().collect::<Vec<_>>(), history, out);
        self.lanes.insert((symbol, timeframe), lane);
    }

    /// Brings strategies and decision timeframes up to the configuration.
    fn configure(&mut self, updates: &[ConfigUpdate], moved: &mut BTreeSet<Symbol>, out: &mut ScanOutput) {
        for update in updates {
            if let Touched::Instruments(_) = self.live.apply(update) {
                moved.extend(self.decisions.keys());
            }
        }
        let wanted = self.live.strategies();
        let mut fresh: Vec<Arc<Strategy>> = Vec::new();
        let mut gone: BTreeMap<StrategyId, Option<Arc<Strategy>>> = BTreeMap::new();
        for (id, strategy) in wanted {
            match self.strategies.get(id) {
                Some(standing) if standing == strategy => continue,
                Some(_) => {
                    gone.insert(*id, Some(strategy.clone()));
                }
                None => {}
            }
            fresh.push(strategy.clone());
        }
        gone.extend(self.strategies.keys().filter(|id| !wanted.contains_key(id)).map(|id| (*id, None)));
        self.strategies.retain(|id, _| !gone.contains_key(id));
        self.strategies.extend(fresh.iter().map(|s| (s.id, s.clone())));
        let (index, peers) = (self.config.index, self.config.peers);
        for ((symbol, timeframe), lane) in &mut self.lanes {
            let Some(history) = self.rollup.history(*symbol, *timeframe) else { continue };
            let runs = |s: &Strategy| runs(s, *symbol, *timeframe, index, peers);
            let mut carried: BTreeSet<StrategyId> = BTreeSet::new();
            for id in lane.strategies().filter(|id| gone.contains_key(id)).collect::<Vec<_>>() {
                let successor = gone.get(&id).and_then(Option::as_ref).filter(|s| runs(s));
                if lane.remove_backtest(id, successor, history, out) {
                    carried.insert(id);
                }
            }
            let added: Vec<_> = fresh.iter().filter(|s| runs(s) && !carried.contains(&s.id)).cloned().collect();
            lane.add_backtests(&added, history, out);
            if !carried.is_empty() || !added.is_empty() {
                self.touched.insert((*symbol, *timeframe));
            }
            if owner(*symbol, peers) == index && self.live.instruments().get(*symbol).decision_timeframe == *timeframe {
                lane.add_indicators(&[DECISION_ATR], false, history, out);
                moved.insert(*symbol);
            }
        }
    }

    /// Emits a symbol's decision bar if it has changed.
    fn decide(&mut self, symbol: Symbol, out: &mut ScanOutput) {
        let timeframe = self.live.instruments().get(symbol).decision_timeframe;
        let lane = self.lanes.get(&(symbol, timeframe));
        let fresh = lane.zip(self.rollup.history(symbol, timeframe)).and_then(|(l, h)| l.decision(h));
        let standing = self.decisions.get(&symbol).copied();
        if fresh == standing {
            return;
        }
        out.decisions.extend(standing.map(|d| (d, -1)));
        out.decisions.extend(fresh.map(|d| (d, 1)));
        match fresh {
            Some(fresh) => self.decisions.insert(symbol, fresh),
            None => self.decisions.remove(&symbol),
        };
    }
}

/// The streams that leave a scan.
pub struct ScanStreams<'scope> {
    /// Rows of bars, indicators, trades and metrics.
    pub deltas: EpochStream<'scope, Delta>,
    /// What strategies say, on the worker that ran them.
    pub contributions: EpochStream<'scope, (Contribution, i64)>,
    /// What they say it about, on the worker that owns the symbol.
    pub decisions: EpochStream<'scope, (DecisionBar, i64)>,
}

/// Wires the scan. Every worker must be given all base bars, and all of the configuration.
pub fn scan<'scope>(
    bars: EpochStream<'scope, BarUpsert>,
    progress: EpochStream<'scope, Progress>,
    config: EpochStream<'scope, ConfigUpdate>,
    mut kernel: Scan,
) -> ScanStreams<'scope> {
    let mut operator = EpochOperator::new("scan", progress);
    let bars = operator.input(bars, Pipeline);
    let config = operator.input(config, Pipeline);
    let (deltas_out, deltas) = operator.output();
    let (contributions_out, contributions) = operator.output();
    let (decisions_out, decisions) = operator.output();
    operator.build(move |_, progress| {
        let out = kernel.epoch(bars.drain(), Some(progress), &config.take());
        deltas_out.give_vec(out.deltas);
        contributions_out.give_vec(out.contributions);
        decisions_out.give_vec(out.decisions);
    });
    ScanStreams { deltas, contributions, decisions }
}
