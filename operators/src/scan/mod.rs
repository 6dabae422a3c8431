//! `scan`: an ordered, checkpointed fold over every (symbol, timeframe)'s closed bars, for thousands of consumers:
//! indicators, and strategies with their positions and metrics.
//!
//! - **Input**: base bars of the symbols that this worker owns, and of those that it runs strategies on
//!   ([`route`](crate::route)), progress, configuration.
//! - **Output**: rows of `bars`, `indicators`, `trades`, `metrics`; one [`Contribution`] a symbol and strategy of its
//!   decision timeframe; one [`DecisionBar`] a symbol. What is only appended leaves as [`Rows`], what replaces something
//!   as deltas. Metrics are given when they are asked for, since nothing here depends on them: a strategy whose bars
//!   have changed has new ones then.
//! - **Corrects**: yes. All edits of an epoch are one diff; each consumer restores its checkpoint before the earliest
//!   edit and steps the old and the new bars side by side, merged by open time; where a lane has indicators alone and
//!   the edits are near, the new bars alone, beside the values that were kept of the last ones. An indicator stops where both states
//!   are equal and no window reaches an edit; strategies, whose state holds sums, usually run to the tip.
//! - **Who does what**: a symbol's bars, indicators and decision bar come from the worker that owns it
//!   ([`owner`]); its strategies are spread over all workers by a hash of (strategy, symbol).
//! - **State**: one exact columnar history a (symbol, timeframe), rolled up here so that a worker holds it once; a state
//!   a consumer, and some 60 checkpoints of it over a million bars (gap ≤ max(64, distance to the tip ÷ 4)).
//! - **Cost**: a closed bar costs one step a consumer; an edit `d` bars back at most `2·(d + max(64, d ÷ 4))` steps a
//!   consumer, whatever the history before it; a new consumer one pass over the history.
//! - **Frontier**: output at epoch e is complete when the input frontier has passed e.

mod consumer;
mod lane;
#[cfg(test)]
mod tests;
mod track;

use crate::bars::BarUpsert;
use crate::epochs::{Clock, EpochOperator, EpochStream};
use crate::history::History;
use crate::indicators::IndicatorSpec;
use crate::rollup::{BarChange, How, LevelChange, Rollup, RollupError};
use crate::route::Routed;
use lane::{DECISION_ATR, Edit, Lane};
use marea_model::live::Touched;
use marea_model::recommendation::{Contribution, DecisionBar};
use marea_model::{
    Bar, ConfigUpdate, Delta, Instruments, LiveConfig, Output, Progress, Rows, Strategy, StrategyId, Symbol, Timeframe,
};
use std::borrow::Borrow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

/// Base bars of an epoch for whose rows room is made at once.
const MANY: usize = 256;

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

/// The worker, of `peers`, that runs a strategy on a symbol's bars; none if it does not run there.
pub(crate) fn runner(strategy: &Strategy, symbol: Symbol, peers: usize) -> Option<usize> {
    let mixed = strategy.id.stable_hash() ^ symbol.stable_hash().rotate_left(17);
    strategy.symbols.contains(symbol).then_some((mixed % peers as u64) as usize)
}

/// Whether worker `index` of `peers` runs a strategy on a symbol's bars.
fn runs(strategy: &Strategy, symbol: Symbol, timeframe: Timeframe, index: usize, peers: usize) -> bool {
    strategy.timeframe == timeframe && runner(strategy, symbol, peers) == Some(index)
}

/// What an epoch changed.
#[derive(Debug, Default)]
pub struct ScanOutput {
    /// Rows that stand now.
    pub rows: Rows,
    /// Rows of bars, indicators, trades and metrics, retracted and inserted. No key is in both.
    pub deltas: Vec<Delta>,
    /// What strategies say.
    pub contributions: Vec<(Contribution, i64)>,
    /// What they say it about.
    pub decisions: Vec<(DecisionBar, i64)>,
}

