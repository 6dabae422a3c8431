use super::*;
use marea_model::{
    Amend, Cursor, Event, Instrument, Instruments, Partition, Price, PriceSource, Progress, Record, Sealed, Size, Tick,
    Ticks, Timeframe,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const S: Nanos = 1_000_000_000;
/// A minute, so that nothing here depends on 1970 being the origin.
const T0: Nanos = 1_381_152_600 * S;

fn instruments() -> Arc<Instruments> {
    let of = |source| Instrument { scale: 2, tick_size: Price(1), price_source: source, ..Instrument::default() };
    let mut instruments = Instruments { default: of(PriceSource::Last), ..Instruments::default() };
    for (symbol, source) in [("MID", PriceSource::Mid), ("BID", PriceSource::Bid)] {
        instruments.by_symbol.insert(Symbol::new(symbol).unwrap(), of(source));
    }
    Arc::new(instruments)
}

/// A kernel, and what its output amounts to.
struct Desk {
    bars: Bars,
    offset: u64,
    state: BTreeMap<(Symbol, Nanos), BarBody>,
    quotes: BTreeMap<Symbol, Option<Quote>>,
    records: i64,
    total: Counts,
}

impl Desk {
    fn new() -> Self {
        Desk {
            bars: Bars::new(instruments(), Timeframe::S1),
            offset: 0,
            state: BTreeMap::new(),
            quotes: BTreeMap::new(),
            records: 0,
            total: Counts::default(),
        }
    }

    fn epoch(&mut self, ticks: Vec<Tick>, sealed_through: Option<Nanos>) -> BarsOutput {
        let partition = Partition::new("test").unwrap();
        let records: Vec<Record> = ticks
            .into_iter()
            .map(|tick| {
                self.offset += 1;
                Record { cursor: Cursor { partition, offset: self.offset, row: 0 }, tick }
            })
            .collect();
        self.records += records.len() as i64;
        let progress = sealed_through.map(|sealed_through| Progress { sealed_through, closed_through: sealed_through });
        let records: Ticks = records.into_iter().collect();
        let output = self.bars.epoch(&[records.into()], progress);

        self.total.accepted += output.counts.accepted;
        self.total.duplicate += output.counts.duplicate;
        self.total.dead += output.counts.dead;
        self.total.held += output.counts.held;
        let Counts { accepted, duplicate, dead, held, .. } = self.total;
        assert_eq!(self.records, accepted + duplicate + dead + held, "{:?}", self.total);
        assert!(held >= 0 && output.dead.len() as i64 == output.counts.dead, "{:?}", output.counts);
        assert!(output.dead.is_sorted_by_key(|d| d.cursor));

        let mut keys: Vec<_> = output.bars.iter().map(|b| (b.symbol, b.open_time)).collect();
        keys.sort_unstable();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]), "a bar twice in an epoch: {keys:?}");
        for bar in &output.bars {
            match bar.body {
                Some(body) => self.state.insert((bar.symbol, bar.open_time), body),
                None => self.state.remove(&(bar.symbol, bar.open_time)),
            };
        }
        for update in &output.quotes {
            let old = self.quotes.insert(update.symbol, update.quote);
            assert_ne!(old, Some(update.quote), "a quote that says nothing new");
        }
        output
    }

    /// "open/high/low/close volume count" of a bar.
    fn bar(&self, symbol: &str, second: i64) -> String {
        let Some(b) = self.state.get(&(Symbol::new(symbol).unwrap(), T0 + second * S)) else { return "none".into() };
        format!("{}/{}/{}/{} {} {}", b.open.0, b.high.0, b.low.0, b.close.0, b.volume, b.count)
    }
}

fn tick(symbol: &str, milli: i64, seq: u64, event: Event) -> Tick {
    Tick { symbol: Symbol::new(symbol).unwrap(), event_time: T0 + milli * 1_000_000, seq, event }
}
fn trade(milli: i64, seq: u64, price: i64, size: i64) -> Tick {
    tick("IBM", milli, seq, Event::Trade { price: Price(price), size: Size(size) })
}
fn quote(symbol: &str, milli: i64, seq: u64, bid: i64, ask: i64) -> Tick {
    let (bid_size, ask_size) = (Size(1), Size(2));
    tick(symbol, milli, seq, Event::Quote { bid: Price(bid), ask: Price(ask), bid_size, ask_size })
}
fn bust(milli: i64, seq: u64) -> Tick {
    tick("IBM", milli, seq, Event::Bust)
}
fn correction(milli: i64, seq: u64, rev: u32, price: i64, size: i64) -> Tick {
    tick("IBM", milli, seq, Event::Correction { rev, price: Price(price), size: Size(size) })
}
fn amend(second: i64, rev: u32, price: Option<i64>) -> Tick {
    let bar = price.map(|p| BarBody::first(Price(p), Size(1)));
    tick("IBM", second * 1000, 0, Event::Amend(Box::new(Amend { rev, bar })))
}

