//! The live configuration: one tree of keys and text values, written by a TOML file or by etcd, read by operators.
//!
//! | key | meaning | a value that cannot be read |
//! |---|---|---|
//! | `/echo/core/master_accounts`, `slave_accounts` | accounts, comma list or JSON array | ¹ |
//! | `/echo/core/trading_enabled` | `true`; absent is `true` | is the kill switch, as any other value |
//! | `/echo/policy/{account or *}/…` | policy, the exact account over `*` | POLICY_INVALID for whom it applies to |
//! | `/echo/windows/{account or *}/{symbol or *}[/{id}]/…` | no-trade windows, united | POLICY_INVALID for the pairs ² |
//! | `/marea/strategies/{id}` | JSON of a strategy | there is no such strategy |
//! | `/marea/instruments/{symbol or default}` | JSON of an instrument | the instrument of the start stays |
//!
//! | `/marea/gaps/{partition}` | a note of the pipeline: records that were lost | – |
//!
//! ¹ A name that is none is listed as a problem. A list that cannot be read: its last accounts stand, POLICY_INVALID.
//!
//! ² Half a window (a start without an end, or the reverse): NO_TRADE_WINDOW at once.
//!
//! A policy is resolved key by key.
//!
//! **The tree decides, not its past** (law L7): everything is a function of the keys and values that stand, with one
//! exception that errs on the safe side. Where *both* account lists are absent (the whole prefix is gone), the accounts
//! last listed stand, without a policy, so that everybody is blocked and nobody's verdict silently disappears; likewise
//! a list that cannot be read blocks the accounts that it last named. A process that starts without lists knows none.
//!
//! An unknown key below a policy or a window is a typo of something that was meant to protect: it blocks like an
//! invalid value. Two keys of one meaning (`…/eurusd/…`, `…/EURUSD/…`) contradict each other: invalid too. Any other
//! unknown key is listed as a problem and has no effect.
//!
//! Cost: an update is one step in an ordered map. Policies and windows are read from the tree when asked; whoever asks
//! often keeps the answer until [`LiveConfig::apply`] says that it was touched.

mod key;
mod value;

pub use key::{Pattern, decode_segment, encode_segment};

use crate::cursor::excerpt;
use crate::instrument::{Instrument, InstrumentSpec, Instruments};
use crate::name::{AccountId, StrategyId, Symbol};
use crate::num::Amount;
use crate::policy::{Policy, Risk};
use crate::strategy::{Strategy, parse_strategy};
use crate::time::Timeframe;
use crate::window::Window;
use key::{PolicyField, Slot, WindowField};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use value::{PolicyValue, WindowValue, quoted};

/// One change of the tree.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ConfigUpdate {
    /// The key has this value now.
    Put {
        /// `/echo/policy/M1/max_spread`
        key: String,
        /// `20`
        value: String,
        /// Of the source.
        revision: u64,
    },
    /// The key is gone.
    Delete {
        /// The key.
        key: String,
        /// Of the source.
        revision: u64,
    },
    /// Whether the source has stopped answering (or its file cannot be read): entries are blocked, POLICY_STALE.
    Stale(bool),
}

impl ConfigUpdate {
    /// Its key, if it is about one.
    pub fn key(&self) -> Option<&str> {
        match self {
            ConfigUpdate::Put { key, .. } | ConfigUpdate::Delete { key, .. } => Some(key),
            ConfigUpdate::Stale(_) => None,
        }
    }
}

/// Keys of notes start so: what was lost of a partition, and accepted. They stand among the changes of the live
/// configuration, in the epoch in which it happened, and configure nothing.
pub const GAPS: &str = "/marea/gaps/";

/// The longest value that is read, in bytes.
pub const MAX_VALUE_BYTES: usize = 1_000_000;

/// The most milliseconds that a quote may be old where a policy does not say.
pub const DEFAULT_MAX_QUOTE_AGE_MS: i64 = 5_000;

