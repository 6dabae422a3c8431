//! The kernel: the loop over ticks, and what an epoch gives.

use super::bucket::{Edit, UNTOUCHED};
use super::hot::{Columns, Hot};
use super::log::{Key, QuoteTick, Trade};
use super::names::SymbolIndex;
use super::retained::{MOST, NOT_MINE};
use super::shared::{Outcome, Shared, Touched};
use super::symbol::SymbolState;
use super::{BarUpsert, BarsOutput, QuoteUpdate};
use crate::scan::owner;
use marea_model::ticks::RowKind;
use marea_model::{Event, Instruments, Nanos, Price, Progress, Sealed, Size, Symbol, TickSlice, Ticks, Timeframe};
use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

/// The kernel: ticks in, bars, latest quotes, dead letters and counts out.
pub struct Bars {
    /// This worker, of so many: the symbols that it owns.
    index: usize,
    peers: usize,
    names: SymbolIndex,
    hot: Vec<Hot>,
    pub(super) symbols: Vec<SymbolState>,
    /// Of the batch that was read last: the number of each code of its dictionary.
    batch: Option<Arc<Ticks>>,
    numbers: Arc<[u32]>,
    /// Of the rows that are being read, those of this worker, where there are others.
    mine: Vec<u16>,
    /// Symbols with appended trades.
    active: Vec<u32>,
    pub(super) shared: Shared,
}

impl Bars {
    /// No tick seen yet. Price source and scale of a symbol are those of its first record, for ever.
    pub fn new(instruments: Arc<Instruments>, base: Timeframe) -> Self {
        Bars {
            index: 0,
            peers: 1,
            names: SymbolIndex::default(),
            hot: Vec::new(),
            symbols: Vec::new(),
            batch: None,
            numbers: Arc::from([]),
            mine: Vec::new(),
            active: Vec::new(),
            shared: Shared::new(instruments, base),
        }
    }

    /// The same, for worker `index` of `peers`: ticks of symbols that others own are passed over.
    pub fn of_worker(self, index: usize, peers: usize) -> Self {
        let mut bars = Bars { index, peers, ..self };
        bars.shared.retained.set_peers(peers);
        bars
    }

    /// Takes in an epoch: all its ticks, then how far the input has come at its end.
    pub fn epoch(&mut self, ticks: &[TickSlice], progress: Option<Progress>) -> BarsOutput {
        for slice in ticks {
            self.read(slice);
        }
        if let Some(progress) = progress {
            self.shared.sealed_through = self.shared.sealed_through.max(progress.sealed_through);
        }
        self.seal();
        self.output()
    }

    /// Bytes of the ticks that have not sealed. Costs a look at each symbol's chunks.
    pub fn bytes(&self) -> usize {
        let logs: usize = self.symbols.iter().map(|state| state.trades.bytes() + state.quotes.bytes()).sum();
        logs + self.shared.retained.bytes()
    }

    /// Takes over what has sealed before this process: before the first epoch, whose ticks are then those of bars that have
    /// not.
    pub fn restore(&mut self, sealed: &Sealed, sealed_through: Nanos) {
        self.shared.sealed_through = sealed_through;
        for (symbol, open_time, body) in &sealed.bars {
            if let Some((state, shared)) = self.number(*symbol) {
                state.appear(shared);
                // By open time: the last one stays. What is read once more comes after it.
                state.last_price = Some(body.close);
                shared.sealed.push(BarUpsert { symbol: *symbol, open_time: *open_time, body: Some(*body) });
            }
        }
        for (symbol, quote) in &sealed.quotes {
            if let Some((state, shared)) = self.number(*symbol) {
                state.quote = *quote;
                state.appear(shared);
            }
        }
        for tick in &sealed.amends {
            let Event::Amend(amend) = &tick.event else { continue };
            if let Some((state, shared)) = self.number(tick.symbol) {
                state.appear(shared);
                let amended = state.amends.entry(tick.event_time).or_default();
                amended.known.insert((**amend).clone());
                amended.given = Some(amended.body());
            }
        }
    }