/// One step: what arrives, up to which second it seals then, the bar of second 0 after it, and what the epoch counted.
type Step<'a> = (Vec<Tick>, i64, &'a str, (i64, i64, i64, i64));

fn run(steps: Vec<Step>) -> (Desk, Vec<DeadLetter>) {
    let (mut desk, mut dead) = (Desk::new(), Vec::new());
    for (i, (ticks, sealed, bar, (accepted, duplicate, refused, held))) in steps.into_iter().enumerate() {
        let output = desk.epoch(ticks, Some(T0 + sealed * S));
        assert_eq!(desk.bar("IBM", 0), bar, "step {i}");
        let price_jumps = output.counts.price_jumps;
        assert_eq!(output.counts, Counts { accepted, duplicate, dead: refused, held, price_jumps }, "step {i}");
        dead.extend(output.dead);
    }
    (desk, dead)
}

fn reasons(dead: &[DeadLetter]) -> Vec<String> {
    dead.iter().map(|d| format!("{} {} {}={}: {}", d.cursor.offset, d.reason, d.field, d.value, d.detail)).collect()
}

#[test]
fn trades_make_a_bar() {
    let mut desk = Desk::new();
    assert_eq!(desk.epoch(vec![], None), BarsOutput::default());
    let output = desk.epoch(vec![trade(0, 1, 500, 3), trade(10, 1, 700, 1), trade(999, 1, 400, 2)], None);
    let body = BarBody { turnover: 500 * 3 + 700 + 400 * 2, ..output.bars[0].body.unwrap() };
    assert_eq!(output.bars, [BarUpsert { symbol: Symbol::new("IBM").unwrap(), open_time: T0, body: Some(body) }]);
    assert_eq!(desk.bar("IBM", 0), "500/700/400/400 6 3");
    assert_eq!(desk.bar("IBM", 1), "none");
    // Another bar; the first is not given again.
    assert_eq!(desk.epoch(vec![trade(1000, 1, 450, 1)], None).bars.len(), 1);
    assert_eq!(desk.bar("IBM", 1), "450/450/450/450 1 1");
}

#[test]
fn open_and_close_are_by_event_time_and_seq() {
    run(vec![
        (vec![trade(500, 5, 10, 1)], 0, "10/10/10/10 1 1", (1, 0, 0, 0)),
        (vec![trade(500, 4, 20, 1)], 0, "20/20/10/10 2 2", (1, 0, 0, 0)),
        (vec![trade(500, 6, 30, 1), trade(499, 9, 5, 1)], 0, "5/30/5/30 4 4", (2, 0, 0, 0)),
        // Late, in the middle: neither open nor close.
        (vec![trade(500, 5, 10, 1), trade(499, 10, 40, 1)], 0, "5/40/5/30 5 5", (1, 1, 0, 0)),
    ]);
}

#[test]
fn a_busted_trade_never_was() {
    run(vec![
        (vec![trade(0, 1, 10, 1), trade(1, 1, 90, 1), trade(2, 1, 20, 1)], 0, "10/90/10/20 3 3", (3, 0, 0, 0)),
        (vec![bust(1, 1)], 0, "10/20/10/20 2 2", (1, 0, 0, 0)),
        (vec![bust(1, 1)], 0, "10/20/10/20 2 2", (0, 1, 0, 0)),
        // A bust absorbs; the correction counts, without effect.
        (vec![correction(1, 1, 9, 50, 1)], 0, "10/20/10/20 2 2", (1, 0, 0, 0)),
        (vec![correction(1, 1, 9, 50, 1)], 0, "10/20/10/20 2 2", (0, 1, 0, 0)),
        // The trade again is still known.
        (vec![trade(1, 1, 90, 1)], 0, "10/20/10/20 2 2", (0, 1, 0, 0)),
        // Late, before and after the hole, then all gone, then one again.
        (vec![trade(0, 5, 3, 1), trade(1, 5, 99, 1)], 0, "10/99/3/20 4 4", (2, 0, 0, 0)),
        (vec![bust(0, 1), bust(0, 5), bust(1, 5), bust(2, 1)], 0, "none", (4, 0, 0, 0)),
        (vec![trade(1, 2, 7, 1)], 0, "7/7/7/7 1 1", (1, 0, 0, 0)),
        (vec![trade(3, 2, 8, 1)], 0, "7/8/7/8 2 2", (1, 0, 0, 0)),
    ]);
}

#[test]
fn a_bar_that_comes_and_goes_within_an_epoch_is_not_given() {
    let mut desk = Desk::new();
    assert_eq!(desk.epoch(vec![trade(0, 1, 10, 1), bust(0, 1)], None).bars, []);
    desk.epoch(vec![trade(1, 1, 10, 1)], None);
    assert_eq!(desk.epoch(vec![trade(2, 1, 20, 1), bust(2, 1)], None).bars, []);
}

