//! What is right: a plain, non-incremental reading of the design's meaning, loops over sorted vectors.
//!
//! Given every record that arrived, the configuration as it stands, how far the input has come and what time it is,
//! [`state`] computes every row of every state table from nothing. It shares the model's types with the dataflow, and
//! the step kernels of indicators and backtests (which golden vectors check), since floats are compared as bits. All
//! the rest (identity, busts, corrections, amends, roll-ups, closing, votes, verdicts) is written here a second time.

use marea_model::bar::BarBody;
use marea_model::instrument::InstrumentSpec;
use marea_model::num::{SCALE, fixed_to_f64, pow10};
use marea_model::output::{Key, MetricsWindow};
use marea_model::recommendation::{Action, Contribution, DecisionBar, Explanation, Status, Text, Vote, reason_names};
use marea_model::strategy::{ATR_PERIOD, Strategy, parse_strategy};
use marea_model::tick::{Amend, Event, Tick};
use marea_model::time::{DAY, Nanos, SECOND, Timeframe, parse_rfc3339};
use marea_model::verdict::{BlockReason, Intent};
use marea_model::{
    AccountId, AccountSnapshot, Amount, Bar, Decimal, F64, IndicatorRow, Instrument, Instruments, MetricsRow, Output,
    Price, PriceSource, Progress, Recommendation, StrategyId, Symbol, Verdict,
};
use marea_operators::backtest::{Backtest, Params, Recorded, metrics_30d, metrics_all};
use marea_operators::indicators::IndicatorSpec;
use marea_operators::series::{Series, SeriesBar};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What does not change while the program runs.
#[derive(Clone)]
pub(crate) struct World {
    /// The base timeframe first.
    pub(crate) timeframes: Vec<Timeframe>,
    /// The indicators of each timeframe.
    pub(crate) indicators: Vec<(Timeframe, Vec<IndicatorSpec>)>,
    /// As configured at the start.
    pub(crate) instruments: Arc<Instruments>,
    /// How late a record may be.
    pub(crate) lateness: Nanos,
}

/// Everything that has happened.
#[derive(Clone)]
pub(crate) struct Facts {
    /// Every record that was not late, in any order, duplicates included.
    pub(crate) ticks: Vec<Tick>,
    /// Every snapshot, in any order.
    pub(crate) accounts: Vec<AccountSnapshot>,
    /// The live configuration as it stands.
    pub(crate) config: BTreeMap<String, String>,
    /// Whether its source has stopped answering.
    pub(crate) stale: bool,
    /// How far the input has come.
    pub(crate) progress: Progress,
    /// The clock.
    pub(crate) now: Nanos,
}

/// The rows of the state tables by key.
pub(crate) type State = BTreeMap<Key, Output>;

/// Every row that stands.
pub(crate) fn state(world: &World, facts: &Facts) -> State {
    let tape = Tape::read(facts, world.timeframes[0]);
    let settings = Settings::read(world, facts);
    let mut rows: Vec<Output> = Vec::new();
    let mut recommendations: BTreeMap<Symbol, Recommendation> = BTreeMap::new();
    for &symbol in &tape.symbols {
        let instrument = settings.instruments.get(&symbol).unwrap_or(&world.instruments.default);
        let scale = instrument.bar_scale();
        let base = tape.base_bars(symbol, instrument, world.timeframes[0], facts.progress.sealed_through);
        let mut contributions = Vec::new();
        let mut decision = None;
        for &timeframe in &world.timeframes {
            let bars: Vec<Bar> = roll_up(&base, timeframe)
                .into_iter()
                .map(|(open_time, body)| {
                    let closed = open_time + timeframe.nanos() <= facts.progress.closed_through;
                    Bar { symbol, timeframe, open_time, body, scale, closed }
                })
                .collect();
            rows.extend(bars.iter().copied().map(Output::Bar));
            // A later bar is never closed before an earlier one: their close times ascend.
            let series = series_of(bars.iter().filter(|b| b.closed));
            indicator_rows(world, symbol, timeframe, &series, &mut rows);
            for strategy in settings.strategies.values() {
                if strategy.timeframe == timeframe && strategy.symbols.contains(symbol) {
                    let contribution = backtest_rows(strategy, symbol, &series, &mut rows);
                    contributions.extend(contribution.filter(|_| timeframe == instrument.decision_timeframe));
                }
            }
            if timeframe == instrument.decision_timeframe {
                decision = decision_bar(&bars, &series);
            }
        }
        if let Some(bar) = decision {
            recommendations.insert(symbol, recommend(&bar, &contributions, instrument, facts.now));
        }
    }
    let mut instruments = settings.instruments.clone();
    for &symbol in &tape.symbols {
        instruments.entry(symbol).or_insert(world.instruments.default);
    }
    let snapshots = Snapshots::read(facts);
    for (&account, &master) in &settings.accounts {
        for (&symbol, instrument) in &instruments {
            let case = Case {
                account,
                master,
                symbol,
                instrument,
                recommendation: recommendations.get(&symbol),
                quote: tape.quotes.get(&symbol).copied(),
                snapshot: snapshots.latest.get(&account).copied(),
                peak: snapshots.peak.get(&account).copied(),
                facts,
            };
            rows.push(Output::Verdict(Arc::new(case.verdict())));
        }
    }
    rows.extend(recommendations.into_values().map(|r| Output::Recommendation(Arc::new(r))));
    let count = rows.len();
    let state: State = rows.into_iter().map(|row| (row.key(), row)).collect();
    assert_eq!(state.len(), count, "the oracle made two rows for one key");
    state
}

