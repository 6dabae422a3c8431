//! The latest state in memory, for the feed: what REST answers with, bounded.
//!
//! ```text
//!  committed epochs ──► View ──► bars (the last 300 a symbol × timeframe), metrics
//!  audit entries    ───►    └──► recommendations, verdicts (JSON, with the seq of their last change)
//! ```
//!
//! 1. Only committed epochs enter, in order: a reader never sees what a crash could undo.
//! 2. Bounded: older bars leave as newer ones come; one entry a key elsewhere.
//! 3. A reader takes the lock for as long as it copies; nobody awaits under it.

use crate::store::{AuditEntry, AuditKey, Committed};
use marea_model::num::SCALE;
use marea_model::output::{Change, ClosedEpoch, MetricsWindow, Totals};
use marea_model::time::{DAY, now_ms};
use marea_model::{AccountId, Bar, Decimal, Epoch, MetricsRow, Nanos, Output, StrategyId, Symbol, Timeframe};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bars kept of a symbol × timeframe.
pub const BARS: usize = 300;
/// Bars whose changes the stream still has to send; more, and only each series' last bar is sent.
const MAX_FRESH: usize = 1_000;
/// The tick rate is a mean over this.
const RATE_OVER: Duration = Duration::from_secs(5);
/// No heartbeat for this long after the last commit means block.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// Milliseconds since 1970.
pub(crate) fn millis(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Which clock epochs follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// The wall clock: live.
    Wall,
    /// The greatest event time so far: replay.
    Event,
}

/// How the pipeline is doing.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Of the store.
    pub generation: u64,
    /// The last committed epoch; none before the first commit.
    pub epoch: Option<Epoch>,
    /// The last seq of the audit.
    pub last_seq: u64,
    /// The pipeline's clock, in milliseconds since 1970; none before the first commit.
    pub now_ms: Option<i64>,
    /// Which clock that is.
    pub clock: Clock,
    /// Records committed a second, over the last five.
    pub tick_rate: f64,
    /// How far the last commit is behind: its clock behind the wall clock, or with the event clock its age.
    pub lag_seconds: Option<f64>,
    /// Counts of all epochs.
    pub totals: Totals,
    /// Whether `in = accepted + duplicate + dead + held`.
    pub balanced: bool,
    /// When the feed began, in milliseconds since 1970: another one is another process.
    pub started_ms: u64,
    /// Since then.
    pub uptime_seconds: f64,
    /// Symbols seen.
    pub symbols: usize,
    /// Records before this event time are late, in nanoseconds since 1970; none at the beginning.
    pub sealed_through: Option<Nanos>,
}

/// A symbol at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct Glance {
    /// The instrument.
    pub symbol: Symbol,
    /// Close of the last bar of the shortest timeframe.
    pub price: Option<Decimal>,
    /// Open time of that bar.
    #[serde(with = "marea_model::time::rfc3339_option")]
    pub bar_open_time: Option<Nanos>,
    /// The price a day ago, or the oldest one known.
    pub reference: Option<Decimal>,
    /// When that was.
    #[serde(with = "marea_model::time::rfc3339_option")]
    pub reference_time: Option<Nanos>,
    /// price ÷ reference − 1.
    pub change: Option<f64>,
    /// Digits after the point of its bars' prices.
    pub scale: Option<u8>,
    /// Timeframes that have bars, shortest first.
    pub timeframes: Vec<Timeframe>,
}

/// A bar as it reads on the wire.
#[derive(Clone, Debug, Serialize)]
pub struct BarRow {
    /// The instrument.
    pub symbol: Symbol,
    /// Its length.
    pub timeframe: Timeframe,
    /// Its first instant.
    #[serde(with = "marea_model::time::rfc3339")]
    pub open_time: Nanos,
    /// First price.
    pub open: Decimal,
    /// Highest price.
    pub high: Decimal,
    /// Lowest price.
    pub low: Decimal,
    /// Last price.
    pub close: Decimal,
    /// Units traded.
    pub volume: f64,
    /// Volume-weighted average price; null without volume.
    pub vwap: Option<f64>,
    /// Trades, or quotes.
    pub count: u64,
    /// Whether its time is over and every partition is past it.
    pub closed: bool,
}