#[test]
fn the_highest_correction_wins_in_any_order() {
    run(vec![
        (vec![trade(0, 1, 10, 1), trade(1, 1, 20, 1)], 0, "10/20/10/20 2 2", (2, 0, 0, 0)),
        (vec![correction(0, 1, 2, 12, 5)], 0, "12/20/12/20 6 2", (1, 0, 0, 0)),
        // Superseded: counts, without effect; the same again is a duplicate.
        (vec![correction(0, 1, 1, 99, 9)], 0, "12/20/12/20 6 2", (1, 0, 0, 0)),
        (vec![correction(0, 1, 1, 99, 9), correction(0, 1, 2, 12, 5)], 0, "12/20/12/20 6 2", (0, 2, 0, 0)),
        // Equal rev: the greater (price, size).
        (vec![correction(0, 1, 2, 12, 4)], 0, "12/20/12/20 6 2", (1, 0, 0, 0)),
        (vec![correction(0, 1, 2, 13, 1)], 0, "13/20/13/20 2 2", (1, 0, 0, 0)),
    ]);
}

#[test]
fn a_bust_or_correction_waits_for_its_target() {
    run(vec![
        (vec![correction(0, 1, 1, 15, 2), correction(0, 1, 2, 16, 2)], 0, "none", (0, 0, 0, 2)),
        (vec![correction(0, 1, 1, 15, 2)], 0, "none", (0, 1, 0, 0)),
        (vec![trade(1, 1, 20, 1)], 0, "20/20/20/20 1 1", (1, 0, 0, 0)),
        // Its target comes: three records count.
        (vec![trade(0, 1, 10, 1)], 0, "16/20/16/20 3 2", (3, 0, 0, -2)),
        (vec![bust(2, 1), bust(2, 1)], 0, "16/20/16/20 3 2", (0, 1, 0, 1)),
        (vec![trade(2, 1, 10, 1)], 1, "16/20/16/20 3 2", (2, 0, 0, -1)),
    ]);
}

#[test]
fn a_target_that_never_comes_makes_its_busts_dead() {
    let (_, dead) = run(vec![
        (vec![bust(500, 7), correction(500, 7, 1, 10, 1)], 0, "none", (0, 0, 0, 2)),
        // Another one waits beyond.
        (vec![bust(1500, 8)], 0, "none", (0, 0, 0, 1)),
        // 500 ms is before the second 1, although nothing but the time seals.
        (vec![], 1, "none", (0, 0, 2, -2)),
        (vec![], 2, "none", (0, 0, 1, -1)),
        (vec![], 2, "none", (0, 0, 0, 0)),
    ]);
    let expected = [
        "1 unknown_target seq=7: no trade with the event_time and seq of this bust came",
        "2 unknown_target seq=7: no trade with the event_time and seq of this correction came",
        "3 unknown_target seq=8: no trade with the event_time and seq of this bust came",
    ];
    assert_eq!(reasons(&dead), expected);
    let original = String::from_utf8(dead[1].original.clone()).unwrap();
    assert!(original.contains("correction") && original.contains("IBM"), "{original}");
}

#[test]
fn it_waits_exactly_until_its_time_is_sealed() {
    let mut desk = Desk::new();
    desk.epoch(vec![bust(500, 7)], None);
    let at = T0 + S / 2;
    assert_eq!(desk.epoch(vec![], Some(at)).dead, []);
    assert_eq!(desk.epoch(vec![], Some(at + 1)).dead.len(), 1);
}

#[test]
fn one_identity_has_one_payload_over_all_kinds() {
    let (_, dead) = run(vec![
        (vec![trade(0, 1, 10, 1), quote("IBM", 1, 1, 8, 9)], 0, "10/10/10/10 1 1", (2, 0, 0, 0)),
        (vec![trade(0, 1, 10, 1), quote("IBM", 1, 1, 8, 9)], 0, "10/10/10/10 1 1", (0, 2, 0, 0)),
        (
            vec![
                trade(0, 1, 11, 1),
                trade(0, 1, 10, 2),
                quote("IBM", 0, 1, 8, 9),
                trade(1, 1, 10, 1),
                quote("IBM", 1, 1, 8, 10),
            ],
            0,
            "10/10/10/10 1 1",
            (0, 0, 5, 0),
        ),
        // Quotes are not busted, whether they come before or after.
        (vec![bust(1, 1), correction(1, 1, 1, 8, 9)], 0, "10/10/10/10 1 1", (0, 0, 2, 0)),
        (vec![bust(2, 1), correction(2, 1, 1, 8, 9)], 0, "10/10/10/10 1 1", (0, 0, 0, 2)),
        (vec![quote("IBM", 2, 1, 8, 9)], 0, "10/10/10/10 1 1", (1, 0, 2, -2)),
    ]);
    let expected = [
        "5 conflict price=0.11: a trade at another price with this event_time and seq came first",
        "6 conflict size=0.00000002: a trade of another size with this event_time and seq came first",
        "7 conflict kind=quote: a trade with this event_time and seq came first",
        "8 conflict kind=trade: a quote with this event_time and seq came first",
        "9 conflict ask=0.1: a quote that differs with this event_time and seq came first",
        "10 conflict seq=1: the target of this bust is a quote",
        "11 conflict seq=1: the target of this correction is a quote",
        "12 conflict seq=1: the target of this bust is a quote",
        "13 conflict seq=1: the target of this correction is a quote",
    ];
    assert_eq!(reasons(&dead), expected);
}