/// In which list an account stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// `master_accounts`. Wins over the other.
    Master,
    /// `slave_accounts`: stop and target are copied only with `copy_sl_tp`.
    Slave,
}

/// What an update may have changed: whatever is not named here is as it was.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Touched {
    /// Nothing.
    Nothing,
    /// Every verdict: the kill switch, or whether the source answers.
    Everything,
    /// The accounts, their roles, and whether they may have policies at all.
    Accounts,
    /// The policy of these accounts.
    Policy(Pattern<AccountId>),
    /// The windows of these pairs.
    Windows(Pattern<AccountId>, Pattern<Symbol>),
    /// This strategy.
    Strategy(StrategyId),
    /// These instruments; `Any`: the default, and all that rest on it.
    Instruments(Pattern<Symbol>),
}

/// The policy of an account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PolicyState {
    /// No key applies to it: NO_POLICY.
    Absent,
    /// All keys can be read and none is missing.
    Valid(Policy),
    /// POLICY_INVALID; `key: why` of each bad key, sorted.
    Invalid(Vec<String>),
}

/// The no-trade windows of a pair, or of one pattern.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WindowSet {
    /// Whole windows, sorted.
    pub windows: Vec<Window>,
    /// Whether an `active` key stands: a window without end.
    pub active: bool,
    /// `key: why` of each half of a window, sorted: NO_TRADE_WINDOW.
    pub half: Vec<String>,
    /// `key: why` of each bad window, sorted: POLICY_INVALID.
    pub invalid: Vec<String>,
}

impl WindowSet {
    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty() && !self.active && self.half.is_empty() && self.invalid.is_empty()
    }
}

/// What a problem does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Those that the key applies to are blocked.
    Blocks,
    /// The strategy does not run.
    Absent,
    /// The instrument stays as it was at the start.
    Kept,
    /// None: the key is as if it were not there.
    Ignored,
}

impl Effect {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Effect::Blocks => "blocks those it applies to",
            Effect::Absent => "the strategy does not run",
            Effect::Kept => "the instrument stays as it was",
            Effect::Ignored => "ignored",
        }
    }
}

/// Something wrong in the tree.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct Problem {
    /// The key.
    pub key: String,
    /// The revision of its value; 0 where the key is missing.
    pub revision: u64,
    /// The value, 64 bytes at most.
    pub value: String,
    /// What is wrong with it.
    pub why: String,
    /// What comes of it.
    pub effect: Effect,
}

impl Problem {
    /// `key: why`, as in a verdict. Without the revision: a verdict depends on what stands, not on when it was written.
    pub fn detail(&self) -> String {
        format!("{}: {}", self.key, self.why)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (revision {}): {}; {}", self.key, self.revision, self.why, self.effect.as_str())
    }
}

/// A value as it stands under one key. Of a value that is too long only the beginning is kept.
#[derive(Clone, Debug)]
struct Entry {
    key: Box<str>,
    text: Box<str>,
    bytes: usize,
    revision: u64,
}

impl Entry {
    fn problem(&self, why: impl Into<String>, effect: Effect) -> Problem {
        let value = excerpt(&self.text);
        Problem { key: self.key.to_string(), revision: self.revision, value, why: why.into(), effect }
    }

    fn too_long(&self) -> Option<String> {
        (self.bytes > MAX_VALUE_BYTES).then(|| format!("{} bytes are more than {MAX_VALUE_BYTES}", self.bytes))
    }
}

/// All keys of one slot, ordered; nearly always one.
type Entries = Vec<Entry>;

/// The one value of a slot, read by `read`; or what is wrong with it.
fn read_one<'a, T>(
    entries: &'a [Entry],
    effect: Effect,
    read: impl FnOnce(&'a str) -> Result<T, String>,
) -> Result<T, Problem> {
    let first = &entries[0];
    if let Some(second) = entries.get(1) {
        return Err(first.problem(format!("written twice, also as {}", second.key), effect));
    }
    match first.too_long() {
        Some(why) => Err(first.problem(why, effect)),
        None => read(&first.text).map_err(|why| first.problem(why, effect)),
    }
}