/// Counts of records that were not late: `arrived = accepted + duplicate + dead + held`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Trades, quotes, busts, corrections and amends that count.
    pub(crate) accepted: i64,
    /// Busts and corrections of quotes, and those whose target never came.
    pub(crate) dead: i64,
    /// What waits for its target, or for its bar to seal.
    pub(crate) held: i64,
}

/// Counts `facts`, which must hold no repeated record (whether the repeat of a dead one is dead or a duplicate is open).
pub(crate) fn count(facts: &Facts, base: Timeframe) -> Counted {
    let tape = Tape::read(facts, base);
    let mut counted = Counted { accepted: 0, dead: 0, held: 0 };
    let sealed = facts.progress.sealed_through;
    for tick in &facts.ticks {
        let target = tape.entries.get(&(tick.symbol, tick.event_time, tick.seq)).and_then(|e| e.original.as_ref());
        let place = match (&tick.event, target) {
            (Event::Trade { .. } | Event::Quote { .. }, _) => &mut counted.accepted,
            (Event::Amend(_), _) if tick.event_time + base.nanos() <= sealed => &mut counted.accepted,
            (Event::Amend(_), _) => &mut counted.held,
            (_, Some(Event::Trade { .. })) => &mut counted.accepted,
            (_, Some(_)) => &mut counted.dead,
            (_, None) if tick.event_time < sealed => &mut counted.dead,
            (_, None) => &mut counted.held,
        };
        *place += 1;
    }
    counted
}

// ---------------------------------------------------------------------------------------------------------------------
// Ticks and bars.

/// One identity: what was first said of it, and what was said later.
#[derive(Default)]
struct Entry {
    original: Option<Event>,
    busted: bool,
    corrections: BTreeSet<(u32, Price, marea_model::Size)>,
}

/// All records by identity.
struct Tape {
    entries: BTreeMap<(Symbol, Nanos, u64), Entry>,
    amends: BTreeMap<(Symbol, Nanos), Amend>,
    quotes: BTreeMap<Symbol, (Nanos, u64, Price, Price)>,
    symbols: BTreeSet<Symbol>,
}

impl Tape {
    fn read(facts: &Facts, base: Timeframe) -> Tape {
        let mut tape = Tape {
            entries: BTreeMap::new(),
            amends: BTreeMap::new(),
            quotes: BTreeMap::new(),
            symbols: BTreeSet::new(),
        };
        for tick in &facts.ticks {
            // A symbol is known by what is accepted: not by an amend of a bar that has not sealed, nor by an edit of nothing.
            let accepted = match &tick.event {
                Event::Trade { .. } | Event::Quote { .. } => true,
                Event::Amend(_) => tick.event_time + base.nanos() <= facts.progress.sealed_through,
                Event::Bust | Event::Correction { .. } => false,
            };
            if accepted {
                tape.symbols.insert(tick.symbol);
            }
            if let Event::Amend(amend) = &tick.event {
                let standing = tape.amends.entry((tick.symbol, tick.event_time)).or_insert_with(|| (**amend).clone());
                if **amend > *standing {
                    *standing = (**amend).clone();
                }
                continue;
            }
            let entry = tape.entries.entry((tick.symbol, tick.event_time, tick.seq)).or_default();
            match &tick.event {
                Event::Bust => entry.busted = true,
                Event::Correction { rev, price, size } => {
                    entry.corrections.insert((*rev, *price, *size));
                }
                original => entry.original = Some(original.clone()),
            }
        }
        for (&(symbol, event_time, seq), entry) in &tape.entries {
            if let Some(Event::Quote { bid, ask, .. }) = entry.original {
                // Ascending, so the last one stands.
                tape.quotes.insert(symbol, (event_time, seq, bid, ask));
            }
        }
        tape
    }