/// One symbol, under its number in the roll-up.
struct Lanes {
    symbol: Symbol,
    /// Whether its bars and indicators are given here.
    owned: bool,
    /// Of each timeframe that has closed bars.
    lanes: Vec<Option<Box<Lane>>>,
    /// Which of them recommendations are made on, if it is there.
    decisive: Option<usize>,
    decision: Option<DecisionBar>,
}

/// What an epoch's configuration changes.
#[derive(Default)]
struct Plan {
    /// Whether instruments are others.
    instruments: bool,
    /// Strategies that are added.
    fresh: Vec<Arc<Strategy>>,
    /// Strategies that are removed, or replaced by those of `fresh` that are named with them.
    gone: BTreeMap<StrategyId, Option<Arc<Strategy>>>,
}

/// The kernel.
pub struct Scan {
    config: ScanConfig,
    rollup: Rollup,
    live: LiveConfig,
    /// Those that run, as of the last epoch.
    strategies: BTreeMap<StrategyId, Arc<Strategy>>,
    symbols: Vec<Lanes>,
    /// (symbol, timeframe) of the lanes whose bars or strategies have changed in this epoch.
    touched: Vec<(usize, usize)>,
    /// Likewise since metrics were given last, if they have strategies.
    unpublished: BTreeSet<(usize, usize)>,
    /// Symbols whose decision bar may have changed in this epoch.
    moved: Vec<usize>,
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
            symbols: Vec::new(),
            touched: Vec::new(),
            unpublished: BTreeSet::new(),
            moved: Vec::new(),
        })
    }

    /// Takes an epoch's base bars, progress and configuration; gives what they changed, metrics only if asked for.
    pub fn epoch(
        &mut self,
        bars: impl IntoIterator<Item = impl Borrow<BarUpsert>>,
        progress: Option<Progress>,
        config: &[ConfigUpdate],
        metrics: bool,
    ) -> ScanOutput {
        let mut out = ScanOutput::default();
        let plan = self.plan(config);
        // What is appended first may be taken back.
        let retracts = !plan.gone.is_empty();
        if retracts {
            self.symbols.iter_mut().flat_map(|s| &mut s.lanes).flatten().for_each(|lane| lane.set_retracts(true));
        }
        let bars = bars.into_iter();
        let are_many = bars.size_hint().0 > MANY;
        let changes = self.rollup.epoch(bars, progress);
        if are_many {
            self.make_room(&changes, &mut out);
        } else {
            out.rows.bars.reserve(changes.len());
        }
        for change in changes {
            self.change(&change, retracts, &mut out);
        }
        if plan.instruments {
            self.choose_decisive();
        }
        if retracts || !plan.fresh.is_empty() {
            self.configure(&plan, &mut out);
        }
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        for (number, level) in &touched {
            let symbol = &mut self.symbols[*number];
            if let Some(lane) = symbol.lanes[*level].as_mut().filter(|lane| lane.has_backtests()) {
                lane.contribute(symbol.decisive == Some(*level), &mut out);
                self.unpublished.insert((*number, *level));
            }
        }
        if metrics {
            for (number, level) in std::mem::take(&mut self.unpublished) {
                if let Some(lane) = &mut self.symbols[number].lanes[level] {
                    lane.publish_metrics(&mut out);
                }
            }
        }
        for (number, level) in touched.drain(..) {
            if let Some(lane) = &mut self.symbols[number].lanes[level] {
                lane.set_retracts(false);
            }
        }
        self.touched = touched;
        if retracts {
            self.symbols.iter_mut().flat_map(|s| &mut s.lanes).flatten().for_each(|lane| lane.set_retracts(false));
        }
        let mut moved = std::mem::take(&mut self.moved);
        moved.sort_unstable();
        moved.dedup();
        moved.drain(..).for_each(|number| self.decide(number, &mut out));
        self.moved = moved;
        out
    }

    /// Room for the rows that changes at the end of histories give.
    fn make_room(&self, changes: &[LevelChange], out: &mut ScanOutput) {
        let (mut bars, mut values) = (0, (0, 0));
        for LevelChange { number, level, closed, how, .. } in changes {
            if let How::Tail { first } = how {
                let length = self.rollup.history_at(*number, *level).len();
                bars += length - first + (*first).min(closed.1).saturating_sub(closed.0);
            }
            let lane = self.symbols.get(*number).and_then(|lanes| lanes.lanes[*level].as_ref());
            let (fresh, width) = (closed.1 - closed.0.min(closed.1), lane.map_or(0, |lane| lane.width()));
            values = (values.0 + fresh, values.1 + fresh * width);
        }
        out.rows.bars.reserve(bars);
        out.rows.indicators.reserve(values.0, values.1);
    }

    /// The bars that it has, of every timeframe.
    pub fn rollup(&self) -> &Rollup {
        &self.rollup
    }

    /// Bytes of the bars and of the strategies' checkpoints. Costs a look at each of them.
    pub fn bytes(&self) -> usize {
        let lanes = self.symbols.iter().flat_map(|symbol| &symbol.lanes).flatten();
        self.rollup.bytes() + lanes.map(|lane| lane.mark_bytes()).sum::<usize>()
    }

    /// Symbols up to this number get their place.
    fn meet(&mut self, number: usize) {
        while self.symbols.len() <= number {
            let symbol = self.rollup.symbol_at(self.symbols.len());
            self.symbols.push(Lanes {
                symbol,
                owned: owner(symbol, self.config.peers) == self.config.index,
                lanes: self.rollup.timeframes().iter().map(|_| None).collect(),
                decisive: decisive(&self.live, &self.rollup, symbol),
                decision: None,
            });
        }
    }

    fn change(&mut self, change: &LevelChange, retracts: bool, out: &mut ScanOutput) {
        let LevelChange { symbol, timeframe, number, level, .. } = *change;
        self.meet(number);
        let lanes = &mut self.symbols[number];
        let history = self.rollup.history_at(number, level);
        if lanes.owned {
            give_bars(change, history, out);
            if lanes.decisive == Some(level) {
                self.moved.push(number);
            }
        }
        let edits = closed_edits(change);
        if edits.is_empty() && change.closed.0 >= change.closed.1 {
            return;
        }
        let lane = match &mut lanes.lanes[level] {
            Some(lane) => lane,
            None => {
                let mut lane = Box::new(Lane::new(symbol, timeframe, change.scale));
                lane.set_retracts(retracts);
                if lanes.owned {
                    let specs = self.config.indicators.iter().filter(|(t, _)| *t == timeframe);
                    let specs: Vec<IndicatorSpec> = specs.flat_map(|(_, specs)| specs.iter().copied()).collect();
                    lane.show_indicators(&specs);
                    if lanes.decisive == Some(level) {
                        lane.add_indicator(DECISION_ATR, history);
                    }
                }
                let (index, peers) = (self.config.index, self.config.peers);
                let strategies = self.strategies.values().filter(|s| runs(s, symbol, timeframe, index, peers));
                lane.add_backtests(&strategies.cloned().collect::<Vec<_>>(), history, out);
                lanes.lanes[level].insert(lane)
            }
        };
        lane.apply(&edits, history, change.closed.1, out);
        self.touched.push((number, level));
    }

    /// What the configuration changes.
    fn plan(&mut self, updates: &[ConfigUpdate]) -> Plan {
        let mut plan = Plan::default();
        if updates.is_empty() {
            return plan;
        }
        for update in updates {
            plan.instruments |= matches!(self.live.apply(update), Touched::Instruments(_));
        }
        let wanted = self.live.strategies();
        for (id, strategy) in wanted {
            match self.strategies.get(id) {
                Some(standing) if standing == strategy => continue,
                Some(_) => {
                    plan.gone.insert(*id, Some(strategy.clone()));
                }
                None => {}
            }
            plan.fresh.push(strategy.clone());
        }
        plan.gone.extend(self.strategies.keys().filter(|id| !wanted.contains_key(id)).map(|id| (*id, None)));
        plan
    }

    /// Brings the strategies up to the configuration.
    fn configure(&mut self, Plan { gone, fresh, .. }: &Plan, out: &mut ScanOutput) {
        self.strategies.retain(|id, _| !gone.contains_key(id));
        self.strategies.extend(fresh.iter().map(|s| (s.id, s.clone())));
        let (index, peers) = (self.config.index, self.config.peers);
        for (number, lanes) in self.symbols.iter_mut().enumerate() {
            let symbol = lanes.symbol;
            for (level, lane) in lanes.lanes.iter_mut().enumerate() {
                let Some(lane) = lane else { continue };
                let (history, timeframe) = (self.rollup.history_at(number, level), self.rollup.timeframes()[level]);
                let runs = |s: &Strategy| runs(s, symbol, timeframe, index, peers);
                let mut carried: BTreeSet<StrategyId> = BTreeSet::new();
                let mut leaving: BTreeSet<StrategyId> = BTreeSet::new();
                for id in lane.strategies().filter(|id| gone.contains_key(id)).collect::<Vec<_>>() {
                    let successor = gone.get(&id).and_then(Option::as_ref).filter(|s| runs(s));
                    let carries_on = successor.is_some_and(|successor| lane.carry_on(successor));
                    if carries_on {
                        carried.insert(id)
                    } else {
                        leaving.insert(id)
                    };
                }
                let changed = !carried.is_empty() || !leaving.is_empty();
                lane.remove_backtests(&leaving, history, out);
                let added: Vec<_> = fresh.iter().filter(|s| runs(s) && !carried.contains(&s.id)).cloned().collect();
                lane.add_backtests(&added, history, out);
                if changed || !added.is_empty() {
                    self.touched.push((number, level));
                }
            }
        }
    }

    /// Recommendations may rest on other timeframes now.
    fn choose_decisive(&mut self) {
        for (number, lanes) in self.symbols.iter_mut().enumerate() {
            let fresh = decisive(&self.live, &self.rollup, lanes.symbol);
            let old = std::mem::replace(&mut lanes.decisive, fresh);
            if old == fresh {
                continue;
            }
            for level in [old, fresh].into_iter().flatten() {
                if lanes.lanes[level].as_ref().is_some_and(|lane| lane.has_backtests()) {
                    self.touched.push((number, level));
                }
            }
            if !lanes.owned {
                continue;
            }
            self.moved.push(number);
            if let Some((level, lane)) = fresh.and_then(|level| Some((level, lanes.lanes[level].as_mut()?))) {
                lane.add_indicator(DECISION_ATR, self.rollup.history_at(number, level));
            }
        }
    }

    /// Emits a symbol's decision bar if it has changed.
    fn decide(&mut self, number: usize, out: &mut ScanOutput) {
        let lanes = &mut self.symbols[number];
        let lane = lanes.decisive.and_then(|level| Some((level, lanes.lanes[level].as_mut()?)));
        let fresh = lane.and_then(|(level, lane)| lane.decision(self.rollup.history_at(number, level)));
        if fresh == lanes.decision {
            return;
        }
        out.decisions.extend(lanes.decision.map(|d| (d, -1)));
        out.decisions.extend(fresh.map(|d| (d, 1)));
        lanes.decision = fresh;
    }
}