/// One of the two lists of accounts.
#[derive(Clone, Debug, Default)]
struct List {
    present: bool,
    /// As last read; kept when the key is gone or cannot be read.
    names: Vec<AccountId>,
    unreadable: Option<Problem>,
}

/// The tree, parsed. A value that cannot be read is kept as what it blocks.
#[derive(Clone, Debug, Default)]
pub struct LiveConfig {
    initial: Instruments,
    timeframes: Option<Vec<Timeframe>>,
    tree: BTreeMap<Slot, Entries>,
    master: List,
    slave: List,
    accounts: BTreeMap<AccountId, Role>,
    strategies: BTreeMap<StrategyId, Arc<Strategy>>,
    instruments: Instruments,
    stale: bool,
}

impl LiveConfig {
    /// An empty tree over the instruments of the start, whose scale, price source and sign no edit may change.
    pub fn new(initial: &Instruments) -> Self {
        LiveConfig { initial: initial.clone(), instruments: initial.clone(), ..LiveConfig::default() }
    }

    /// The instruments of the start.
    pub fn initial(&self) -> &Instruments {
        &self.initial
    }

    /// Refuses strategies and decision timeframes for which there are no bars.
    pub fn with_timeframes(mut self, timeframes: &[Timeframe]) -> Self {
        self.timeframes = Some(timeframes.to_vec());
        self
    }

    /// Takes in one update and says what it may have changed.
    pub fn apply(&mut self, update: &ConfigUpdate) -> Touched {
        let (key, put) = match update {
            ConfigUpdate::Stale(stale) => {
                let changed = std::mem::replace(&mut self.stale, *stale) != *stale;
                return if changed { Touched::Everything } else { Touched::Nothing };
            }
            ConfigUpdate::Put { key, value, revision } => (key, Some((value, *revision))),
            ConfigUpdate::Delete { key, .. } => (key, None),
        };
        if key.starts_with(GAPS) {
            return Touched::Nothing;
        }
        let slot = Slot::read(key);
        let was_enabled = self.trading_enabled();
        if !self.write(&slot, key, put) {
            return Touched::Nothing;
        }
        match slot {
            Slot::MasterAccounts | Slot::SlaveAccounts => {
                self.read_lists();
                Touched::Accounts
            }
            Slot::TradingEnabled if self.trading_enabled() == was_enabled => Touched::Nothing,
            Slot::TradingEnabled => Touched::Everything,
            Slot::Policy(account, _) => Touched::Policy(account),
            Slot::Window(account, symbol, ..) => Touched::Windows(account, symbol),
            Slot::Strategy(id) => {
                match self.read_strategy(id) {
                    Some(Ok(strategy)) => self.strategies.insert(id, Arc::new(strategy)),
                    _ => self.strategies.remove(&id),
                };
                Touched::Strategy(id)
            }
            Slot::Instrument(symbol) => {
                self.refresh_instruments(symbol);
                Touched::Instruments(symbol)
            }
            Slot::Unknown(..) => Touched::Nothing,
        }
    }

    /// Whether the tree has other texts than before.
    fn write(&mut self, slot: &Slot, key: &str, put: Option<(&String, u64)>) -> bool {
        let Some((value, revision)) = put else {
            let Some(entries) = self.tree.get_mut(slot) else { return false };
            let before = entries.len();
            entries.retain(|e| &*e.key != key);
            let changed = entries.len() != before;
            if entries.is_empty() {
                self.tree.remove(slot);
            }
            return changed;
        };
        let kept = if value.len() > MAX_VALUE_BYTES { excerpt(value) } else { value.clone() };
        let entry = Entry { key: key.into(), text: kept.into(), bytes: value.len(), revision };
        let entries = self.tree.entry(slot.clone()).or_default();
        match entries.binary_search_by(|e| (*e.key).cmp(key)) {
            Ok(at) => {
                let changed = (&entries[at].text, entries[at].bytes) != (&entry.text, entry.bytes);
                entries[at] = entry;
                changed
            }
            Err(at) => {
                entries.insert(at, entry);
                true
            }
        }
    }