    fn base_bars(
        &self,
        symbol: Symbol,
        instrument: &Instrument,
        base: Timeframe,
        sealed: Nanos,
    ) -> BTreeMap<Nanos, BarBody> {
        let mut bars: BTreeMap<Nanos, BarBody> = BTreeMap::new();
        for (&(_, event_time, _), entry) in self.entries.range((symbol, Nanos::MIN, 0)..=(symbol, Nanos::MAX, u64::MAX))
        {
            let body = match (&entry.original, instrument.price_source) {
                (Some(Event::Trade { price, size }), PriceSource::Last) if !entry.busted => {
                    let last = entry.corrections.last().map_or((*price, *size), |&(_, price, size)| (price, size));
                    BarBody::first(last.0, last.1)
                }
                (Some(Event::Quote { bid, ask, .. }), PriceSource::Mid) => {
                    BarBody::first(Price((bid.0 + ask.0) * 5), marea_model::Size(0))
                }
                (Some(Event::Quote { bid, .. }), PriceSource::Bid) => BarBody::first(*bid, marea_model::Size(0)),
                _ => continue,
            };
            match bars.get_mut(&base.open_time(event_time)) {
                None => {
                    bars.insert(base.open_time(event_time), body);
                }
                Some(bar) => bar.append(&body).expect("histories keep their sums small"),
            }
        }
        for (&(_, open_time), amend) in self.amends.range((symbol, Nanos::MIN)..=(symbol, Nanos::MAX)) {
            if open_time + base.nanos() <= sealed {
                match amend.bar {
                    Some(body) => bars.insert(open_time, body),
                    None => bars.remove(&open_time),
                };
            }
        }
        bars
    }
}

fn roll_up(base: &BTreeMap<Nanos, BarBody>, timeframe: Timeframe) -> BTreeMap<Nanos, BarBody> {
    let mut bars: BTreeMap<Nanos, BarBody> = BTreeMap::new();
    for (&open_time, body) in base {
        match bars.get_mut(&timeframe.open_time(open_time)) {
            None => {
                bars.insert(timeframe.open_time(open_time), *body);
            }
            Some(bar) => bar.append(body).expect("histories keep their sums small"),
        }
    }
    bars
}

// ---------------------------------------------------------------------------------------------------------------------
// Folds over closed bars.

fn series_of<'a>(bars: impl Iterator<Item = &'a Bar>) -> Series {
    bars.map(|bar| {
        let price = |p: Price| p.to_f64(bar.scale);
        let b = &bar.body;
        SeriesBar {
            open_time: bar.open_time,
            open: price(b.open),
            high: price(b.high),
            low: price(b.low),
            close: price(b.close),
            volume: fixed_to_f64(b.volume, SCALE),
            turnover: fixed_to_f64(b.turnover, bar.scale + SCALE),
        }
    })
    .collect()
}

fn indicator_rows(world: &World, symbol: Symbol, timeframe: Timeframe, series: &Series, rows: &mut Vec<Output>) {
    for spec in world.indicators.iter().filter(|(t, _)| *t == timeframe).flat_map(|(_, specs)| specs) {
        let names = spec.outputs();
        let mut indicator = spec.build();
        for i in 0..series.len() {
            for (name, value) in names.iter().zip(indicator.step(series, i)) {
                if let Some(value) = value {
                    let (open_time, name, value) = (series.open_time[i], name.clone(), F64(value));
                    rows.push(Output::Indicator(IndicatorRow { symbol, timeframe, open_time, name, value }));
                }
            }
        }
    }
}

/// The rows of one backtest, and what it contributes; nothing before the first closed bar.
fn backtest_rows(strategy: &Strategy, symbol: Symbol, series: &Series, rows: &mut Vec<Output>) -> Option<Contribution> {
    let as_of = *series.open_time.last()?;
    let timeframe = strategy.timeframe;
    let params = Params::new(strategy);
    let mut backtest = Backtest::new(&params);
    let mut recorded = Recorded::default();
    for i in 0..series.len() {
        backtest.step(&params, series, i, &mut recorded);
    }
    rows.extend(recorded.trades.iter().map(|t| Output::Trade(t.row(strategy.id, symbol, timeframe))));
    let first_day = as_of.div_euclid(DAY) - 29;
    let window = recorded.days.iter().filter(|d| i64::from(d.day) >= first_day);
    let trailing = metrics_30d(window, backtest.day(), &params);
    for (window, metrics) in [(MetricsWindow::All, metrics_all(&backtest, &params)), (MetricsWindow::Days30, trailing)]
    {
        let row = MetricsRow { strategy: strategy.id, symbol, timeframe, window, as_of, metrics };
        rows.push(Output::Metrics(Box::new(row)));
    }
    Some(Contribution {
        symbol,
        strategy: strategy.id,
        timeframe,
        kind: strategy.kind,
        weight: strategy.weight,
        side: backtest.standing_side(),
        confidence: F64(backtest.confidence(&params)),
        trades: trailing.trades,
        trailing_return: trailing.total_return,
        sharpe: trailing.sharpe,
        win_rate: trailing.win_rate,
        values: backtest.values(&params, series, series.len() - 1).map(|v| v.map(F64)),
    })
}