#[test]
fn an_amend_replaces_a_bar_once_it_seals() {
    run(vec![
        (vec![trade(0, 1, 10, 1), amend(0, 2, Some(50))], 0, "10/10/10/10 1 1", (1, 0, 0, 1)),
        (vec![amend(0, 2, Some(50)), amend(0, 1, Some(60))], 0, "10/10/10/10 1 1", (0, 1, 0, 1)),
        (vec![trade(1, 1, 20, 1)], 1, "50/50/50/50 1 1", (3, 0, 0, -2)),
        // Sealed: at once, if it is higher.
        (vec![amend(0, 1, Some(70))], 1, "50/50/50/50 1 1", (1, 0, 0, 0)),
        (vec![amend(0, 2, Some(50)), amend(0, 1, Some(70))], 1, "50/50/50/50 1 1", (0, 2, 0, 0)),
        (vec![amend(0, 2, Some(51)), amend(0, 2, Some(52))], 1, "52/52/52/52 1 1", (2, 0, 0, 0)),
        (vec![amend(0, 2, None)], 1, "none", (1, 0, 0, 0)),
        (vec![amend(0, 3, Some(5))], 1, "5/5/5/5 1 1", (1, 0, 0, 0)),
    ]);
}

#[test]
fn an_amend_needs_no_ticks() {
    let (mut desk, _) = run(vec![
        (vec![amend(0, 1, Some(50)), amend(1, 1, None)], 0, "none", (0, 0, 0, 2)),
        (vec![], 1, "50/50/50/50 1 1", (1, 0, 0, -1)),
        (vec![amend(-5, 1, Some(40))], 2, "50/50/50/50 1 1", (2, 0, 0, -1)),
    ]);
    assert_eq!((desk.bar("IBM", 1), desk.bar("IBM", -5)), ("none".into(), "40/40/40/40 1 1".into()));
    let output = desk.epoch(vec![tick("IBM", 1, 0, Event::Amend(Box::new(Amend { rev: 1, bar: None })))], None);
    assert_eq!(reasons(&output.dead), ["4 invalid open_time=2013-10-07T13:30:00.001000000Z: no bar of 1s opens then"]);
}

#[test]
fn quotes_make_bars_of_mid_and_bid() {
    let mut desk = Desk::new();
    let on = |symbol, tick: Tick| Tick { symbol: Symbol::new(symbol).unwrap(), ..tick };
    desk.epoch(
        vec![
            quote("MID", 0, 1, 100, 103),
            quote("MID", 2, 1, 90, 91),
            quote("MID", 1, 1, 200, 200),
            on("MID", trade(3, 1, 5, 5)),
            quote("BID", 0, 1, 100, 103),
            quote("IBM", 0, 1, 1, 2),
        ],
        None,
    );
    // Mids have one digit more than the quotes.
    assert_eq!(desk.bar("MID", 0), "1015/2000/905/905 0 3");
    assert_eq!(desk.bar("BID", 0), "100/100/100/100 0 1");
    assert_eq!(desk.bar("IBM", 0), "none");
    // Its trade is a trade, though, and may be busted without effect.
    let output = desk.epoch(vec![on("MID", bust(3, 1)), on("MID", trade(3, 1, 5, 5))], None);
    assert_eq!((output.bars.len(), output.counts.accepted, output.counts.duplicate), (0, 1, 1));
    let output = desk.epoch(vec![quote("MID", 5, 1, i64::MAX, i64::MAX)], None);
    assert_eq!(reasons(&output.dead)[0], "9 overflow ask=92233720368547758.07: a sum of its bar would overflow");
    assert_eq!(output.quotes, []);
}

#[test]
fn the_latest_quote_is_the_greatest_and_given_once_an_epoch() {
    let mut desk = Desk::new();
    let symbol = Symbol::new("IBM").unwrap();
    // A symbol appears.
    let output = desk.epoch(vec![trade(0, 1, 10, 1), trade(0, 2, 10, 1)], None);
    assert_eq!(output.quotes, [QuoteUpdate { symbol, quote: None }]);
    let output = desk.epoch(vec![quote("IBM", 5, 1, 1, 2), quote("IBM", 5, 3, 5, 6), quote("IBM", 5, 2, 3, 4)], None);
    let latest = Quote { event_time: T0 + 5_000_000, seq: 3, bid: Price(5), ask: Price(6) };
    assert_eq!(output.quotes, [QuoteUpdate { symbol, quote: Some(latest) }]);
    // Older ones, and the same again, are no news.
    let output = desk.epoch(vec![quote("IBM", 4, 9, 7, 8), quote("IBM", 5, 3, 5, 6), trade(1, 1, 1, 1)], None);
    assert_eq!(output.quotes, []);
    // Nor does sealing forget it.
    assert_eq!(desk.epoch(vec![quote("IBM", 9000, 1, 1, 1)], Some(T0 + 5 * S)).quotes.len(), 1);
    assert_eq!(desk.epoch(vec![quote("IBM", 6000, 1, 1, 1)], None).quotes, []);
}