    /// The accounts and their roles. Both lists absent: the accounts last listed.
    pub fn accounts(&self) -> &BTreeMap<AccountId, Role> {
        &self.accounts
    }

    fn unlisted(&self) -> bool {
        !self.master.present && !self.slave.present
    }

    fn read_lists(&mut self) {
        for (slot, list) in [(Slot::MasterAccounts, &mut self.master), (Slot::SlaveAccounts, &mut self.slave)] {
            let entries = self.tree.get(&slot);
            list.present = entries.is_some();
            list.unreadable = None;
            match entries.map(|e| read_one(e, Effect::Blocks, value::accounts)) {
                None => (),
                Some(Ok((names, _))) => list.names = names,
                Some(Err(problem)) => list.unreadable = Some(problem),
            }
        }
        let gone = self.unlisted();
        self.accounts.clear();
        // The master list last: it wins.
        for (list, role) in [(&self.slave, Role::Slave), (&self.master, Role::Master)] {
            if list.present || gone {
                self.accounts.extend(list.names.iter().map(|name| (*name, role)));
            }
        }
    }

    /// False is the kill switch.
    pub fn trading_enabled(&self) -> bool {
        self.tree.get(&Slot::TradingEnabled).is_none_or(|e| e.iter().all(|e| &*e.text == "true"))
    }

    /// Whether the source has stopped answering.
    pub fn stale(&self) -> bool {
        self.stale
    }

    /// The policy of an account, key by key the exact account over `*`.
    pub fn policy(&self, account: AccountId) -> PolicyState {
        let (state, problems) = self.read_policy(account);
        if problems.is_empty() {
            return state;
        }
        let mut details: Vec<String> = problems.iter().map(Problem::detail).collect();
        details.sort();
        details.dedup();
        PolicyState::Invalid(details)
    }

    fn policy_slots(&self, account: Pattern<AccountId>) -> impl Iterator<Item = (&PolicyField, &Entries)> {
        // The first field of an account is the first slot of its range.
        self.tree.range(Slot::Policy(account, PolicyField::MaxSpread)..).map_while(move |(slot, entries)| match slot {
            Slot::Policy(of, field) if *of == account => Some((field, entries)),
            _ => None,
        })
    }

    fn read_policy(&self, account: AccountId) -> (PolicyState, Vec<Problem>) {
        let mut problems: Vec<Problem> = Vec::new();
        for (list, role) in [(&self.master, Role::Master), (&self.slave, Role::Slave)] {
            if self.accounts.get(&account) == Some(&role) {
                problems.extend(list.unreadable.clone());
            }
        }
        let mut fields: BTreeMap<&PolicyField, &Entries> = BTreeMap::new();
        if !self.unlisted() {
            fields.extend(self.policy_slots(Pattern::Any));
            fields.extend(self.policy_slots(Pattern::One(account)));
        }
        if fields.is_empty() {
            return (PolicyState::Absent, problems);
        }
        let mut draft = Draft::default();
        for (field, entries) in fields {
            match read_one(entries, Effect::Blocks, |text| value::policy(field, text)) {
                Ok(value) => draft.set(field, Some(value)),
                Err(problem) => {
                    draft.set(field, None);
                    problems.push(problem);
                }
            }
        }
        let state = draft.finish(account, &mut problems).map_or(PolicyState::Absent, PolicyState::Valid);
        (state, problems)
    }