/// The last closed bar and what came after it. What only its explanation needs is left out.
fn decision_bar(bars: &[Bar], closed: &Series) -> Option<DecisionBar> {
    let last = bars.iter().rev().find(|b| b.closed)?;
    let mut atr = IndicatorSpec::Atr { period: ATR_PERIOD }.build();
    let atr = (0..closed.len()).map(|i| atr.step(closed, i)[0]).last().flatten();
    let since = || bars.iter().filter(|b| b.open_time >= last.close_time());
    Some(DecisionBar {
        symbol: last.symbol,
        timeframe: last.timeframe,
        open_time: last.open_time,
        close: last.price(last.body.close),
        atr: atr.map(F64),
        volume_change: None,
        five_bar_move: None,
        high_since: since().map(|b| b.body.high).max().map(|p| last.price(p)),
        low_since: since().map(|b| b.body.low).min().map(|p| last.price(p)),
    })
}

// ---------------------------------------------------------------------------------------------------------------------
// Recommendations.

/// The price `by` away from `close` on the nearest tick, ties away from zero.
fn away(close: Decimal, by: f64, instrument: &Instrument) -> Decimal {
    let tick = instrument.tick_size.0 * pow10(close.scale - instrument.scale);
    let units = (close.to_f64() + by) * pow10(close.scale) as f64;
    Decimal { mantissa: (units / tick as f64).round() as i64 * tick, scale: close.scale }
}

fn track(c: &Contribution) -> (f64, bool) {
    if c.trades < 10 {
        return (1.0, true);
    }
    if c.trailing_return.is_none_or(|r| r.0 <= 0.0) {
        return (0.0, false);
    }
    let sharpe = c.sharpe.map_or(0.1, |s| (s.0 / 2.0).clamp(0.1, 1.0));
    (0.5 * sharpe + 0.5 * c.win_rate.map_or(0.0, |w| w.0), false)
}