    /// The state of a symbol, if it is this worker's.
    fn number(&mut self, symbol: Symbol) -> Option<(&mut SymbolState, &mut Shared)> {
        if owner(symbol, self.peers) != self.index {
            return None;
        }
        let number = self.names.number(symbol);
        if number == self.symbols.len() {
            let (hot, state) = SymbolState::new(number, symbol, &self.shared.instruments);
            self.hot.push(hot);
            self.symbols.push(state);
            self.shared.known = self.symbols.len();
        }
        Some((&mut self.symbols[number], &mut self.shared))
    }

    fn number_symbols(&mut self, ticks: &Arc<Ticks>) {
        if self.batch.as_ref().is_some_and(|batch| Arc::ptr_eq(batch, ticks)) {
            return;
        }
        let mut numbers = Vec::with_capacity(ticks.symbols().len());
        for symbol in ticks.symbols() {
            numbers.push(self.number(*symbol).map_or(NOT_MINE, |(state, _)| state.number));
        }
        self.numbers = numbers.into();
        self.batch = Some(Arc::clone(ticks));
    }

    fn read(&mut self, slice: &TickSlice) {
        self.number_symbols(&slice.ticks);
        for from in slice.rows.clone().step_by(MOST) {
            let rows = from..slice.rows.end.min(from + MOST);
            self.shared.retained.begin(&slice.ticks, rows.clone(), &self.numbers);
            let Read { passed, greatest } = match slice.ticks.all_trades() {
                true => self.rows::<true>(&slice.ticks, rows.clone()),
                false => self.rows::<false>(&slice.ticks, rows.clone()),
            };
            self.shared.retained.advance(&slice.ticks, rows.end, &self.numbers);
            self.shared.retained.end(rows.len(), passed, greatest);
            let columns = Columns::of(&slice.ticks);
            for number in &self.active {
                let (symbol, hot) = (&mut self.symbols[*number as usize], &mut self.hot[*number as usize]);
                hot.settle(&columns);
                symbol.fold(hot, &mut self.shared);
            }
        }
    }

    /// Reads some rows.
    fn rows<const TRADES: bool>(&mut self, ticks: &Ticks, rows: Range<usize>) -> Read {
        if self.peers == 1 {
            return self.chosen::<TRADES>(ticks, rows.clone(), 0..rows.len());
        }
        let mut mine = std::mem::take(&mut self.mine);
        choose(&mut mine, &ticks.codes()[rows.clone()], &self.numbers);
        let read = self.chosen::<TRADES>(ticks, rows, mine.iter().map(|row| usize::from(*row)));
        self.mine = mine;
        read
    }

    /// The same of some of the rows, all of which are of symbols that this worker owns.
    fn chosen<const TRADES: bool>(
        &mut self,
        ticks: &Ticks,
        rows: Range<usize>,
        mut chosen: impl Iterator<Item = usize>,
    ) -> Read {
        let numbers = Arc::clone(&self.numbers);
        let (columns, part) = (Columns::of(ticks), Part::of(ticks, rows.clone(), &numbers));
        // Out of `self`, so that they are known to stay where they are.
        let mut hots = std::mem::take(&mut self.hot);
        let mut read = Read { passed: 0, greatest: Nanos::MIN };
        while let Some(row) = part.add::<TRADES>(&mut hots, &mut chosen, &mut read.greatest) {
            let number = numbers[part.codes[row] as usize];
            let Some(hot) = hots.get_mut(number as usize) else { continue };
            let (row, time) = (rows.start + row, part.times[row]);
            hot.settle(&columns);
            if ticks.kind(row) == RowKind::Trade && self.judge(row, columns.trade(row), number, hot) {
                read.greatest = read.greatest.max(time);
            } else {
                self.row(ticks, row, number, hot);
                read.passed += 1;
            }
        }
        self.hot = hots;
        read
    }