    /// The windows of a pair: the union of the four patterns that match it.
    pub fn windows(&self, account: AccountId, symbol: Symbol) -> WindowSet {
        let mut all = WindowSet::default();
        for account in [Pattern::Any, Pattern::One(account)] {
            for symbol in [Pattern::Any, Pattern::One(symbol)] {
                let set = self.window_set(account, symbol);
                all.windows.extend(set.windows);
                all.active |= set.active;
                all.half.extend(set.half);
                all.invalid.extend(set.invalid);
            }
        }
        all.windows.sort();
        all.half.sort();
        all.invalid.sort();
        all
    }

    /// The windows written for exactly this pattern.
    pub fn window_set(&self, account: Pattern<AccountId>, symbol: Pattern<Symbol>) -> WindowSet {
        self.read_windows(account, symbol, &mut Vec::new())
    }

    /// The patterns for which windows are written, ordered.
    pub fn window_patterns(&self) -> Vec<(Pattern<AccountId>, Pattern<Symbol>)> {
        let mut patterns: Vec<_> = self
            .tree
            .keys()
            .filter_map(|slot| match slot {
                Slot::Window(account, symbol, ..) => Some((*account, *symbol)),
                _ => None,
            })
            .collect();
        patterns.dedup();
        patterns
    }

    fn read_windows(
        &self,
        account: Pattern<AccountId>,
        symbol: Pattern<Symbol>,
        problems: &mut Vec<Problem>,
    ) -> WindowSet {
        let known = matches!(account, Pattern::Any) || self.accounts.keys().any(|a| account.matches(*a));
        let effect = if known { Effect::Blocks } else { Effect::Ignored };
        let mut ids: BTreeMap<&str, WindowDraft<'_>> = BTreeMap::new();
        let mut set = WindowSet::default();
        let first = Slot::Window(account, symbol, "".into(), WindowField::Start);
        for (slot, entries) in self.tree.range(first..) {
            let (id, field) = match slot {
                Slot::Window(a, s, id, field) if (a, s) == (&account, &symbol) => (id, field),
                _ => break,
            };
            let draft = ids.entry(id).or_default();
            let entry = &entries[0];
            match read_one(entries, effect, |text| value::window(field, text)) {
                Ok(WindowValue::Active) => set.active = true,
                Ok(WindowValue::Time(time)) if *field == WindowField::Start => draft.start = Some((entry, Some(time))),
                Ok(WindowValue::Time(time)) => draft.end = Some((entry, Some(time))),
                Ok(WindowValue::Seconds(seconds)) if *field == WindowField::PreBuffer => {
                    draft.pre = Some((entry, seconds));
                }
                Ok(WindowValue::Seconds(seconds)) => draft.post = Some((entry, seconds)),
                Err(problem) => {
                    match field {
                        WindowField::Start => draft.start = Some((entry, None)),
                        WindowField::End => draft.end = Some((entry, None)),
                        _ => (),
                    }
                    draft.bad = true;
                    set.invalid.push(problem.detail());
                    problems.push(problem);
                }
            }
        }
        for draft in ids.values() {
            match (draft.start, draft.end) {
                (Some((from, Some(start))), Some((to, Some(end)))) if start >= end => {
                    let why = format!("{} is not before the end {}", quoted(&from.text), quoted(&to.text));
                    let problem = from.problem(why, effect);
                    set.invalid.push(problem.detail());
                    problems.push(problem);
                }
                // A window with a bad buffer blocks its pairs already, and its edges would be wrong ones.
                (Some((_, Some(start))), Some((_, Some(end)))) if !draft.bad => set.windows.push(Window {
                    start,
                    end,
                    pre_buffer_sec: draft.pre.map_or(0, |(_, seconds)| seconds),
                    post_buffer_sec: draft.post.map_or(0, |(_, seconds)| seconds),
                }),
                (Some((entry, _)), None) | (None, Some((entry, _))) => {
                    let why = if draft.start.is_some() { "a start without an end" } else { "an end without a start" };
                    let problem = entry.problem(why, effect);
                    set.half.push(problem.detail());
                    problems.push(problem);
                }
                (None, None) => {
                    for (entry, _) in [draft.pre, draft.post].into_iter().flatten() {
                        problems.push(entry.problem("a buffer without a window", Effect::Ignored));
                    }
                }
                _ => (),
            }
        }
        set.windows.sort();
        set.half.sort();
        set.invalid.sort();
        set
    }