/// `contributions` in order of their strategies' ids.
fn recommend(bar: &DecisionBar, contributions: &[Contribution], instrument: &Instrument, now: Nanos) -> Recommendation {
    let weight = |c: &Contribution| c.weight.0 * track(c).0;
    let voters: Vec<&Contribution> = contributions.iter().filter(|c| c.side != 0 && weight(c) > 0.0).collect();
    let total: f64 = voters.iter().map(|c| weight(c)).fold(0.0, |a, b| a + b);
    let lean = voters.iter().map(|c| weight(c) * f64::from(c.side) * c.confidence.0).fold(0.0, |a, b| a + b);
    let strength = if voters.is_empty() { 0.0 } else { lean / total };
    let side: i8 = if strength > 0.0 {
        1
    } else if strength < 0.0 {
        -1
    } else {
        0
    };
    let agreeing: Vec<&&Contribution> = voters.iter().filter(|c| side != 0 && c.side == side).collect();
    let share = agreeing.iter().map(|c| weight(c)).fold(0.0, |a, b| a + b);
    let consensus = if voters.is_empty() { 0.0 } else { share / total };
    let confidence = 100.0 * (0.6 * strength.abs() + 0.4 * consensus);
    let action = match (confidence, agreeing.len(), side) {
        // Nothing to stop at: nothing to do.
        _ if bar.atr.is_none() => Action::Hold,
        (c, 3.., 1) if c >= 85.0 => Action::StrongBuy,
        (c, 3.., -1) if c >= 85.0 => Action::StrongSell,
        (c, 2.., 1) if c >= 70.0 => Action::Buy,
        (c, 2.., -1) if c >= 70.0 => Action::Sell,
        _ => Action::Hold,
    };
    let mut bias = 0;
    if action == Action::Hold && confidence >= 50.0 {
        bias = side;
    }
    if side == 0 && voters.iter().any(|c| c.side > 0) && voters.iter().any(|c| c.side < 0) {
        let mut best = voters[0];
        for voter in &voters[1..] {
            if voter.trailing_return > best.trailing_return {
                best = voter;
            }
        }
        bias = best.side;
    }
    let directed = f64::from(action.side());
    let atr = bar.atr.filter(|_| action != Action::Hold).map(|a| a.0);
    let stop_loss = atr.map(|a| away(bar.close, directed * -2.0 * a, instrument));
    let take_profit = atr.map(|a| away(bar.close, directed * 3.0 * a, instrument));
    let touched = |level: Option<Decimal>, from: i8| {
        level.is_some_and(|level| match from {
            1 => bar.high_since.is_some_and(|high| high.mantissa >= level.mantissa),
            _ => bar.low_since.is_some_and(|low| low.mantissa <= level.mantissa),
        })
    };
    let expires_at = bar.close_time() + 3 * bar.timeframe.nanos();
    let status = if now >= expires_at {
        Status::Expired
    } else if touched(stop_loss, -action.side()) || touched(take_profit, action.side()) {
        Status::Invalidated
    } else {
        Status::Active
    };
    let vote = |c: &Contribution| {
        let named = reason_names(&c.kind).into_iter().zip(c.values);
        Vote {
            strategy: c.strategy,
            kind: c.kind,
            side: c.side,
            confidence: c.confidence,
            track: F64(track(c).0),
            unproven: track(c).1,
            weight: F64(weight(c)),
            trailing_return: c.trailing_return,
            values: named.filter_map(|(name, value)| Some((name?, value?))).collect(),
            reason: Text::default(),
        }
    };
    Recommendation {
        symbol: bar.symbol,
        timeframe: bar.timeframe,
        bar_open_time: bar.open_time,
        bar_close_time: bar.close_time(),
        action,
        bias,
        status,
        strength: F64(strength),
        consensus: F64(consensus),
        confidence: F64(confidence),
        agreeing: agreeing.len() as u32,
        close: bar.close,
        atr: bar.atr,
        entry_low: atr.map(|a| away(bar.close, -0.25 * a, instrument)),
        entry_high: atr.map(|a| away(bar.close, 0.25 * a, instrument)),
        stop_loss,
        take_profit,
        expires_at,
        votes: contributions.iter().map(vote).collect(),
        explanation: Explanation::default(),
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Live configuration.

/// The final tree, as far as it is not asked per account and symbol.
struct Settings {
    strategies: BTreeMap<StrategyId, Strategy>,
    /// Configured instruments: those of the start, and those added since.
    instruments: BTreeMap<Symbol, Instrument>,
    /// Whether each account is a master.
    accounts: BTreeMap<AccountId, bool>,
}

impl Settings {
    fn read(world: &World, facts: &Facts) -> Settings {
        let mut settings = Settings {
            strategies: BTreeMap::new(),
            instruments: world.instruments.by_symbol.clone(),
            accounts: BTreeMap::new(),
        };
        for (key, value) in &facts.config {
            if let Some(id) = key.strip_prefix("/marea/strategies/") {
                let id = StrategyId::new(id).expect("histories name strategies well");
                settings.strategies.extend(parse_strategy(id, value).ok().map(|s| (id, s)));
            }
            if let Some(name) = key.strip_prefix("/marea/instruments/") {
                let symbol = Symbol::new(&name.replace("%2F", "/")).expect("histories name symbols well");
                let spec = serde_json::from_str::<InstrumentSpec>(value).ok();
                let standing = *world.instruments.get(symbol);
                let edited = spec.and_then(|s| s.over(&world.instruments.default).ok());
                if let Some(edited) = edited.filter(|e| e.same_data(&standing)) {
                    settings.instruments.insert(symbol, edited);
                }
            }
        }
        for (key, master) in [("slave_accounts", false), ("master_accounts", true)] {
            let list = facts.config.get(&format!("/echo/core/{key}")).map_or("", String::as_str);
            for name in list.split(',').filter(|n| !n.is_empty()) {
                settings.accounts.insert(AccountId::new(name).expect("histories name accounts well"), master);
            }
        }
        settings
    }
}

/// The policy of one account, as far as its keys can be read.
#[derive(Default)]
struct PolicyRead {
    any_key: bool,
    bad: bool,
    disabled: bool,
    max_spread: Option<i128>,
    max_slippage: Option<i128>,
    max_delay_ms: Option<i64>,
    max_quote_age_ms: Option<i64>,
    keep_targets: bool,
    risk_percent: Option<i128>,
    risk_fixed: Option<i128>,
    max_drawdown_pct: Option<i128>,
    sl_offset: i128,
    tp_offset: i128,
    catastrophic_sl: Option<i128>,
    allow_short: bool,
}

impl PolicyRead {
    fn read(config: &BTreeMap<String, String>, account: AccountId) -> PolicyRead {
        let mut policy = PolicyRead { keep_targets: true, ..PolicyRead::default() };
        let find = |name: &str| {
            config
                .get(&format!("/echo/policy/{account}/{name}"))
                .or_else(|| config.get(&format!("/echo/policy/*/{name}")))
        };
        let mut bad = false;
        let mut amount = |name: &str| {
            let value = find(name)?.parse::<Amount>().ok().filter(|a| a.0 >= 0);
            bad |= value.is_none();
            value.map(|a| i128::from(a.0))
        };
        policy.max_spread = amount("max_spread");
        policy.max_slippage = amount("max_slippage");
        policy.risk_percent = amount("risk_per_trade");
        policy.risk_fixed = amount("risk_fixed");
        policy.max_drawdown_pct = amount("max_drawdown_pct");
        policy.sl_offset = amount("sl_offset").unwrap_or(0);
        policy.tp_offset = amount("tp_offset").unwrap_or(0);
        policy.catastrophic_sl = amount("catastrophic_sl");
        let mut millis = |name: &str| {
            let value = find(name)?.parse::<i64>().ok().filter(|v| *v >= 0);
            bad |= value.is_none();
            value
        };
        policy.max_delay_ms = millis("max_delay_ms");
        policy.max_quote_age_ms = millis("max_quote_age_ms");
        let mut flag = |name: &str| match find(name)?.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                bad = true;
                None
            }
        };
        policy.disabled = flag("enabled") == Some(false);
        policy.keep_targets = flag("copy_sl_tp") != Some(false);
        policy.allow_short = flag("allow_short") == Some(true);
        let keys = |of: &str| config.keys().any(|k| k.starts_with(&format!("/echo/policy/{of}/")));
        policy.any_key = keys(account.as_str()) || keys("*");
        let complete = policy.max_spread.is_some() && (policy.risk_percent.is_some() || policy.risk_fixed.is_some());
        policy.bad = policy.any_key && (bad || !complete);
        policy
    }

    fn valid(&self) -> bool {
        self.any_key && !self.bad
    }
}