#[test]
fn a_held_bust_makes_no_symbol_appear() {
    let mut desk = Desk::new();
    assert_eq!(desk.epoch(vec![bust(0, 1)], None).quotes, []);
    assert_eq!(desk.epoch(vec![trade(0, 1, 10, 1)], None).quotes.len(), 1);
}

#[test]
fn a_sum_that_overflows_is_refused_not_wrapped() {
    let max = i64::MAX;
    let (desk, dead) = run(vec![
        (
            vec![trade(0, 1, max, max), trade(1, 1, 1, 1)],
            0,
            &*format!("{max}/{max}/1/1 {} 2", 1_i128 << 63),
            (2, 0, 0, 0),
        ),
        (vec![trade(2, 1, max, max)], 0, &*format!("{max}/{max}/1/{max} {} 3", (1_i128 << 64) - 1), (1, 0, 0, 0)),
        (
            vec![trade(3, 1, max, max), correction(1, 1, 1, max, max), trade(3, 1, max, max)],
            0,
            &*format!("{max}/{max}/1/{max} {} 3", (1_i128 << 64) - 1),
            (0, 0, 3, 0),
        ),
        // It was not kept: there is room again, and the same identity is free.
        (
            vec![bust(0, 1), trade(3, 1, 2, 2), correction(1, 1, 1, 3, 3)],
            0,
            &*format!("3/{max}/2/2 {} 3", max as i128 + 5),
            (3, 0, 0, 0),
        ),
    ]);
    assert!(desk.state.values().all(|b| b.turnover > 0));
    let detail = "overflow size=92233720368.54775807: a sum of its bar would overflow";
    assert_eq!(reasons(&dead), [4, 5, 6].map(|offset| format!("{offset} {detail}")));
}

#[test]
fn what_comes_for_a_sealed_bucket_is_late() {
    let (_, dead) = run(vec![
        (vec![trade(0, 1, 10, 1)], 1, "10/10/10/10 1 1", (1, 0, 0, 0)),
        (vec![trade(0, 2, 10, 1), bust(0, 1), quote("IBM", 0, 3, 1, 2)], 1, "10/10/10/10 1 1", (0, 0, 3, 0)),
        (vec![trade(1000, 1, 10, 1)], 1, "10/10/10/10 1 1", (1, 0, 0, 0)),
    ]);
    assert_eq!(reasons(&dead)[0], "2 late event_time=2013-10-07T13:30:00.000000000Z: its bar has sealed");
}

#[test]
fn sealing_frees_the_ticks() {
    let mut desk = Desk::new();
    for second in 0..100 {
        let ticks = vec![trade(second * 1000, 1, 10, 1), trade(second * 1000, 2, 10, 1), bust(second * 1000, 1)];
        desk.epoch(ticks, Some(T0 + (second - 10) * S));
        let symbol = &desk.bars.symbols[0];
        assert!(symbol.buckets.len() <= 11 && symbol.edits.len() <= 11, "{}", symbol.buckets.len());
        assert!(desk.bars.shared.timers.len() <= 2, "{}", desk.bars.shared.timers.len());
    }
    desk.epoch(vec![], Some(Nanos::MAX));
    let symbol = &desk.bars.symbols[0];
    assert!(symbol.buckets.is_empty() && symbol.edits.is_empty() && desk.bars.shared.timers.is_empty());
    assert_eq!(desk.state.len(), 100);
}

/// From scratch, with plain maps: what bars, quotes, dead letters and held records must be after some epochs.
#[derive(Default)]
struct Naive {
    ticks: BTreeMap<(Symbol, Nanos, u64), Event>,
    edits: BTreeMap<(Symbol, Nanos, u64), BTreeSet<Event>>,
    amends: BTreeMap<(Symbol, Nanos), BTreeSet<Amend>>,
    counts: Counts,
}

impl Naive {
    /// As arrival decides it: the first payload of an identity stands.
    fn arrive(&mut self, tick: &Tick) {
        let key = (tick.symbol, tick.event_time, tick.seq);
        match &tick.event {
            Event::Trade { .. } | Event::Quote { .. } => match self.ticks.get(&key) {
                None => {
                    self.ticks.insert(key, tick.event.clone());
                    self.counts.accepted += 1;
                    let edits = self.edits.get(&key).map_or(0, |edits| edits.len() as i64);
                    self.counts.held -= edits;
                    if matches!(tick.event, Event::Trade { .. }) {
                        self.counts.accepted += edits;
                    } else {
                        self.counts.dead += edits;
                        self.edits.remove(&key);
                    }
                }
                Some(known) if *known == tick.event => self.counts.duplicate += 1,
                Some(_) => self.counts.dead += 1,
            },
            Event::Amend(amend) => {
                let new = self.amends.entry((tick.symbol, tick.event_time)).or_default().insert(amend.as_ref().clone());
                if new { self.counts.held += 1 } else { self.counts.duplicate += 1 }
            }
            edit => {
                let target = self.ticks.get(&key);
                if matches!(target, Some(Event::Quote { .. })) {
                    self.counts.dead += 1;
                } else if !self.edits.entry(key).or_default().insert(edit.clone()) {
                    self.counts.duplicate += 1;
                } else if target.is_some() {
                    self.counts.accepted += 1;
                } else {
                    self.counts.held += 1;
                }
            }
        }
    }