impl From<&Bar> for BarRow {
    fn from(bar: &Bar) -> Self {
        let body = &bar.body;
        BarRow {
            symbol: bar.symbol,
            timeframe: bar.timeframe,
            open_time: bar.open_time,
            open: bar.price(body.open),
            high: bar.price(body.high),
            low: bar.price(body.low),
            close: bar.price(body.close),
            volume: marea_model::num::fixed_to_f64(body.volume, SCALE),
            vwap: bar.vwap(),
            count: body.count,
            closed: bar.closed,
        }
    }
}

/// What changed among bars since the stream was last asked.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FreshBars {
    /// Bars that stand.
    pub bars: Vec<BarRow>,
    /// Bars that no longer stand: symbol, timeframe, open time in RFC 3339.
    pub deleted: Vec<(Symbol, Timeframe, String)>,
}

/// Closed bars that changed after they had closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Corrections {
    /// Of the shortest timeframe of their symbol.
    pub base: u64,
    /// Of the others.
    pub rolled_up: u64,
}

/// The last bars of a symbol × timeframe: every one that opens after `left`.
#[derive(Debug, Default)]
struct Series {
    bars: VecDeque<Bar>,
    /// Open time of the newest bar that there was no room for: only the store has it and those before it. Not the
    /// length tells whether there are such, for busts shorten the series.
    left: Option<Nanos>,
}

#[derive(Debug)]
struct State {
    bars: BTreeMap<(Symbol, Timeframe), Series>,
    recommendations: BTreeMap<Symbol, AuditEntry>,
    verdicts: BTreeMap<(AccountId, Symbol), AuditEntry>,
    metrics: BTreeMap<Symbol, BTreeMap<(StrategyId, Timeframe, MetricsWindow), MetricsRow>>,
    /// Every symbol seen, by its text: names that come over the network are never interned.
    symbols: BTreeMap<&'static str, Symbol>,
    accounts: BTreeMap<&'static str, AccountId>,
    fresh: BTreeSet<(Symbol, Timeframe, Nanos)>,
    generation: u64,
    epoch: Option<Epoch>,
    last_seq: u64,
    totals: Totals,
    sealed_through: Option<Nanos>,
    committed: Option<(Instant, SystemTime)>,
    /// (when, records since the pipeline began), at most ten a second.
    rate: VecDeque<(Instant, i64)>,
}

/// The latest state, shared by the committer, which writes it, and requests, which read it.
#[derive(Debug)]
pub struct View {
    clock: Clock,
    started: (Instant, SystemTime),
    state: RwLock<State>,
}

impl View {
    /// An empty view.
    pub fn new(clock: Clock) -> Self {
        let state = State {
            bars: BTreeMap::new(),
            recommendations: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            metrics: BTreeMap::new(),
            symbols: BTreeMap::new(),
            accounts: BTreeMap::new(),
            fresh: BTreeSet::new(),
            generation: 0,
            epoch: None,
            last_seq: 0,
            totals: Totals::default(),
            sealed_through: None,
            committed: None,
            rate: VecDeque::new(),
        };
        View { clock, started: (Instant::now(), SystemTime::now()), state: RwLock::new(state) }
    }

    /// Takes epochs in that were committed just now, and says what they corrected.
    pub fn apply(&self, epochs: &[ClosedEpoch], committed: &Committed) -> Corrections {
        let corrections = self.recompute(epochs, committed);
        self.state.write().unwrap_or_else(PoisonError::into_inner).committed =
            Some((Instant::now(), SystemTime::now()));
        corrections
    }