    /// Adds a trade that is in order after all: by its seq, in another bucket, or at a price that has moved. Whether it is.
    #[inline(never)]
    fn judge(&mut self, row: usize, trade: Trade, number: u32, hot: &mut Hot) -> bool {
        if hot.append(row, trade) {
            return true;
        }
        let begins = self.symbols[number as usize].open(hot, &mut self.shared, trade);
        if begins && !std::mem::replace(&mut hot.active, true) {
            self.active.push(number);
        }
        begins
    }

    /// A row that is not just a trade in order.
    #[inline(never)]
    fn row(&mut self, ticks: &Ticks, row: usize, number: u32, hot: &mut Hot) {
        let symbol = &mut self.symbols[number as usize];
        let shared = &mut self.shared;
        shared.retained.advance(ticks, row, &self.numbers);
        let key = Key { event_time: ticks.event_times()[row], seq: ticks.seqs()[row] };
        let (first, second) = (ticks.firsts()[row], ticks.seconds()[row]);
        let outcome = match ticks.kind(row) {
            RowKind::Quote => {
                let (bid_size, ask_size) = ticks.quote_sizes(row);
                symbol.quote(hot, shared, QuoteTick { key, bid: Price(first), ask: Price(second), bid_size, ask_size })
            }
            RowKind::Trade => {
                symbol.fold(hot, shared);
                symbol.trade(hot, shared, Trade { key, price: Price(first), size: Size(second) })
            }
            RowKind::Edit => {
                symbol.fold(hot, shared);
                let cursor = ticks.cursor(row);
                match ticks.event(row) {
                    Event::Correction { rev, price, size } => {
                        symbol.edit(shared, key, Edit::Correction { rev, price, size }, cursor)
                    }
                    Event::Amend(amend) => symbol.amend(shared, key.event_time, &amend),
                    _ => symbol.edit(shared, key, Edit::Bust, cursor),
                }
            }
        };
        shared.retained.pass();
        match outcome {
            Outcome::Accepted => shared.counts.accepted += 1,
            other => shared.count(other, ticks.cursor(row), || ticks.tick(row)),
        }
    }

    fn seal(&mut self) {
        let through = self.shared.sealed_through;
        while let Some(Reverse((at, number))) =
            self.shared.timers.peek().copied().filter(|Reverse((at, _))| *at <= through)
        {
            self.shared.timers.pop();
            let symbol = &mut self.symbols[number as usize];
            if symbol.due == at {
                symbol.seal(&mut self.shared);
            }
        }
        if through == Nanos::MIN {
            return;
        }
        let Shared { retained, base, trades, .. } = &mut self.shared;
        retained.free_before(base.open_time(through));
        let symbols = &mut self.symbols;
        let mut keep = |number: u32, trade: Trade| symbols[number as usize].keep(*base, trade, trades);
        while retained.give_up(&mut keep) {}
    }