    fn seal(&mut self, sealed: Nanos) {
        let ticks = &self.ticks;
        let counts = &mut self.counts;
        self.edits.retain(|key, edits| {
            let gone = key.1 < sealed && !ticks.contains_key(key);
            if gone {
                counts.held -= edits.len() as i64;
                counts.dead += edits.len() as i64;
            }
            !gone
        });
    }

    fn bars(&self, sealed: Nanos) -> BTreeMap<(Symbol, Nanos), BarBody> {
        let mut bars: BTreeMap<(Symbol, Nanos), BarBody> = BTreeMap::new();
        for (key, event) in &self.ticks {
            let source = instruments().get(key.0).price_source;
            let mut edits: Vec<&Event> = self.edits.get(key).into_iter().flatten().collect();
            edits.sort_by_key(|edit| match edit {
                Event::Correction { rev, price, size } => (false, *rev, *price, *size),
                _ => (true, 0, Price(0), Size(0)),
            });
            let body = match (source, edits.last().copied().unwrap_or(event)) {
                (PriceSource::Last, Event::Trade { price, size } | Event::Correction { price, size, .. }) => {
                    BarBody::first(*price, *size)
                }
                (PriceSource::Mid, Event::Quote { bid, ask, .. }) => {
                    BarBody::first(Price((bid.0 + ask.0) * 5), Size(0))
                }
                _ => continue,
            };
            bars.entry((key.0, key.1.div_euclid(S) * S)).and_modify(|bar| bar.append(&body).unwrap()).or_insert(body);
        }
        for ((symbol, open), amends) in &self.amends {
            if open + S <= sealed {
                match amends.last().unwrap().bar {
                    Some(bar) => bars.insert((*symbol, *open), bar),
                    None => bars.remove(&(*symbol, *open)),
                };
            }
        }
        bars
    }

    fn quotes(&self) -> BTreeMap<Symbol, Option<Quote>> {
        let mut quotes = BTreeMap::new();
        for ((symbol, event_time, seq), event) in &self.ticks {
            let quote = quotes.entry(*symbol).or_default();
            if let Event::Quote { bid, ask, .. } = event {
                *quote = Some(Quote { event_time: *event_time, seq: *seq, bid: *bid, ask: *ask });
            }
        }
        quotes
    }