    /// Takes what was committed before the start in, as it was computed once more, and says what it corrected. It is no
    /// commit: nobody learns from it that anything is current.
    pub fn recompute(&self, epochs: &[ClosedEpoch], committed: &Committed) -> Corrections {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut corrections = Corrections::default();
        for closed in epochs {
            closed.rows.bars.iter().for_each(|bar| state.bar(bar, &mut corrections));
            for change in &closed.changes {
                state.change(change, &mut corrections);
            }
            state.epoch = Some(closed.epoch);
            state.sealed_through = Some(closed.progress.sealed_through).filter(|time| *time != Nanos::MIN);
        }
        for entry in &committed.audit {
            state.audit(entry);
        }
        state.generation = committed.generation;
        state.last_seq = committed.last_seq;
        state.totals = committed.totals;
        let now = Instant::now();
        let records = committed.totals.records_in;
        match state.rate.back() {
            Some((last, _)) if now.duration_since(*last) < Duration::from_millis(100) => {}
            _ => state.rate.push_back((now, records)),
        }
        while state.rate.len() > 1 && now.duration_since(state.rate[1].0) > RATE_OVER {
            state.rate.pop_front();
        }
        corrections
    }

    /// Takes the metrics of epochs in that [`apply`](View::apply) has taken in. They are many, so that verdicts go first.
    pub fn follow(&self, epochs: &[ClosedEpoch]) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for closed in epochs {
            closed.rows.metrics.iter().for_each(|row| state.metrics(row));
            for change in &closed.changes {
                match change {
                    Change::Upsert(Output::Metrics(row)) => state.metrics(row),
                    Change::Delete(Output::Metrics(row)) => {
                        if let Some(rows) = state.metrics.get_mut(&row.symbol) {
                            rows.remove(&(row.strategy, row.timeframe, row.window));
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// Takes recommendations and verdicts in that stood before the start.
    pub fn restore(&self, standing: &[AuditEntry]) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        standing.iter().for_each(|entry| state.audit(entry));
    }

    /// Which clock epochs follow.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the pipeline is doing, now.
    pub fn status(&self) -> Status {
        let state = self.read();
        let lag = state.committed.map(|(at, _)| match (self.clock, state.epoch) {
            (Clock::Wall, Some(epoch)) => (millis(SystemTime::now()) as f64 - now_ms(epoch) as f64).max(0.0) / 1000.0,
            _ => at.elapsed().as_secs_f64(),
        });
        Status {
            generation: state.generation,
            epoch: state.epoch,
            last_seq: state.last_seq,
            now_ms: state.epoch.map(now_ms),
            clock: self.clock,
            tick_rate: state.tick_rate(Instant::now()),
            lag_seconds: lag,
            totals: state.totals,
            balanced: state.totals.balanced(),
            started_ms: self.started_ms(),
            uptime_seconds: self.started.0.elapsed().as_secs_f64(),
            symbols: state.symbols.len(),
            sealed_through: state.sealed_through,
        }
    }

    /// When the feed began, in milliseconds since 1970.
    pub(crate) fn started_ms(&self) -> u64 {
        millis(self.started.1)
    }

    /// When the last commit was, and up to which epoch. None before the first.
    pub(crate) fn last_commit(&self) -> Option<(SystemTime, Epoch)> {
        let state = self.read();
        Some((state.committed?.1, state.epoch?))
    }

    /// How long ago the last commit was. None before the first of this process.
    pub fn commit_age(&self) -> Option<Duration> {
        self.read().committed.map(|(at, _)| at.elapsed())
    }

    /// The symbol that `text` names, lower case or upper, if it was ever seen.
    pub fn symbol(&self, text: &str) -> Option<Symbol> {
        self.read().symbols.get(text.to_ascii_uppercase().as_str()).copied()
    }

    /// The account that `text` names, if it has ever had a verdict.
    pub fn account(&self, text: &str) -> Option<AccountId> {
        self.read().accounts.get(text).copied()
    }

    /// Every symbol at a glance, by name.
    pub fn glances(&self) -> Vec<Glance> {
        let state = self.read();
        state.symbols.values().map(|symbol| state.glance(*symbol)).collect()
    }

    /// Recommendations that stand, by symbol.
    pub fn recommendations(&self) -> Vec<AuditEntry> {
        self.read().recommendations.values().cloned().collect()
    }

    /// The recommendation of a symbol.
    pub fn recommendation(&self, symbol: Symbol) -> Option<AuditEntry> {
        self.read().recommendations.get(&symbol).cloned()
    }

    /// Verdicts that stand, by account and symbol.
    pub fn verdicts(&self, account: Option<AccountId>, symbol: Option<Symbol>) -> Vec<AuditEntry> {
        let state = self.read();
        let asked = state.verdicts.iter().filter(|((a, s), _)| {
            account.is_none_or(|account| account == *a) && symbol.is_none_or(|symbol| symbol == *s)
        });
        asked.map(|(_, entry)| entry.clone()).collect()
    }

    /// The last `limit` bars that are kept, and whether older ones may exist.
    pub fn bars(&self, symbol: Symbol, timeframe: Timeframe, limit: usize) -> (Vec<Bar>, bool) {
        let state = self.read();
        let Some(series) = state.bars.get(&(symbol, timeframe)) else { return (Vec::new(), false) };
        let bars = series.bars.iter().skip(series.bars.len().saturating_sub(limit)).copied().collect();
        (bars, series.left.is_some())
    }

    /// The verdict on an account and a symbol.
    pub fn verdict(&self, account: AccountId, symbol: Symbol) -> Option<AuditEntry> {
        self.read().verdicts.get(&(account, symbol)).cloned()
    }

    /// Timeframes that have bars of a symbol, shortest first.
    pub fn timeframes(&self, symbol: Symbol) -> Vec<Timeframe> {
        self.read().timeframes(symbol)
    }

    /// Backtest metrics of a symbol, by strategy, timeframe and window.
    pub fn metrics(&self, symbol: Symbol) -> Vec<MetricsRow> {
        self.read().metrics.get(&symbol).map(|rows| rows.values().copied().collect()).unwrap_or_default()
    }

    /// Every symbol × timeframe that has bars, every symbol and every strategy that have metrics.
    pub(crate) fn series(&self) -> (Vec<(Symbol, Timeframe)>, BTreeSet<Symbol>, BTreeSet<StrategyId>) {
        let state = self.read();
        let strategies = state.metrics.values().flat_map(|rows| rows.keys().map(|(strategy, ..)| *strategy)).collect();
        let bars = state.bars.iter().filter(|(_, series)| !series.bars.is_empty()).map(|(key, _)| *key).collect();
        (bars, state.metrics.keys().copied().collect(), strategies)
    }

    /// Backtest metrics of these strategies, by symbol, strategy, timeframe and window.
    pub(crate) fn metrics_of(&self, strategies: &BTreeSet<StrategyId>) -> Vec<MetricsRow> {
        let state = self.read();
        let rows = state.metrics.values().flat_map(BTreeMap::values);
        rows.filter(|row| strategies.contains(&row.strategy)).copied().collect()
    }

    /// The bars that changed since this was last asked, in key order.
    pub fn fresh_bars(&self) -> FreshBars {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let fresh = std::mem::take(&mut state.fresh);
        let mut out = FreshBars::default();
        if fresh.len() > MAX_FRESH {
            let series: BTreeSet<(Symbol, Timeframe)> = fresh.iter().map(|(s, t, _)| (*s, *t)).collect();
            let last = series.iter().filter_map(|key| state.bars.get(key)?.bars.back());
            out.bars = last.map(BarRow::from).collect();
            return out;
        }
        for (symbol, timeframe, open_time) in fresh {
            let Some(Series { bars, .. }) = state.bars.get(&(symbol, timeframe)) else { continue };
            match bars.binary_search_by_key(&open_time, |bar| bar.open_time) {
                Ok(at) => out.bars.push(BarRow::from(&bars[at])),
                Err(_) => out.deleted.push((symbol, timeframe, marea_model::time::format_rfc3339(open_time))),
            }
        }
        out
    }
}

impl State {
    fn bar(&mut self, bar: &Bar, corrections: &mut Corrections) {
        self.symbols.insert(bar.symbol.as_str(), bar.symbol);
        let shortest = self.timeframes(bar.symbol).first().is_none_or(|first| *first >= bar.timeframe);
        let Series { bars, left } = self.bars.entry((bar.symbol, bar.timeframe)).or_default();
        // Bars between it and those that are kept have left: it would stand before a hole.
        if left.is_some_and(|left| bar.open_time <= left) {
            return;
        }
        match bars.binary_search_by_key(&bar.open_time, |b| b.open_time) {
            Ok(at) => {
                if bars[at].closed && bars[at].body != bar.body {
                    *if shortest { &mut corrections.base } else { &mut corrections.rolled_up } += 1;
                }
                bars[at] = *bar;
            }
            // Older than all that is kept: it would leave again at once.
            Err(0) if bars.len() >= BARS => {
                *left = Some(bar.open_time);
                return;
            }
            Err(at) => bars.insert(at, *bar),
        }
        if bars.len() > BARS {
            *left = bars.pop_front().map(|bar| bar.open_time);
        }
        self.fresh.insert((bar.symbol, bar.timeframe, bar.open_time));
    }

    fn metrics(&mut self, row: &MetricsRow) {
        self.symbols.insert(row.symbol.as_str(), row.symbol);
        self.metrics.entry(row.symbol).or_default().insert((row.strategy, row.timeframe, row.window), *row);
    }

    fn change(&mut self, change: &Change, corrections: &mut Corrections) {
        match change {
            Change::Upsert(Output::Bar(bar)) => self.bar(bar, corrections),
            Change::Delete(Output::Bar(bar)) => {
                let Some(Series { bars, .. }) = self.bars.get_mut(&(bar.symbol, bar.timeframe)) else { return };
                if let Ok(at) = bars.binary_search_by_key(&bar.open_time, |b| b.open_time) {
                    bars.remove(at);
                    self.fresh.insert((bar.symbol, bar.timeframe, bar.open_time));
                }
            }
            // Metrics follow; recommendations and verdicts come with their seq, from the audit; the rest stays in the store.
            Change::Upsert(_) | Change::Delete(_) => {}
        }
    }

    fn audit(&mut self, entry: &AuditEntry) {
        let standing = entry.payload.is_some().then(|| entry.clone());
        match entry.key {
            AuditKey::Recommendation(symbol) => {
                self.symbols.insert(symbol.as_str(), symbol);
                match standing {
                    Some(standing) => self.recommendations.insert(symbol, standing),
                    None => self.recommendations.remove(&symbol),
                };
            }
            AuditKey::Verdict(account, symbol) => {
                self.symbols.insert(symbol.as_str(), symbol);
                self.accounts.insert(account.as_str(), account);
                match standing {
                    Some(standing) => self.verdicts.insert((account, symbol), standing),
                    None => self.verdicts.remove(&(account, symbol)),
                };
            }
        }
    }

    fn tick_rate(&self, now: Instant) -> f64 {
        // The last point that is old enough, else the first: a pipeline that stops falls to 0 within the window.
        let base = self.rate.iter().rev().find(|(at, _)| now.duration_since(*at) >= RATE_OVER).or(self.rate.front());
        let Some((at, records)) = base else { return 0.0 };
        let over = now.duration_since(*at).max(Duration::from_millis(500));
        (self.totals.records_in - records) as f64 / over.as_secs_f64()
    }

    fn timeframes(&self, symbol: Symbol) -> Vec<Timeframe> {
        let series = self.series(symbol);
        series.filter(|(_, bars)| !bars.is_empty()).map(|((_, timeframe), _)| *timeframe).collect()
    }

    /// The series of a symbol, shortest first.
    fn series(&self, symbol: Symbol) -> impl DoubleEndedIterator<Item = (&(Symbol, Timeframe), &VecDeque<Bar>)> {
        let shortest = Timeframe::new(1).expect("a nanosecond divides a day");
        let longest = Timeframe::new(DAY).expect("a day divides a day");
        self.bars.range((symbol, shortest)..=(symbol, longest)).map(|(key, series)| (key, &series.bars))
    }

    fn glance(&self, symbol: Symbol) -> Glance {
        let last = self.series(symbol).find_map(|(_, bars)| bars.back());
        // The longest bars reach furthest back.
        let first = last.and_then(|last| {
            let day_before = last.open_time - DAY;
            self.series(symbol).rev().find_map(|(_, bars)| bars.iter().find(|bar| bar.open_time >= day_before))
        });
        let price = last.map(|bar| bar.price(bar.body.close));
        let reference = first.map(|bar| bar.price(bar.body.open));
        let change = price.zip(reference).and_then(|(price, reference)| {
            let change = price.to_f64() / reference.to_f64() - 1.0;
            change.is_finite().then_some(change)
        });
        Glance {
            symbol,
            price,
            bar_open_time: last.map(|bar| bar.open_time),
            reference,
            reference_time: first.map(|bar| bar.open_time),
            change,
            scale: last.map(|bar| bar.scale),
            timeframes: self.timeframes(symbol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{OPEN, bar, closed, metrics, symbol, up};
    use crate::store::Ledger;
    use marea_model::Rows;
    use marea_model::time::SECOND;
    use std::sync::Arc;

    fn minute(i: i64) -> Output {
        Output::Bar(bar("IBM", Timeframe::M1, OPEN + i * 60 * SECOND, [100 + i; 4], 2))
    }

    /// Minutes of the bars that are kept, first and last and how many; whether older ones may exist.
    fn kept(view: &View) -> (Option<(i64, i64)>, usize, bool) {
        let (bars, more) = view.bars(symbol("IBM"), Timeframe::M1, BARS);
        let minutes: Vec<i64> = bars.iter().map(|bar| (bar.open_time - OPEN) / (60 * SECOND)).collect();
        (minutes.first().copied().zip(minutes.last().copied()), minutes.len(), more)
    }

    #[test]
    fn bars_that_left_stay_away() {
        let full = BARS as i64;
        let view = View::new(Clock::Event);
        let mut ledger = Ledger::new(1);
        let mut epoch = 0;
        let mut apply = |changes: Vec<Change>| {
            epoch += 1;
            let epochs = [closed(epoch, changes)];
            view.apply(&epochs, &ledger.commit(&epochs).unwrap());
            kept(&view)
        };
        assert_eq!(apply((0..full).map(|i| up(minute(i))).collect()), (Some((0, 299)), 300, false), "full, and all");
        assert_eq!(apply(vec![up(minute(full))]), (Some((1, 300)), 300, true), "minute 0 left");
        assert_eq!(apply(vec![Change::Delete(minute(7))]), (Some((1, 300)), 299, true), "busted: 0 is in the store");
        assert_eq!(apply(vec![up(minute(0))]), (Some((1, 300)), 299, true), "late: it has left");
        assert_eq!(apply(vec![up(minute(-5))]), (Some((1, 300)), 299, true));
        assert_eq!(apply(vec![Change::Delete(minute(1))]), (Some((2, 300)), 298, true));
        assert_eq!(apply(vec![up(minute(1)), up(minute(7))]), (Some((1, 300)), 300, true), "these had not");
        assert_eq!(apply((0..=full).map(|i| Change::Delete(minute(i))).collect()), (None, 0, true));
        assert_eq!(apply(vec![up(minute(301))]), (Some((301, 301)), 1, true), "an empty series goes on");
    }

    #[test]
    fn a_bar_that_never_had_room_counts_as_left() {
        let view = View::new(Clock::Event);
        let bars = (1..=BARS as i64).map(|i| up(minute(i))).chain([up(minute(0)), Change::Delete(minute(7))]);
        let epochs = [closed(1, bars.collect())];
        view.apply(&epochs, &Ledger::new(1).commit(&epochs).unwrap());
        assert_eq!(kept(&view), (Some((1, 300)), 299, true));
    }

    #[test]
    fn metrics_follow_in_the_order_of_their_epochs() {
        let view = View::new(Clock::Event);
        let row = |sharpe| metrics("IBM", "a", MetricsWindow::All, Some(sharpe));
        let table = |epoch, sharpe| {
            let rows = Rows { metrics: vec![row(sharpe)], ..Rows::default() };
            ClosedEpoch { rows: Arc::new(rows), ..closed(epoch, vec![]) }
        };
        let mut ledger = Ledger::new(1);
        let mut apply = |epochs: &[ClosedEpoch]| {
            view.apply(epochs, &ledger.commit(epochs).unwrap());
            view.follow(epochs);
            view.metrics(symbol("IBM"))
        };
        let edited = closed(2, vec![up(Output::Metrics(Box::new(row(0.5))))]);
        assert_eq!(apply(&[table(1, 0.25), edited]), [row(0.5)]);
        let gone = closed(4, vec![Change::Delete(Output::Metrics(Box::new(row(0.75))))]);
        assert_eq!(apply(&[table(3, 0.75), gone]), []);
    }
}