    /// The strategies that can run.
    pub fn strategies(&self) -> &BTreeMap<StrategyId, Arc<Strategy>> {
        &self.strategies
    }

    fn read_strategy(&self, id: StrategyId) -> Option<Result<Strategy, Problem>> {
        let entries = self.tree.get(&Slot::Strategy(id))?;
        Some(read_one(entries, Effect::Absent, |text| self.parse_strategy(id, text)))
    }

    fn parse_strategy(&self, id: StrategyId, text: &str) -> Result<Strategy, String> {
        let strategy = parse_strategy(id, text).map_err(|e| e.to_string())?;
        self.has_bars("timeframe", strategy.timeframe)?;
        Ok(strategy)
    }

    fn has_bars(&self, parameter: &str, timeframe: Timeframe) -> Result<(), String> {
        match &self.timeframes {
            Some(known) if !known.contains(&timeframe) => {
                let known: Vec<String> = known.iter().map(Timeframe::to_string).collect();
                Err(format!("{parameter}: there are no bars of {timeframe}; known: {}", known.join(", ")))
            }
            _ => Ok(()),
        }
    }

    /// The instruments: those of the start, with what the tree says over them.
    pub fn instruments(&self) -> &Instruments {
        &self.instruments
    }

    fn read_instrument(&self, symbol: Pattern<Symbol>) -> Option<Result<Instrument, Problem>> {
        let entries = self.tree.get(&Slot::Instrument(symbol))?;
        Some(read_one(entries, Effect::Kept, |text| self.parse_instrument(symbol, text)))
    }

    /// Reads one instrument again; the default, on which the others rest, means all of them.
    fn refresh_instruments(&mut self, symbol: Pattern<Symbol>) {
        let Pattern::One(symbol) = symbol else {
            let default = self.read_instrument(Pattern::Any).and_then(Result::ok);
            self.instruments.default = default.unwrap_or(self.initial.default);
            let written = self.tree.range(Slot::Instrument(Pattern::Any)..).map_while(|(slot, _)| match slot {
                Slot::Instrument(symbol) => Some(*symbol),
                _ => None,
            });
            for symbol in written.collect::<Vec<_>>() {
                if symbol != Pattern::Any {
                    self.refresh_instruments(symbol);
                }
            }
            return;
        };
        let read = self.read_instrument(Pattern::One(symbol)).and_then(Result::ok);
        match read.or_else(|| self.initial.by_symbol.get(&symbol).copied()) {
            Some(instrument) => self.instruments.by_symbol.insert(symbol, instrument),
            None => self.instruments.by_symbol.remove(&symbol),
        };
    }

    fn parse_instrument(&self, symbol: Pattern<Symbol>, text: &str) -> Result<Instrument, String> {
        let spec: InstrumentSpec = serde_json::from_str(text).map_err(|e| format!("json: {e}"))?;
        let (base, initial) = match symbol {
            Pattern::Any => (&self.initial.default, &self.initial.default),
            Pattern::One(symbol) => (&self.instruments.default, self.initial.get(symbol)),
        };
        let instrument = spec.over(base).map_err(|e| e.to_string())?;
        self.has_bars("decision_timeframe", instrument.decision_timeframe)?;
        if instrument.same_data(initial) {
            return Ok(instrument);
        }
        let field = if instrument.scale != initial.scale {
            "scale"
        } else if instrument.price_source != initial.price_source {
            "price_source"
        } else {
            "allow_negative"
        };
        Err(format!("{field}: changes only at a rebuild, not while running"))
    }