/// The timeframe that recommendations about a symbol rest on, by its place.
fn decisive(live: &LiveConfig, rollup: &Rollup, symbol: Symbol) -> Option<usize> {
    let timeframe = live.instruments().get(symbol).decision_timeframe;
    rollup.timeframes().iter().position(|t| *t == timeframe)
}

/// The bars that changed, as rows.
fn give_bars(change: &LevelChange, history: &History, out: &mut ScanOutput) {
    let LevelChange { symbol, timeframe, scale, closed, .. } = *change;
    let first = match &change.how {
        How::Tail { first } => *first,
        How::Rewritten(changes) => {
            for change in changes {
                for (row, diff) in [(change.old_row(), -1), (change.new_row(), 1)] {
                    out.deltas.extend(row.map(|bar| Delta { output: Output::Bar(bar), diff }));
                }
            }
            return;
        }
    };
    let bar = |i: usize| {
        let (open_time, body) = (history.open_times()[i], history.body(i));
        Bar { symbol, timeframe, open_time, body, scale, closed: i < closed.1 }
    };
    for i in (closed.0..closed.1.min(first)).chain(first..history.len()) {
        out.rows.bars.push(bar(i));
    }
}

/// The closed bars that changed in another way than by being appended to those that were closed.
fn closed_edits(change: &LevelChange) -> Vec<Edit> {
    let How::Rewritten(changes) = &change.how else { return Vec::new() };
    let closed = |side: Option<(_, bool)>| side.filter(|(_, closed)| *closed).map(|(body, _)| body);
    let edits =
        changes.iter().map(|c: &BarChange| Edit { open_time: c.open_time, old: closed(c.old), new: closed(c.new) });
    edits.filter(|e| e.old != e.new).collect()
}

