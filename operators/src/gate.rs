//! Verdicts: for each listed account and each instrument what the account may do about the recommendation, and every
//! reason why not.
//!
//! ```text
//!  recommendations ─┐                         ┌ pairs that a fact touched ┐
//!  quotes ──────────┤   facts by symbol       │                           ├──► judge ──► verdict, if it differs
//!  accounts ────────┼─► and by account ──────►┤ pairs whose timer is due  │              from the one that stands
//!  configuration ───┘                         └ entries whose quote limit ┘
//!                                               has been crossed
//! ```
//!
//! * Key: (account, symbol); accounts are those listed as master or slave, symbols the configured ones, those that have
//!   ticks, and those recommended now. At most one retraction and one insertion a key and epoch.
//! * A verdict is a pure function of the facts that stand and of `now`, so it corrects itself: whatever order they
//!   came in, the same verdict stands in the end. Only `as_of` tells when it was computed, and alone it is no change.
//! * `now` moves: window edges, expiry and delay wait in one timer a pair, staleness in one timer a symbol. The
//!   timer of staleness is lazy: a quote does not move it, it looks at the quote when it fires.
//! * Without a valid policy nothing that it limits is judged: POLICY_INVALID or NO_POLICY blocks, with the reasons that
//!   need no policy. Prices and stops are judged for entries and increases only, delay and drawdown for all but exits.
//! * Ties: of an account's snapshots with the same (event_time, seq) the greater by content stands. The peak counts all
//!   snapshots that ever came, also of accounts that are not listed (yet).
//! * Each instance owns the symbols with `stable_hash % peers == index`; configuration and accounts reach all of them.
//! * State: facts; per pair its verdict. Cost: a quote within the limits that hold costs a few comparisons; an epoch
//!   with nothing due costs a look at the first timer; a fact costs the pairs that it touches.
//! * The output frontier promises: the verdicts at epochs before it, as of their `now`.
//!
//! # Examples
//!
//! ```
//! use marea_model::time::first_epoch;
//! use marea_model::{BlockReason, ConfigUpdate, Instruments, Symbol};
//! use marea_operators::bars::QuoteUpdate;
//! use marea_operators::gate::Gate;
//!
//! let put = |key: &str, value: &str| ConfigUpdate::Put { key: key.into(), value: value.into(), revision: 1 };
//! let mut gate = Gate::new(&Instruments::default(), 0, 1);
//! assert!(gate.epoch(first_epoch(0), vec![], vec![], vec![], &[put("/echo/core/master_accounts", "M1")]).is_empty());
//! // The first symbol that has ticks: one account, one verdict, blocked for want of everything.
//! let seen = QuoteUpdate { symbol: Symbol::new("IBM")?, quote: None };
//! let rows = gate.epoch(first_epoch(1), vec![], vec![seen], vec![], &[]);
//! assert_eq!(rows[0].0.reasons, [BlockReason::NoPolicy, BlockReason::NoSignal, BlockReason::NoEquity]);
//! // The kill switch replaces it.
//! let rows = gate.epoch(first_epoch(2), vec![], vec![], vec![], &[put("/echo/core/trading_enabled", "no")]);
//! assert_eq!((rows[0].1, rows[1].1, rows[1].0.reasons[0]), (-1, 1, BlockReason::KillSwitch));
//! # Ok::<(), marea_model::name::NameError>(())
//! ```

mod judge;
mod sizing;
#[cfg(test)]
mod tests;