    /// Everything that is wrong now, ordered by key.
    pub fn problems(&self) -> Vec<Problem> {
        let mut all: BTreeSet<Problem> = BTreeSet::new();
        let mut strangers: BTreeSet<AccountId> = BTreeSet::new();
        for account in self.accounts.keys() {
            all.extend(self.read_policy(*account).1);
        }
        for list in [&self.master, &self.slave] {
            all.extend(list.unreadable.clone());
        }
        let blocking: BTreeSet<String> = all.iter().map(|p| p.key.clone()).collect();
        let mut windows = Vec::new();
        for (account, symbol) in self.window_patterns() {
            self.read_windows(account, symbol, &mut windows);
        }
        all.extend(windows);
        for (slot, entries) in &self.tree {
            let entry = &entries[0];
            let mut ignored = |entry: &Entry, why: &str| all.insert(entry.problem(why, Effect::Ignored));
            let stranger = match slot {
                Slot::Policy(Pattern::One(a), _) | Slot::Window(Pattern::One(a), ..) => {
                    (!self.accounts.contains_key(a) && strangers.insert(*a)).then_some(*a)
                }
                _ => None,
            };
            if let Some(account) = stranger {
                ignored(entry, &format!("{account} is neither a master nor a slave account"));
            }
            match slot {
                Slot::MasterAccounts | Slot::SlaveAccounts => {
                    let names = read_one(entries, Effect::Blocks, value::accounts).unwrap_or_default();
                    for why in names.1 {
                        ignored(entry, &why);
                    }
                    if *slot == Slot::SlaveAccounts {
                        for name in names.0.iter().filter(|name| self.master.names.contains(name)) {
                            if self.master.present {
                                ignored(entry, &format!("{name} is a master account too, and counts as one"));
                            }
                        }
                    }
                }
                Slot::TradingEnabled if !matches!(&*entry.text, "true" | "false") => {
                    let why = format!("{} is not true: the kill switch is on", quoted(&entry.text));
                    all.insert(entry.problem(why, Effect::Blocks));
                }
                // A bad value that blocks somebody has been listed; this one applies to nobody.
                Slot::Policy(_, field) if !blocking.contains(&*entry.key) => {
                    if let Err(problem) = read_one(entries, Effect::Ignored, |text| value::policy(field, text)) {
                        all.insert(problem);
                    }
                }
                Slot::Strategy(id) => all.extend(self.read_strategy(*id).and_then(Result::err)),
                Slot::Instrument(symbol) => all.extend(self.read_instrument(*symbol).and_then(Result::err)),
                Slot::Unknown(_, why) => {
                    ignored(entry, why);
                }
                _ => (),
            }
        }
        all.into_iter().collect()
    }

    /// Whether `value` may stand under `key`, seen alone (not: whether a window's start is before its end).
    pub fn validate(&self, key: &str, value: &str) -> Result<(), String> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(format!("{} bytes are more than {MAX_VALUE_BYTES}", value.len()));
        }
        match Slot::read(key) {
            Slot::MasterAccounts | Slot::SlaveAccounts => match value::accounts(value)?.1.first() {
                Some(why) => Err(why.clone()),
                None => Ok(()),
            },
            Slot::TradingEnabled if matches!(value, "true" | "false") => Ok(()),
            Slot::TradingEnabled => Err(format!("{} is neither true nor false", quoted(value))),
            Slot::Policy(_, field) => value::policy(&field, value).map(drop),
            Slot::Window(_, _, _, field) => value::window(&field, value).map(drop),
            Slot::Strategy(id) => self.parse_strategy(id, value).map(drop),
            Slot::Instrument(symbol) => self.parse_instrument(symbol, value).map(drop),
            Slot::Unknown(_, why) => Err(why.into_string()),
        }
    }
}