    fn output(&mut self) -> BarsOutput {
        let shared = &mut self.shared;
        let mut bars = std::mem::take(&mut shared.sealed);
        let appended = self.active.len() + std::mem::take(&mut shared.opened);
        bars.reserve(appended + shared.touched.len() + shared.amended.len());
        for number in self.active.drain(..) {
            self.hot[number as usize].active = false;
            self.symbols[number as usize].give_appended(&mut bars);
        }
        let mut touched = std::mem::take(&mut shared.touched);
        for Touched { symbol: number, open_time, before, sealed } in touched.drain(..) {
            let symbol = &mut self.symbols[number as usize];
            let body = match sealed {
                Some(body) => body,
                None => {
                    let newest = symbol.buckets.len().wrapping_sub(1);
                    let i = match symbol.buckets.get(newest) {
                        Some(bucket) if bucket.open_time == open_time => newest,
                        _ => symbol.buckets.partition_point(|bucket| bucket.open_time < open_time),
                    };
                    let bucket = &mut symbol.buckets[i];
                    bucket.touched = UNTOUCHED;
                    symbol.settle(i, shared);
                    symbol.buckets[i].standing()
                }
            };
            if body != before {
                bars.push(BarUpsert { symbol: symbol.symbol, open_time, body });
            }
        }
        shared.touched = touched;
        for (symbol, open_time) in std::mem::take(&mut shared.amended) {
            let symbol = &mut self.symbols[symbol as usize];
            if let Some(amended) = symbol.amends.get_mut(&open_time) {
                amended.queued = false;
                let body = amended.body();
                if amended.given.replace(body) != Some(body) {
                    bars.push(BarUpsert { symbol: symbol.symbol, open_time, body });
                }
            }
        }
        let mut quotes = Vec::with_capacity(shared.quoted.len());
        for number in shared.quoted.drain(..) {
            let symbol = &mut self.symbols[number as usize];
            symbol.quoted = false;
            quotes.push(QuoteUpdate { symbol: symbol.symbol, quote: symbol.quote });
        }
        let mut dead = std::mem::take(&mut shared.dead);
        dead.sort_unstable();
        BarsOutput { bars, quotes, dead, counts: std::mem::take(&mut shared.counts) }
    }
}

/// What some rows were.
struct Read {
    /// How many were more than trades in order.
    passed: usize,
    /// The greatest event time of the others.
    greatest: Nanos,
}

/// What the loop over ticks reads of some rows.
struct Part<'a> {
    /// The first of them.
    from: usize,
    numbers: &'a [u32],
    codes: &'a [u32],
    /// Empty where all are trades.
    kinds: &'a [RowKind],
    times: &'a [Nanos],
    firsts: &'a [i64],
    seconds: &'a [i64],
}

impl<'a> Part<'a> {
    fn of(ticks: &'a Ticks, rows: Range<usize>, numbers: &'a [u32]) -> Self {
        Part {
            from: rows.start,
            numbers,
            codes: &ticks.codes()[rows.clone()],
            kinds: if ticks.all_trades() { &[] } else { &ticks.kinds()[rows.clone()] },
            times: &ticks.event_times()[rows.clone()],
            firsts: &ticks.firsts()[rows.clone()],
            seconds: &ticks.seconds()[rows],
        }
    }

    /// Adds trades that can simply be added. The first row that is not such a one.
    /// A function of its own, so that all that it needs has a register.
    #[inline(never)]
    fn add<const TRADES: bool>(
        &self,
        hots: &mut [Hot],
        rows: &mut impl Iterator<Item = usize>,
        greatest: &mut Nanos,
    ) -> Option<usize> {
        let Part { from, numbers, codes, kinds, times, firsts, seconds } = *self;
        let n = codes.len();
        let (times, firsts, seconds) = (&times[..n], &firsts[..n], &seconds[..n]);
        let mut latest = *greatest;
        let found = rows.find(|row| {
            let row = *row;
            let (time, first, second) = (times[row], firsts[row], seconds[row]);
            let Some(hot) = hots.get_mut(numbers[codes[row] as usize] as usize) else { return true };
            let adds = (TRADES || kinds[row] == RowKind::Trade) && hot.takes(time, first, second);
            if adds {
                hot.add(from + row, time, first, second);
                latest = latest.max(time);
            }
            !adds
        });
        *greatest = latest;
        found
    }
}

/// The rows of symbols that this worker owns. Whose the next row is cannot be guessed, hence without a branch.
fn choose(mine: &mut Vec<u16>, codes: &[u32], numbers: &[u32]) {
    mine.resize(codes.len(), 0);
    let mut count = 0;
    for (row, code) in codes.iter().enumerate() {
        mine[count] = row as u16;
        count += usize::from(numbers[*code as usize] != NOT_MINE);
    }
    mine.truncate(count);
}