/// All windows of one account and symbol.
#[derive(Default)]
struct WindowsRead {
    bad: bool,
    /// Half a window: it blocks at once.
    half: bool,
    /// A lease that lives: a window that is open now, no one knows until when.
    active: bool,
    /// Whole windows, buffers included, as they block.
    spans: Vec<(Nanos, Nanos)>,
}

impl WindowsRead {
    fn read(config: &BTreeMap<String, String>, account: AccountId, symbol: Symbol) -> WindowsRead {
        let mut windows = WindowsRead::default();
        let encoded = symbol.as_str().replace('/', "%2F");
        for (a, s) in [(account.as_str(), encoded.as_str()), (account.as_str(), "*"), ("*", &encoded), ("*", "*")] {
            let prefix = format!("/echo/windows/{a}/{s}/");
            let mut by_id: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
            for (key, value) in config {
                if let Some(rest) = key.strip_prefix(&prefix) {
                    let (id, field) = rest.split_once('/').unwrap_or(("default", rest));
                    by_id.entry(id).or_default().insert(field, value);
                }
            }
            for fields in by_id.values() {
                windows.add(fields);
            }
        }
        windows
    }

    fn add(&mut self, fields: &BTreeMap<&str, &str>) {
        if let Some(active) = fields.get("active") {
            self.active |= *active == "true";
            self.bad |= *active != "true";
            return;
        }
        let mut bad = false;
        let mut time = |name| {
            let value = parse_rfc3339(fields.get(name)?).ok();
            bad |= value.is_none();
            value
        };
        let (start, end) = (time("start_utc"), time("end_utc"));
        let mut buffer = |name| {
            let Some(text) = fields.get(name) else { return 0 };
            let value = text.parse::<u32>().ok();
            bad |= value.is_none();
            value.map_or(0, |v| i64::from(v) * SECOND)
        };
        let (pre, post) = (buffer("pre_buffer_sec"), buffer("post_buffer_sec"));
        bad |= matches!((start, end), (Some(start), Some(end)) if start >= end);
        self.bad |= bad;
        // Half is what has one of its ends written; buffers alone are no window.
        self.half |= fields.contains_key("start_utc") != fields.contains_key("end_utc");
        if let (Some(start), Some(end), false) = (start, end, bad) {
            self.spans.push((start - pre, end + post));
        }
    }

    /// The end of the union of windows that covers `now`.
    fn covered_until(&self, now: Nanos) -> Option<Nanos> {
        let mut until = None;
        let mut at = now;
        while let Some(&(_, end)) = self.spans.iter().find(|(start, end)| *start <= at && at < *end) {
            at = end;
            until = Some(end);
        }
        until
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Verdicts.

/// The latest snapshot of each account, and the greatest equity that it ever had.
struct Snapshots<'a> {
    latest: BTreeMap<AccountId, &'a AccountSnapshot>,
    peak: BTreeMap<AccountId, i128>,
}

impl<'a> Snapshots<'a> {
    fn read(facts: &'a Facts) -> Snapshots<'a> {
        let mut snapshots = Snapshots { latest: BTreeMap::new(), peak: BTreeMap::new() };
        for snapshot in &facts.accounts {
            let latest = snapshots.latest.entry(snapshot.account).or_insert(snapshot);
            if (snapshot.event_time, snapshot.seq) > (latest.event_time, latest.seq) {
                *latest = snapshot;
            }
            let peak = snapshots.peak.entry(snapshot.account).or_insert(i128::MIN);
            *peak = (*peak).max(i128::from(snapshot.equity.0));
        }
        snapshots
    }
}

/// Everything that one verdict rests on.
struct Case<'a> {
    account: AccountId,
    master: bool,
    symbol: Symbol,
    instrument: &'a Instrument,
    recommendation: Option<&'a Recommendation>,
    quote: Option<(Nanos, u64, Price, Price)>,
    snapshot: Option<&'a AccountSnapshot>,
    peak: Option<i128>,
    facts: &'a Facts,
}

impl Case<'_> {
    fn intent(&self, policy: &PolicyRead) -> (Intent, i8) {
        let Some(recommendation) = self.recommendation.filter(|r| r.status == Status::Active) else {
            return (Intent::None, 0);
        };
        let held = self.snapshot.map_or(0, |s| s.side(self.symbol));
        match (recommendation.action.side(), held) {
            (0, _) => (Intent::None, 0),
            (-1, 0) if !policy.allow_short => (Intent::None, 0),
            (side, 0) => (Intent::Enter, side),
            (side, held) if side != held => (Intent::Exit, held),
            (side, _) if recommendation.confidence.0 >= 80.0 => (Intent::Increase, side),
            _ => (Intent::None, 0),
        }
    }