/// A window while its keys are gathered: the entries, and what could be read of them.
#[derive(Default)]
struct WindowDraft<'a> {
    start: Option<(&'a Entry, Option<i64>)>,
    end: Option<(&'a Entry, Option<i64>)>,
    pre: Option<(&'a Entry, u32)>,
    post: Option<(&'a Entry, u32)>,
    bad: bool,
}

/// A policy while its keys are gathered.
#[derive(Default)]
struct Draft {
    /// Written, readable or not: what is unreadable is not missing too.
    max_spread_written: bool,
    risk_written: bool,
    max_spread: Option<Amount>,
    risk_per_trade: Option<Amount>,
    risk_fixed: Option<Amount>,
    max_slippage: Option<Amount>,
    max_drawdown_pct: Option<Amount>,
    sl_offset: Option<Amount>,
    tp_offset: Option<Amount>,
    catastrophic_sl: Option<Amount>,
    max_delay_ms: Option<i64>,
    max_quote_age_ms: Option<i64>,
    enabled: Option<bool>,
    copy_sl_tp: Option<bool>,
    allow_short: Option<bool>,
}

impl Draft {
    fn set(&mut self, field: &PolicyField, value: Option<PolicyValue>) {
        let amount = || match value {
            Some(PolicyValue::Amount(amount)) => Some(amount),
            _ => None,
        };
        let millis = || match value {
            Some(PolicyValue::Millis(millis)) => Some(millis),
            _ => None,
        };
        let switch = || match value {
            Some(PolicyValue::Switch(switch)) => Some(switch),
            _ => None,
        };
        match field {
            PolicyField::MaxSpread => (self.max_spread_written, self.max_spread) = (true, amount()),
            PolicyField::RiskPerTrade => (self.risk_written, self.risk_per_trade) = (true, amount()),
            PolicyField::RiskFixed => (self.risk_written, self.risk_fixed) = (true, amount()),
            PolicyField::MaxSlippage => self.max_slippage = amount(),
            PolicyField::MaxDrawdown => self.max_drawdown_pct = amount(),
            PolicyField::SlOffset => self.sl_offset = amount(),
            PolicyField::TpOffset => self.tp_offset = amount(),
            PolicyField::CatastrophicSl => self.catastrophic_sl = amount(),
            PolicyField::MaxDelay => self.max_delay_ms = millis(),
            PolicyField::MaxQuoteAge => self.max_quote_age_ms = millis(),
            PolicyField::Enabled => self.enabled = switch(),
            PolicyField::CopySlTp => self.copy_sl_tp = switch(),
            PolicyField::AllowShort => self.allow_short = switch(),
            PolicyField::Unknown(_) => (),
        }
    }

    /// The policy; where a required key is missing, a problem that names it.
    fn finish(self, account: AccountId, problems: &mut Vec<Problem>) -> Option<Policy> {
        let mut missing = |field: &str, why: &str| {
            let key = format!("/echo/policy/{}/{field}", encode_segment(account.as_str()));
            let why = why.to_owned();
            problems.push(Problem { key, revision: 0, value: String::new(), why, effect: Effect::Blocks });
        };
        if !self.max_spread_written {
            missing("max_spread", "missing");
        }
        if !self.risk_written {
            missing("risk_per_trade", "missing, and so is risk_fixed");
        }
        let risk = match (self.risk_fixed, self.risk_per_trade) {
            (Some(money), _) => Risk::Fixed(money),
            (None, Some(percent)) => Risk::Percent(percent),
            (None, None) => return None,
        };
        Some(Policy {
            enabled: self.enabled.unwrap_or(true),
            max_spread: self.max_spread?,
            max_slippage: self.max_slippage,
            max_delay_ms: self.max_delay_ms,
            max_quote_age_ms: self.max_quote_age_ms.unwrap_or(DEFAULT_MAX_QUOTE_AGE_MS),
            copy_sl_tp: self.copy_sl_tp.unwrap_or(true),
            risk,
            max_drawdown_pct: self.max_drawdown_pct,
            sl_offset: self.sl_offset.unwrap_or_default(),
            tp_offset: self.tp_offset.unwrap_or_default(),
            catastrophic_sl: self.catastrophic_sl,
            allow_short: self.allow_short.unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests;