    /// Held amends that have sealed are accepted.
    fn counts(&self, sealed: Nanos) -> Counts {
        let applied = self.amends.iter().filter(|((_, open), _)| open + S <= sealed);
        let applied: i64 = applied.map(|(_, amends)| amends.len() as i64).sum();
        Counts { accepted: self.counts.accepted + applied, held: self.counts.held - applied, ..self.counts }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let price = || (1_i64..6).prop_map(Price);
    let size = || (1_i64..3).prop_map(Size);
    let bar = (price(), size()).prop_map(|(p, s)| BarBody::first(p, s));
    prop_oneof![
        6 => (price(), size()).prop_map(|(price, size)| Event::Trade { price, size }),
        4 => (price(), price()).prop_map(|(bid, ask)| Event::Quote { bid, ask, bid_size: Size(0), ask_size: Size(0) }),
        2 => Just(Event::Bust),
        2 => (0_u32..3, price(), size()).prop_map(|(rev, price, size)| Event::Correction { rev, price, size }),
        1 => (0_u32..3, prop::option::weighted(0.7, bar))
            .prop_map(|(rev, bar)| Event::Amend(Box::new(Amend { rev, bar }))),
    ]
}

/// Ticks in the order of arrival, over eight seconds and few identities, so that they meet.
fn ticks() -> impl Strategy<Value = Vec<Tick>> {
    let tick = (any::<bool>(), 0_i64..24, 0_u64..3, event()).prop_map(|(mid, time, seq, event)| {
        let symbol = Symbol::new(if mid { "MID" } else { "IBM" }).unwrap();
        let amend = matches!(event, Event::Amend(_));
        let event_time = T0 + if amend { time / 3 * S } else { time * (S / 3) };
        Tick { symbol, event_time, seq: if amend { 0 } else { seq }, event }
    });
    prop::collection::vec(tick, 0..120)
}

/// Only the first payload of each identity, so that the order of arrival decides nothing.
fn without_conflicts(ticks: Vec<Tick>) -> Vec<Tick> {
    let mut known: BTreeMap<(Symbol, Nanos, u64), Event> = BTreeMap::new();
    ticks
        .into_iter()
        .filter(|tick| match tick.event {
            Event::Trade { .. } | Event::Quote { .. } => {
                let key = (tick.symbol, tick.event_time, tick.seq);
                *known.entry(key).or_insert_with(|| tick.event.clone()) == tick.event
            }
            _ => true,
        })
        .collect()
}

proptest! {
    #[test]
    fn it_equals_a_fold_from_scratch_after_every_epoch(
        ticks in ticks(),
        cuts in prop::collection::vec((1_usize..12, 0_i64..4), 1..40),
    ) {
        let (mut desk, mut naive) = (Desk::new(), Naive::default());
        let mut rest = ticks.into_iter();
        let mut sealed = T0 - S;
        for (n, thirds) in cuts.into_iter().chain([(usize::MAX, 30)]) {
            // The cutter lets nothing late through, but amends.
            let arriving: Vec<Tick> = rest
                .by_ref()
                .take(n)
                .filter(|t| t.event_time >= sealed || matches!(t.event, Event::Amend(_)))
                .collect();
            for tick in &arriving {
                naive.arrive(tick);
            }
            sealed += thirds * (S / 3);
            naive.seal(sealed);
            let before = desk.state.clone();
            let output = desk.epoch(arriving, Some(sealed));
            prop_assert_eq!(&desk.state, &naive.bars(sealed));
            prop_assert_eq!(desk.total, naive.counts(sealed));
            let quotes: BTreeMap<_, _> = desk.quotes.iter().filter(|(_, q)| q.is_some()).collect();
            let expected = naive.quotes();
            prop_assert_eq!(quotes, expected.iter().filter(|(_, q)| q.is_some()).collect::<BTreeMap<_, _>>());
            for bar in output.bars {
                // Only the first amend of a sealed bar may say what stands already.
                let key = (bar.symbol, bar.open_time);
                if before.get(&key).copied() == bar.body {
                    prop_assert!(naive.amends.contains_key(&key), "{:?} did not change", bar);
                }
            }
        }
        prop_assert_eq!(desk.total.held, 0);
    }

    /// Most trades come in order, in batches that are left where they are; late ones, repeats, busts and corrections find
    /// them there, and in the end too little of them is wanted.
    #[test]
    fn what_was_retained_is_found_again(
        batches in prop::collection::vec(
            (prop::collection::vec((0_i64..4, 0_usize..3, 1_i64..6), 0..40), prop::collection::vec((0_i64..600, 0_i64..4, 0_usize..3, event()), 0..6)),
            1..20,
        ),
        slow in 0_usize..3,
    ) {
        let (mut desk, mut naive) = (Desk::new(), Naive::default());
        let (mut now, mut sealed) = (0, T0 - S);
        let symbol = |i: usize| Symbol::new(["A", "IBM", "Z"][i]).unwrap();
        for (trades, others) in batches {
            let mut arriving = Vec::new();
            for (on, i, price) in trades {
                now += on;
                // One of them is far behind.
                let event_time = T0 + (now - if i == slow { now / 4 } else { 0 }) * (S / 20);
                arriving.push((event_time, i, Event::Trade { price: Price(price), size: Size(1) }));
            }
            let mut others = others;
            others.retain(|(.., event)| !matches!(event, Event::Amend(_)));
            let back = |(back, _, i, event): (i64, i64, usize, Event)| (T0 + (now - back).max(0) * (S / 20), i, event);
            let epochs = [arriving, others.into_iter().map(back).collect()];
            for arriving in epochs {
                let tick = |(event_time, i, event)| Tick { symbol: symbol(i), event_time, seq: 0, event };
                let arriving: Vec<Tick> = arriving.into_iter().map(tick).filter(|t| t.event_time >= sealed).collect();
                arriving.iter().for_each(|tick| naive.arrive(tick));
                sealed = sealed.max(T0 + (now * 3 / 4 - 60) * (S / 20));
                naive.seal(sealed);
                desk.epoch(arriving, Some(sealed));
                prop_assert_eq!(&desk.state, &naive.bars(sealed));
                prop_assert_eq!(desk.total, naive.counts(sealed));
            }
        }
    }

    #[test]
    fn order_and_cuts_change_nothing(
        ticks in ticks().prop_map(without_conflicts),
        other in prop::collection::vec(any::<u32>(), 120),
        size in 1_usize..30,
    ) {
        let end = T0 + 10 * S;
        let mut shuffled: Vec<(u32, Tick)> = other.into_iter().zip(ticks.iter().cloned()).collect();
        shuffled.sort_by_key(|(place, _)| *place);
        let shuffled: Vec<Tick> = shuffled.into_iter().map(|(_, tick)| tick).collect();

        let mut one = Desk::new();
        one.epoch(ticks, Some(end));
        let mut other = Desk::new();
        for chunk in shuffled.chunks(size) {
            other.epoch(chunk.to_vec(), None);
        }
        other.epoch(vec![], Some(end));
        prop_assert_eq!(&one.state, &other.state);
        prop_assert_eq!(&one.quotes, &other.quotes);
        // Busts of a quote are dead letters each, but the same one twice before its quote is a duplicate.
        let refused = |counts: Counts| (counts.accepted, counts.held, counts.duplicate + counts.dead);
        prop_assert_eq!(refused(one.total), refused(other.total));
    }
}

#[test]
fn the_operator_gives_each_symbol_to_one_worker() {
    use crate::epochs::{Clock, EpochOperator, Feed};
    use timely::dataflow::operators::Input;

    let results = timely::execute(timely::Config::process(2), |worker| {
        let index = worker.index();
        let given = std::rc::Rc::new(std::cell::RefCell::new((Vec::new(), Counts::default())));
        let mut input = worker.dataflow(|scope| {
            let (input, feeds) = scope.new_input::<Vec<Arc<Feed>>>();
            let clock = Clock::new(feeds);
            let kernel = Bars::new(instruments(), Timeframe::S1).of_worker(index, 2);
            let streams = bars(clock.clone(), kernel);
            let mut watch = EpochOperator::new("watch", clock.clone());
            let (bars, counts, given) = (watch.input(streams.bars), watch.input(streams.counts), given.clone());
            watch.build(move |_, _| {
                let mut given = given.borrow_mut();
                given.0.extend(bars.drain().flat_map(|bars| bars.to_vec()));
                given.1.accepted += counts.drain().map(|counts| counts.accepted).sum::<i64>();
            });
            clock.build();
            input
        });
        let partition = Partition::new("test").unwrap();
        for round in 0..3_u64 {
            // Each worker is fed all of them.
            let ticks = (0..100).map(|n| {
                let event = Event::Trade { price: Price(10 + n as i64), size: Size(1) };
                let tick = tick(&format!("S{}", n % 10), round as i64 * 1000, n, event);
                Record { cursor: Cursor { partition, offset: n, row: 0 }, tick }
            });
            let ticks = vec![ticks.collect::<Ticks>().into()];
            let feed = Feed { ticks, ..(*Feed::at(Progress::START)).clone() };
            input.send(Arc::new(feed));
            input.advance_to(round + 1);
        }
        input.close();
        while worker.step() {}
        given.take()
    })
    .unwrap();
    let results: Vec<_> = results.join().into_iter().map(Result::unwrap).collect();
    assert_eq!(results.iter().map(|(_, counts)| counts.accepted).sum::<i64>(), 300);
    let mut all: Vec<BarUpsert> = results.iter().flat_map(|(bars, _)| bars.clone()).collect();
    all.sort();
    assert_eq!(all.len(), 30);
    for bar in all {
        let n: i64 = bar.symbol.as_str()[1..].parse().unwrap();
        let body = bar.body.unwrap();
        assert_eq!((body.open.0, body.close.0, body.count), (10 + n, 100 + n, 10));
    }
}

#[test]
fn a_price_far_from_the_last_is_kept_and_counted() {
    let mut desk = Desk::new();
    let ticks =
        vec![trade(0, 1, 100, 1), trade(1, 2, 110, 1), trade(2, 3, 122, 1), trade(2, 3, 122, 1), trade(3, 4, 100, 1)];
    let counts = desk.epoch(ticks, None).counts;
    // 110 is just 10 % above 100; 122 and the way back to 100 are further; the repeat is a duplicate and no price.
    assert_eq!((counts.accepted, counts.duplicate, counts.dead, counts.price_jumps), (4, 1, 0, 2));
}

/// Neither an older tick nor a correction moves what later prices are compared with.
#[test]
fn a_jump_is_judged_along_event_time() {
    let mut desk = Desk::new();
    let late = vec![trade(0, 2, 100, 1), trade(0, 1, 200, 1), trade(0, 3, 105, 1)];
    assert_eq!(desk.epoch(late, None).counts.price_jumps, 0, "an older tick is not judged");
    let corrected = vec![correction(0, 3, 1, 400, 1), trade(0, 4, 100, 1)];
    assert_eq!(desk.epoch(corrected, None).counts.price_jumps, 0, "105 as it came");
}

/// After a restart a price that is far from the last one is one, whether or not ticks of its symbol are read again.
#[test]
fn a_jump_is_known_after_a_restart() {
    let a = Symbol::new("A").unwrap();
    let sealed = Sealed {
        bars: vec![(a, T0, BarBody::first(Price(500), Size(1))), (a, T0 + S, BarBody::first(Price(10_000), Size(1)))],
        ..Sealed::default()
    };
    for (price, jumps) in [(10_500, 0), (12_000, 1)] {
        let mut desk = Desk::new();
        desk.bars.restore(&sealed, T0 + 2 * S);
        let event = Event::Trade { price: Price(price), size: Size(1) };
        let output = desk.epoch(vec![Tick { symbol: a, event_time: T0 + 5 * S, seq: 1, event }], None);
        assert_eq!(output.counts.price_jumps, jumps, "{price}");
    }
}