    fn verdict(&self) -> Verdict {
        let (facts, now) = (self.facts, self.facts.now);
        let mut policy = PolicyRead::read(&facts.config, self.account);
        if !policy.valid() {
            // Nothing of a policy counts that cannot be read as a whole.
            policy =
                PolicyRead { any_key: policy.any_key, bad: policy.bad, keep_targets: true, ..PolicyRead::default() };
        }
        let windows = WindowsRead::read(&facts.config, self.account, self.symbol);
        let covered_until = windows.covered_until(now);
        let in_window = windows.active || covered_until.is_some();
        let (intent, side) = self.intent(&policy);
        let opens = matches!(intent, Intent::Enter | Intent::Increase);
        let status = self.recommendation.map(|r| r.status);

        let mut reasons = BTreeSet::new();
        let mut block = |holds: bool, reason: BlockReason| {
            if holds {
                reasons.insert(reason);
            }
        };
        block(facts.config.get("/echo/core/trading_enabled").is_some_and(|v| v != "true"), BlockReason::KillSwitch);
        block(!policy.any_key, BlockReason::NoPolicy);
        block(policy.bad || windows.bad, BlockReason::PolicyInvalid);
        block(facts.stale, BlockReason::PolicyStale);
        block(policy.disabled, BlockReason::AccountDisabled);
        block(in_window || windows.half, BlockReason::NoTradeWindow);
        block(intent == Intent::None, BlockReason::NoSignal);
        block(status == Some(Status::Expired), BlockReason::Expired);
        let late =
            |r: &Recommendation| policy.max_delay_ms.is_some_and(|most| now - r.bar_close_time > most * 1_000_000);
        block(self.recommendation.is_some_and(late), BlockReason::DelayAboveMax);
        let equity = self.snapshot.map_or(0, |s| i128::from(s.equity.0));
        block(equity <= 0, BlockReason::NoEquity);
        if let (Some(peak), Some(most)) = (self.peak.filter(|p| *p > 0), policy.max_drawdown_pct) {
            // drawdown ÷ 100 = (peak − equity) ÷ peak; percents have 8 decimals.
            block((peak - equity) * 100 * 100_000_000 >= most * peak, BlockReason::DrawdownLimit);
        }
        let currencies = (self.snapshot.map(|s| s.currency), self.instrument.currency);
        block(matches!(currencies, (Some(a), Some(b)) if a != b), BlockReason::CurrencyMismatch);

        let (mut lots, mut entry, mut stop_loss, mut take_profit) = (None, None, None, None);
        if opens && let Some(recommendation) = self.recommendation {
            let close = recommendation.close;
            // Points in units of the bars' prices.
            let point =
                i128::from(self.instrument.tick_size.0) * i128::from(pow10(close.scale - self.instrument.scale));
            let in_points = |units: i128, points: i128| (units * 100_000_000, points * point);
            let quote_unit = i128::from(pow10(close.scale - self.instrument.scale));
            match self.quote {
                None => block(true, BlockReason::NoQuote),
                Some((event_time, _, bid, ask)) => {
                    let most = policy.max_quote_age_ms.unwrap_or(5_000) * 1_000_000;
                    let stale = policy.valid() && now - event_time > most;
                    block(stale, BlockReason::QuoteStale);
                    block(bid > ask, BlockReason::QuoteCrossed);
                    if let (Some(most), false) = (policy.max_spread, stale) {
                        let (spread, most) = in_points(i128::from(ask.0 - bid.0) * quote_unit, most);
                        block(spread > most, BlockReason::SpreadAboveMax);
                    }
                    if let Some(most) = policy.max_slippage {
                        let price = i128::from(if side > 0 { ask.0 } else { bid.0 }) * quote_unit;
                        let (moved, most) = in_points((price - i128::from(close.mantissa)).abs(), most);
                        block(moved > most, BlockReason::PriceMoved);
                    }
                }
            }
            let copies = self.master || policy.keep_targets;
            // On the nearest tick, ties away from zero.
            let moved = |from: Decimal, points: i128, direction: i8| {
                let units = points * point / 100_000_000 * i128::from(direction) + i128::from(from.mantissa);
                let ticks = (2 * units.abs() + point) / (2 * point) * units.signum();
                Decimal { mantissa: (ticks * point) as i64, scale: from.scale }
            };
            entry = Some(close);
            // Where the stop goes is the policy's to say.
            if policy.valid() {
                stop_loss = match (copies, recommendation.stop_loss, policy.catastrophic_sl) {
                    (true, stop, _) => stop.map(|stop| moved(stop, policy.sl_offset, -side)),
                    (false, _, distance) => distance.map(|points| moved(close, points, -side)),
                };
                take_profit = recommendation.take_profit.filter(|_| copies).map(|t| moved(t, policy.tp_offset, side));
                let distance = stop_loss.map(|s| i128::from(s.mantissa - close.mantissa) * i128::from(-side));
                let least = i128::from(self.instrument.min_stop_distance.0);
                let too_close = |d: i128| {
                    let (distance, least) = in_points(d, least);
                    d <= 0 || distance < least
                };
                block(distance.is_none_or(too_close), BlockReason::StopTooClose);
                if let Some(distance) = distance.filter(|d| *d > 0)
                    && let Some(size) = self.size(&policy, equity, distance, point)
                {
                    block(size < self.instrument.min_lot, BlockReason::LotTooSmall);
                    lots = Some(size);
                }
            }
        }
        let allow = intent == Intent::Exit || reasons.is_empty();
        if intent == Intent::Exit {
            reasons.clear();
            let held = self.snapshot.and_then(|s| s.positions.iter().find(|p| p.symbol == self.symbol));
            lots = held.map(|p| p.lots);
        }
        let edges = windows.spans.iter().map(|(start, _)| *start).filter(|start| *start > now);
        // While a lease lives, no edge of another window changes anything. Beside half a window the pending orders do.
        let next_edge = covered_until.or_else(|| edges.min()).filter(|_| !windows.active);
        let expiry = self.recommendation.map(|r| r.expires_at).filter(|at| *at > now);
        Verdict {
            account: self.account,
            symbol: self.symbol,
            intent,
            side,
            allow,
            reasons: reasons.into_iter().collect(),
            details: Vec::new(),
            lots: lots.filter(|_| allow),
            entry,
            stop_loss,
            take_profit,
            cancel_pending: in_window,
            recommendation_time: self.recommendation.map(|r| r.bar_close_time),
            valid_until: next_edge.into_iter().chain(expiry).min(),
            // No end is known of half a window or a lease; and an exit is not blocked.
            blocked_until: covered_until.filter(|_| !windows.active && !windows.half && intent != Intent::Exit),
            as_of: 0,
        }
    }