/// The streams that leave a scan.
pub struct ScanStreams<'scope> {
    /// Rows that stand now.
    pub rows: EpochStream<'scope, Rows>,
    /// Rows of bars, indicators, trades and metrics.
    pub deltas: EpochStream<'scope, Delta>,
    /// What strategies say, on the worker that ran them.
    pub contributions: EpochStream<'scope, (Contribution, i64)>,
    /// What they say it about, on the worker that owns the symbol.
    pub decisions: EpochStream<'scope, (DecisionBar, i64)>,
    /// Bytes that the kernel of this worker holds, as of the last epoch that asked for metrics.
    pub bytes: Rc<Cell<usize>>,
}

/// Wires the scan. `bars` are those of this worker's symbols, `routed` those of others that it needs ([`crate::route`]).
pub fn scan<'scope>(
    clock: Clock<'scope>,
    bars: EpochStream<'scope, Arc<Vec<BarUpsert>>>,
    routed: Option<EpochStream<'scope, Routed>>,
    kernel: Rc<RefCell<Scan>>,
) -> ScanStreams<'scope> {
    let mut operator = EpochOperator::new("scan", clock);
    let bars = operator.input(bars);
    let routed = routed.map(|routed| operator.routed(routed, |(worker, _)| *worker));
    let (rows_out, rows) = operator.output();
    let (deltas_out, deltas) = operator.output();
    let (contributions_out, contributions) = operator.output();
    let (decisions_out, decisions) = operator.output();
    let bytes = Rc::new(Cell::new(0));
    let held = Rc::clone(&bytes);
    operator.build(move |_, feed| {
        let mut kernel = kernel.borrow_mut();
        let (own, others) = (bars.take(), routed.as_ref().map(|routed| routed.take()).unwrap_or_default());
        let (progress, config, metrics) = (Some(feed.progress), &feed.config, feed.metrics);
        let out = match (own.as_slice(), others.as_slice()) {
            ([own], []) => kernel.epoch(own.iter(), progress, config, metrics),
            (own, others) => {
                let others = others.iter().map(|(_, bars)| bars);
                let all = own.iter().map(Arc::as_ref).chain(others).flatten();
                kernel.epoch(all.collect::<Vec<_>>(), progress, config, metrics)
            }
        };
        if feed.metrics {
            held.set(kernel.bytes());
        }
        if !out.rows.is_empty() {
            rows_out.give(out.rows);
        }
        deltas_out.give_vec(out.deltas);
        contributions_out.give_vec(out.contributions);
        decisions_out.give_vec(out.decisions);
    });
    ScanStreams { rows, deltas, contributions, decisions, bytes }
}