use crate::bars::{Quote, QuoteUpdate};
use crate::epochs::{Clock, EpochOperator, EpochStream};
use crate::windows::{Timers, first_ms_after};
use judge::{Answer, Facts, PatternWindows, Reading, Standing, Watch};
use marea_model::live::{ConfigUpdate, LiveConfig, Pattern, PolicyState, Role, Touched};
use marea_model::time::now_ns;
use marea_model::verdict::Intent;
use marea_model::{
    AccountId, AccountSnapshot, Epoch, Instrument, Instruments, Nanos, Recommendation, Symbol, Timeframe, Verdict,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Who waits for `now`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Timer {
    /// The quote of a symbol may have become stale for somebody.
    Quote(Symbol),
    /// A verdict has an edge.
    Pair(Symbol, AccountId),
}

/// A listed account.
#[derive(Debug)]
struct Account {
    role: Role,
    policy: PolicyState,
    /// Where it may enter or increase now: what its equity bears upon.
    entries: BTreeSet<Symbol>,
}

/// The verdict of one account on one symbol.
#[derive(Debug, Default)]
struct Pair {
    verdict: Option<Arc<Verdict>>,
    timer: Option<i64>,
    watch: Option<Watch>,
    answer: Answer,
}

/// An inclusive range.
#[derive(Clone, Copy, Debug)]
struct Range(i128, i128);

impl Range {
    const ALL: Range = Range(i128::MIN, i128::MAX);

    fn contains(self, value: i128) -> bool {
        self.0 <= value && value <= self.1
    }

    /// Narrows the range around `value` to where `value > limit` keeps its truth.
    fn keep(&mut self, value: i128, limit: Option<i128>) {
        match limit {
            Some(limit) if value > limit => self.0 = self.0.max(limit + 1),
            Some(limit) => self.1 = self.1.min(limit),
            None => (),
        }
    }
}

/// Where a quote may go without changing any verdict.
#[derive(Clone, Copy, Debug)]
struct Calm {
    spread: Range,
    distance: Range,
    age: Range,
}

impl Calm {
    fn contains(&self, reading: &Reading) -> bool {
        self.spread.contains(reading.spread)
            && self.distance.contains(reading.distance)
            && self.age.contains(reading.age)
    }
}

/// What is known of a symbol.
#[derive(Debug)]
struct Market {
    instrument: Instrument,
    configured: bool,
    ticked: bool,
    recommendation: Option<Arc<Recommendation>>,
    quote: Option<Quote>,
    pairs: BTreeMap<AccountId, Pair>,
    /// How many pairs watch quotes.
    watchers: usize,
    /// None: look at each watcher.
    calm: Option<Calm>,
    timer: Option<i64>,
}

impl Market {
    fn exists(&self) -> bool {
        self.configured || self.ticked || self.recommendation.is_some()
    }

    fn reading(&self, now: Nanos) -> Option<Reading> {
        let (quote, recommendation) = (self.quote.as_ref()?, self.recommendation.as_ref()?);
        Some(Reading::new(quote, recommendation, &self.instrument, now))
    }
}

/// What an epoch has touched.
#[derive(Default)]
struct Dirty {
    pairs: BTreeSet<(Symbol, AccountId)>,
    /// Symbols whose quote is to be held against its watchers.
    quotes: BTreeSet<Symbol>,
}

/// The kernel. See the module.
pub struct Gate {
    index: u64,
    peers: u64,
    config: LiveConfig,
    windows: BTreeMap<(Pattern<AccountId>, Pattern<Symbol>), PatternWindows>,
    accounts: BTreeMap<AccountId, Account>,
    standings: HashMap<AccountId, Standing>,
    markets: HashMap<Symbol, Market>,
    timers: Timers<Timer>,
}

type Changes = Vec<(Arc<Verdict>, i64)>;

impl Gate {
    /// The same, for a dataflow that has bars of these timeframes: an edit that asks for others is refused everywhere alike.
    pub fn with_timeframes(mut self, timeframes: &[Timeframe]) -> Self {
        self.config = self.config.with_timeframes(timeframes);
        self
    }

    /// No accounts yet; the configured instruments that hash to `index` of `peers`.
    ///
    /// # Panics
    /// Without peers.
    pub fn new(instruments: &Instruments, index: usize, peers: usize) -> Self {
        assert!(index < peers, "worker {index} of {peers}");
        let mut gate = Gate {
            index: index as u64,
            peers: peers as u64,
            config: LiveConfig::new(instruments),
            windows: BTreeMap::new(),
            accounts: BTreeMap::new(),
            standings: HashMap::new(),
            markets: HashMap::new(),
            timers: Timers::default(),
        };
        gate.sync_instruments(Pattern::Any, &mut Dirty::default(), &mut Vec::new());
        gate
    }

    /// One epoch: the facts that changed in, the verdicts that changed out (retractions −1, insertions 1).
    pub fn epoch(
        &mut self,
        epoch: Epoch,
        recommendations: Vec<(Arc<Recommendation>, i64)>,
        quotes: Vec<QuoteUpdate>,
        accounts: Vec<AccountSnapshot>,
        config: &[ConfigUpdate],
    ) -> Changes {
        let now = now_ns(epoch);
        let (mut dirty, mut changes) = (Dirty::default(), Changes::new());
        self.take_config(config, &mut dirty, &mut changes);
        self.take_recommendations(recommendations, &mut dirty, &mut changes);
        for update in quotes {
            self.take_quote(update, now, &mut dirty);
        }
        for snapshot in accounts {
            self.take_snapshot(snapshot, &mut dirty);
        }
        self.take_time(marea_model::time::now_ms(epoch), &mut dirty);
        for (symbol, account) in std::mem::take(&mut dirty.pairs) {
            self.judge(symbol, account, now, &mut dirty.quotes, &mut changes);
        }
        for symbol in std::mem::take(&mut dirty.quotes) {
            self.hold_quote_against_watchers(symbol, now, &mut changes);
        }
        changes.sort_by(|(a, x), (b, y)| (a.symbol, a.account, x).cmp(&(b.symbol, b.account, y)));
        changes
    }

    fn take_config(&mut self, updates: &[ConfigUpdate], dirty: &mut Dirty, changes: &mut Changes) {
        // The tree first, then once what all edits of the epoch touched.
        let touched: BTreeSet<Touched> = updates.iter().map(|update| self.config.apply(update)).collect();
        for touched in touched {
            match touched {
                Touched::Nothing | Touched::Strategy(_) => (),
                Touched::Everything => {
                    for (symbol, market) in &self.markets {
                        dirty.pairs.extend(market.pairs.keys().map(|account| (*symbol, *account)));
                    }
                }
                Touched::Accounts => self.sync_accounts(dirty, changes),
                Touched::Policy(Pattern::One(account)) => self.sync_policy(account, dirty),
                Touched::Policy(Pattern::Any) => {
                    for account in self.accounts.keys().copied().collect::<Vec<_>>() {
                        self.sync_policy(account, dirty);
                    }
                }
                Touched::Windows(account, symbol) => self.sync_windows(account, symbol, dirty),
                Touched::Instruments(symbol) => self.sync_instruments(symbol, dirty, changes),
            }
        }
    }

    fn sync_accounts(&mut self, dirty: &mut Dirty, changes: &mut Changes) {
        let listed = self.config.accounts().clone();
        let gone: Vec<AccountId> = self.accounts.keys().filter(|a| !listed.contains_key(a)).copied().collect();
        for account in gone {
            self.accounts.remove(&account);
            for symbol in self.markets.keys().copied().collect::<Vec<_>>() {
                self.remove_pair(symbol, account, &mut dirty.quotes, changes);
            }
        }
        for (name, role) in listed {
            match self.accounts.get_mut(&name) {
                Some(account) => {
                    if std::mem::replace(&mut account.role, role) != role {
                        self.touch_account(name, dirty);
                    }
                    self.sync_policy(name, dirty);
                }
                None => {
                    let policy = self.config.policy(name);
                    self.accounts.insert(name, Account { role, policy, entries: BTreeSet::new() });
                    for (symbol, market) in &mut self.markets {
                        market.pairs.insert(name, Pair::default());
                        dirty.pairs.insert((*symbol, name));
                    }
                }
            }
        }
    }

    fn sync_policy(&mut self, name: AccountId, dirty: &mut Dirty) {
        let Some(account) = self.accounts.get_mut(&name) else { return };
        let policy = self.config.policy(name);
        if account.policy != policy {
            account.policy = policy;
            self.touch_account(name, dirty);
        }
    }

    fn touch_account(&self, account: AccountId, dirty: &mut Dirty) {
        dirty.pairs.extend(self.markets.keys().map(|symbol| (*symbol, account)));
    }

    fn sync_windows(&mut self, account: Pattern<AccountId>, symbol: Pattern<Symbol>, dirty: &mut Dirty) {
        let set = self.config.window_set(account, symbol);
        let before = if set.is_empty() {
            self.windows.remove(&(account, symbol))
        } else {
            self.windows.insert((account, symbol), PatternWindows::new(set))
        };
        if before.as_ref() == self.windows.get(&(account, symbol)) {
            return;
        }
        let mut touch = |symbol: Symbol, market: &Market| {
            let accounts = market.pairs.keys().filter(|a| account.matches(**a));
            dirty.pairs.extend(accounts.map(|account| (symbol, *account)));
        };
        match symbol {
            Pattern::One(symbol) => self.markets.get(&symbol).into_iter().for_each(|market| touch(symbol, market)),
            Pattern::Any => self.markets.iter().for_each(|(symbol, market)| touch(*symbol, market)),
        }
    }

    fn owns(&self, symbol: Symbol) -> bool {
        symbol.stable_hash() % self.peers == self.index
    }

    fn sync_instruments(&mut self, touched: Pattern<Symbol>, dirty: &mut Dirty, changes: &mut Changes) {
        let symbols: BTreeSet<Symbol> = match touched {
            Pattern::One(symbol) => BTreeSet::from([symbol]),
            Pattern::Any => self.config.instruments().by_symbol.keys().chain(self.markets.keys()).copied().collect(),
        };
        for symbol in symbols {
            if !self.owns(symbol) {
                continue;
            }
            let configured = self.config.instruments().by_symbol.contains_key(&symbol);
            if configured && !self.markets.contains_key(&symbol) {
                self.add_market(symbol, dirty);
            }
            let Some(market) = self.markets.get_mut(&symbol) else { continue };
            market.configured = configured;
            let instrument = *self.config.instruments().get(symbol);
            if market.instrument != instrument {
                market.instrument = instrument;
                market.calm = None;
                dirty.pairs.extend(market.pairs.keys().map(|account| (symbol, *account)));
                dirty.quotes.insert(symbol);
            }
            self.drop_market_if_gone(symbol, dirty, changes);
        }
    }

    fn add_market(&mut self, symbol: Symbol, dirty: &mut Dirty) -> &mut Market {
        let accounts = self.accounts.keys().copied();
        let instrument = *self.config.instruments().get(symbol);
        self.markets.entry(symbol).or_insert_with(|| {
            dirty.pairs.extend(accounts.clone().map(|account| (symbol, account)));
            Market {
                instrument,
                configured: false,
                ticked: false,
                recommendation: None,
                quote: None,
                pairs: accounts.map(|account| (account, Pair::default())).collect(),
                watchers: 0,
                calm: None,
                timer: None,
            }
        })
    }

    fn drop_market_if_gone(&mut self, symbol: Symbol, dirty: &mut Dirty, changes: &mut Changes) {
        if self.markets.get(&symbol).is_none_or(Market::exists) {
            return;
        }
        for account in self.accounts.keys().copied().collect::<Vec<_>>() {
            self.remove_pair(symbol, account, &mut dirty.quotes, changes);
        }
        if let Some(mut market) = self.markets.remove(&symbol) {
            self.timers.set(Timer::Quote(symbol), &mut market.timer, None);
        }
    }

    fn remove_pair(
        &mut self,
        symbol: Symbol,
        account: AccountId,
        quotes: &mut BTreeSet<Symbol>,
        changes: &mut Changes,
    ) {
        let Some(market) = self.markets.get_mut(&symbol) else { return };
        let Some(mut pair) = market.pairs.remove(&account) else { return };
        self.timers.set(Timer::Pair(symbol, account), &mut pair.timer, None);
        if pair.watch.is_some() {
            market.watchers -= 1;
            quotes.insert(symbol);
        }
        if let Some(account) = self.accounts.get_mut(&account) {
            account.entries.remove(&symbol);
        }
        changes.extend(pair.verdict.map(|verdict| (verdict, -1)));
    }

    fn take_recommendations(
        &mut self,
        updates: Vec<(Arc<Recommendation>, i64)>,
        dirty: &mut Dirty,
        changes: &mut Changes,
    ) {
        let symbols: BTreeSet<Symbol> = updates.iter().map(|(r, _)| r.symbol).collect();
        // What is retracted first: the row that replaces it may have come before.
        for (gone, _) in updates.iter().filter(|(_, diff)| *diff < 0) {
            if let Some(market) = self.markets.get_mut(&gone.symbol) {
                market.recommendation.take_if(|standing| **standing == **gone);
            }
        }
        for (new, _) in updates.into_iter().filter(|(_, diff)| *diff > 0) {
            let market = self.add_market(new.symbol, dirty);
            market.recommendation = Some(new);
        }
        for symbol in symbols {
            if let Some(market) = self.markets.get_mut(&symbol) {
                market.calm = None;
                dirty.pairs.extend(market.pairs.keys().map(|account| (symbol, *account)));
                dirty.quotes.insert(symbol);
            }
            self.drop_market_if_gone(symbol, dirty, changes);
        }
    }

    fn take_quote(&mut self, update: QuoteUpdate, now: Nanos, dirty: &mut Dirty) {
        let symbol = update.symbol;
        let market = match self.markets.get_mut(&symbol) {
            Some(market) => market,
            None => self.add_market(symbol, dirty),
        };
        market.ticked = true;
        market.quote = update.quote;
        if market.watchers == 0 {
            return;
        }
        let is_calm = market.reading(now).zip(market.calm).is_some_and(|(reading, calm)| calm.contains(&reading));
        if !is_calm {
            dirty.quotes.insert(symbol);
        }
    }

    fn take_snapshot(&mut self, snapshot: AccountSnapshot, dirty: &mut Dirty) {
        let name = snapshot.account;
        let before = self.standings.get(&name).cloned();
        let standing = self
            .standings
            .entry(name)
            .and_modify(|standing| {
                standing.peak = standing.peak.max(snapshot.equity);
                let order = |s: &AccountSnapshot| (s.event_time, s.seq);
                if (order(&snapshot), &snapshot) > (order(&standing.snapshot), &standing.snapshot) {
                    standing.snapshot = snapshot.clone();
                }
            })
            .or_insert_with(|| Standing { peak: snapshot.equity, snapshot });
        let Some(account) = self.accounts.get(&name) else { return };
        let Some(before) = before else {
            self.touch_account(name, dirty);
            return;
        };
        let whole = |s: &Standing| (s.equity().is_some(), s.snapshot.currency, s.drawdown_reached(&account.policy));
        if whole(&before) != whole(standing) {
            self.touch_account(name, dirty);
            return;
        }
        let (old, new) = (&before.snapshot, &standing.snapshot);
        if old.equity != new.equity {
            dirty.pairs.extend(account.entries.iter().map(|symbol| (*symbol, name)));
        }
        for position in old.positions.iter().chain(&new.positions) {
            let is_in = |s: &AccountSnapshot| s.positions.contains(position);
            if is_in(old) != is_in(new) && self.markets.contains_key(&position.symbol) {
                dirty.pairs.insert((position.symbol, name));
            }
        }
    }

    fn take_time(&mut self, now_ms: i64, dirty: &mut Dirty) {
        while let Some(timer) = self.timers.pop(now_ms) {
            match timer {
                Timer::Quote(symbol) => {
                    if let Some(market) = self.markets.get_mut(&symbol) {
                        market.timer = None;
                        dirty.quotes.insert(symbol);
                    }
                }
                Timer::Pair(symbol, account) => {
                    let market = self.markets.get_mut(&symbol);
                    if let Some(pair) = market.and_then(|m| m.pairs.get_mut(&account)) {
                        pair.timer = None;
                        dirty.pairs.insert((symbol, account));
                    }
                }
            }
        }
    }

    /// Computes the verdict of a pair again; what it watches may have changed then.
    fn judge(
        &mut self,
        symbol: Symbol,
        name: AccountId,
        now: Nanos,
        quotes: &mut BTreeSet<Symbol>,
        changes: &mut Changes,
    ) {
        let Some(market) = self.markets.get_mut(&symbol) else { return };
        let (Some(account), Some(pair)) = (self.accounts.get_mut(&name), market.pairs.get_mut(&name)) else { return };
        let of = |a: Pattern<AccountId>, s: Pattern<Symbol>| self.windows.get(&(a, s));
        let (one, this) = (Pattern::One(name), Pattern::One(symbol));
        let judged = Facts {
            account: name,
            role: account.role,
            policy: &account.policy,
            standing: self.standings.get(&name),
            trading_enabled: self.config.trading_enabled(),
            stale: self.config.stale(),
            symbol,
            instrument: &market.instrument,
            recommendation: market.recommendation.as_deref(),
            quote: market.quote.as_ref(),
            windows: if self.windows.is_empty() {
                [None; 4]
            } else {
                [of(Pattern::Any, Pattern::Any), of(Pattern::Any, this), of(one, Pattern::Any), of(one, this)]
            },
        }
        .judge(now);

        self.timers.set(Timer::Pair(symbol, name), &mut pair.timer, judged.wake);
        pair.answer = judged.answer;
        if pair.watch != judged.watch {
            market.watchers += usize::from(judged.watch.is_some());
            market.watchers -= usize::from(pair.watch.is_some());
            pair.watch = judged.watch;
            quotes.insert(symbol);
        }
        match judged.verdict.intent {
            Intent::Enter | Intent::Increase => account.entries.insert(symbol),
            Intent::None | Intent::Exit => account.entries.remove(&symbol),
        };
        let mut verdict = judged.verdict;
        if let Some(standing) = &pair.verdict {
            // The one column that says when, not what.
            verdict.as_of = standing.as_of;
            if verdict == **standing {
                return;
            }
            verdict.as_of = now;
        }
        let verdict = Arc::new(verdict);
        changes.extend(pair.verdict.replace(Arc::clone(&verdict)).map(|old| (old, -1)));
        changes.push((verdict, 1));
    }

    /// Computes the verdicts that the quote changes, and where the next quote may go without changing any.
    fn hold_quote_against_watchers(&mut self, symbol: Symbol, now: Nanos, changes: &mut Changes) {
        let Some(market) = self.markets.get(&symbol) else { return };
        let reading = market.reading(now);
        let differs =
            |pair: &Pair| pair.watch.is_some_and(|watch| Answer::new(reading.as_ref(), &watch) != pair.answer);
        let changed: Vec<AccountId> = market.pairs.iter().filter(|(_, p)| differs(p)).map(|(a, _)| *a).collect();
        for account in changed {
            self.judge(symbol, account, now, &mut BTreeSet::new(), changes);
        }
        let Some(market) = self.markets.get_mut(&symbol) else { return };
        market.calm = None;
        let mut due = None;
        if let (Some(reading), Some(quote)) = (reading, market.quote) {
            let mut calm = Calm { spread: Range::ALL, distance: Range::ALL, age: Range::ALL };
            // Crossed or not: spread > −1.
            calm.spread.keep(reading.spread, Some(-1));
            for watch in market.pairs.values().filter_map(|pair| pair.watch) {
                calm.spread.keep(reading.spread, watch.spread);
                calm.distance.keep(reading.distance, watch.distance);
                calm.age.keep(reading.age, watch.age);
            }
            market.calm = Some(calm);
            // The latest quote of a symbol never becomes an older one, so this only ever fires too early.
            let last = calm.age.1.saturating_add(i128::from(quote.event_time));
            due = i64::try_from(last).ok().filter(|_| market.watchers > 0).map(first_ms_after);
        }
        self.timers.set(Timer::Quote(symbol), &mut market.timer, due);
    }
}

/// The operator: recommendations and quotes routed to the worker of their symbol.
pub fn gate<'scope>(
    clock: Clock<'scope>,
    recommendations: EpochStream<'scope, (Arc<Recommendation>, i64)>,
    quotes: EpochStream<'scope, QuoteUpdate>,
    mut kernel: Gate,
) -> EpochStream<'scope, (Arc<Verdict>, i64)> {
    let mut operator = EpochOperator::new("gate", clock);
    // Recommendations are made where their symbol lives; rows shared by pointer never leave a worker.
    let recommendations = operator.input(recommendations);
    let quotes = operator.routed(quotes, |quote| quote.symbol.stable_hash());
    let (verdicts, stream) = operator.output();
    operator.build(move |epoch, feed| {
        let accounts = feed.accounts.clone();
        verdicts.give_vec(kernel.epoch(epoch, recommendations.take(), quotes.take(), accounts, &feed.config));
    });
    stream
}