    /// Lots for a stop `distance` away (in units of the bars' prices); none without equity to risk.
    fn size(&self, policy: &PolicyRead, equity: i128, distance: i128, point: i128) -> Option<Amount> {
        // Money in units of 1e-18: a percent is a hundredth.
        let risk = match (policy.risk_fixed, policy.risk_percent) {
            (Some(money), _) => money * 10_000_000_000,
            (None, Some(percent)) if equity > 0 => equity * percent,
            _ => return None,
        };
        let step = i128::from(self.instrument.lot_step.0);
        // A step of lots loses distance ÷ point · tick_value · step: in units of 1e-18, times point.
        let loss = distance * i128::from(self.instrument.tick_value.0) * step * 100;
        let steps = risk * point / loss;
        Some(Amount((steps * step).min(i128::from(self.instrument.max_lot.0)) as i64))
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// How far the input has come.

/// Judges record by record what is late, and says what is sealed, what is closed and what time it is, by event time,
/// while no partition has ended.
pub(crate) struct Judge {
    greatest: BTreeMap<marea_model::Partition, Nanos>,
    lateness: Nanos,
    clock: Nanos,
    sealed: Nanos,
    closed: Nanos,
    /// Records refused so far.
    pub(crate) late: i64,
}

impl Judge {
    /// Nothing has arrived.
    pub(crate) fn new(partitions: &[marea_model::Partition], lateness: Nanos) -> Judge {
        let greatest = partitions.iter().map(|p| (*p, Nanos::MIN)).collect();
        Judge { greatest, lateness, clock: 0, sealed: Nanos::MIN, closed: Nanos::MIN, late: 0 }
    }

    fn watermark(&self) -> Nanos {
        self.greatest.values().copied().min().unwrap_or(Nanos::MIN)
    }

    /// Whether the next record counts.
    pub(crate) fn admits(&mut self, partition: marea_model::Partition, tick: &Tick) -> bool {
        if !matches!(tick.event, Event::Amend(_)) && tick.event_time < self.progress().sealed_through {
            self.late += 1;
            return false;
        }
        if matches!(tick.event, Event::Trade { .. } | Event::Quote { .. }) {
            let greatest = self.greatest.entry(partition).or_insert(Nanos::MIN);
            *greatest = tick.event_time.max(*greatest);
            self.tells(tick.event_time);
        }
        true
    }

    /// Everything before is sealed: what is lost of it is lost.
    pub(crate) fn seals(&mut self, through: Nanos) {
        self.sealed = self.sealed.max(through);
    }

    /// A snapshot says what time it is.
    pub(crate) fn tells(&mut self, event_time: Nanos) {
        self.clock = self.clock.max(event_time);
    }

    /// The clock, in whole milliseconds.
    pub(crate) fn now(&self) -> Nanos {
        self.clock - self.clock.rem_euclid(1_000_000)
    }

    /// As of now.
    pub(crate) fn progress(&mut self) -> Progress {
        self.sealed = self.sealed.max(self.watermark().saturating_sub(self.lateness));
        self.closed = self.closed.max(self.watermark().min(self.now()));
        Progress { sealed_through: self.sealed, closed_through: self.closed }
    }
}
