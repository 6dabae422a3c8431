//! Records that are more than a trade in order: late and doubtful trades, quotes, busts and corrections, amends.

use super::bucket::{Bucket, Edit, Edits};
use super::hot::Hot;
use super::log::{Around, Key, QuoteTick, Trade};
use super::shared::{Fault, Outcome, Shared};
use super::symbol::SymbolState;
use marea_model::num::format_fixed;
use marea_model::tick::Quote;
use marea_model::time::format_rfc3339;
use marea_model::{Amend, Cursor, Event, Nanos, Price, PriceSource, Reason, Size, Timeframe};
use std::collections::VecDeque;

impl SymbolState {
    /// A trade that was not appended unseen.
    pub(super) fn trade(&mut self, hot: &mut Hot, shared: &mut Shared, trade: Trade) -> Outcome {
        let key = trade.key;
        let Some(i) = self.bucket(shared, key.event_time) else { return Fault::late(key) };
        let mut around = Around::default();
        if key <= hot.last {
            around = self.around(shared, i, key);
            if let Some(known) = around.found {
                return if known.price != trade.price {
                    Fault::conflict("price", trade.price.decimal(self.scale).to_string(), "a trade at another price")
                } else if known.size != trade.size {
                    Fault::conflict("size", size_text(trade.size), "a trade of another size")
                } else {
                    Outcome::Duplicate
                };
            }
            if self.quotes.find(key).is_some() {
                return Fault::conflict("kind", "trade".to_owned(), "a quote");
            }
        }
        let makes_bars = self.source == PriceSource::Last;
        let gross = match self.buckets[i].gross_with(trade.price.turnover(trade.size)) {
            Some(gross) => gross,
            None if makes_bars => return Fault::overflow("size", size_text(trade.size)),
            None => 0,
        };
        let is_late = key <= hot.last;
        self.trades.insert(trade, &mut shared.trades);
        hot.last = hot.last.max(key);
        if makes_bars {
            self.touch(shared, i);
            let ends = if is_late { self.ends(shared, i, &around) } else { Some([false, true]) };
            self.buckets[i].insert(trade.price, trade.size, gross, ends);
            if !is_late {
                self.priced(shared, trade.price);
            }
        }
        self.appear(shared);
        self.release(shared, key);
        Outcome::Accepted
    }

    /// Whether a trade between these neighbours is the first and the last of its bar; none if that is not known, since
    /// one of them was busted.
    fn ends(&self, shared: &Shared, i: usize, around: &Around<Trade>) -> Option<[bool; 2]> {
        let neighbours = [around.before, around.after];
        let ends = ends(neighbours, self.buckets[i].open_time, shared.base);
        let is_bust = |key: Key| self.edits.get(&key).is_some_and(Edits::is_bust);
        let known = |(key, end): (Option<Key>, bool)| end || !key.is_some_and(is_bust);
        neighbours.into_iter().zip(ends).all(known).then_some(ends)
    }

    pub(super) fn quote(&mut self, hot: &mut Hot, shared: &mut Shared, quote: QuoteTick) -> Outcome {
        let key = quote.key;
        let price = match self.source {
            PriceSource::Last => None,
            PriceSource::Bid => Some(quote.bid),
            PriceSource::Mid => match Price::mid(quote.bid, quote.ask) {
                Some(mid) => Some(mid),
                None => return Fault::overflow("ask", quote.ask.decimal(self.scale).to_string()),
            },
        };
        let base = shared.base.nanos() as u64;
        let in_newest = |buckets: &VecDeque<Bucket>| {
            buckets.back().is_some_and(|bucket| (key.event_time.wrapping_sub(bucket.open_time) as u64) < base)
        };
        // Buckets are made in the order of the ticks, and what is pending cannot be found.
        if !in_newest(&self.buckets) || key <= hot.last {
            self.fold(hot, shared);
        }
        let i = match in_newest(&self.buckets) {
            true => self.buckets.len() - 1,
            false => match self.bucket(shared, key.event_time) {
                Some(i) => i,
                None => return Fault::late(key),
            },
        };
        if key <= hot.last {
            if let Some(place) = self.quotes.find(key) {
                return compare_quotes(self.quotes.get(place), &quote, self.scale);
            }
            if self.around(shared, i, key).found.is_some() {
                return Fault::conflict("kind", "quote".to_owned(), "a trade");
            }
        }
        let neighbours = self.quotes.insert(quote, &mut shared.quotes);
        let is_late = key <= hot.last;
        hot.last = hot.last.max(key);
        if let Some(price) = price {
            self.touch(shared, i);
            let bucket = &mut self.buckets[i];
            let [first, last] = ends(neighbours, bucket.open_time, shared.base);
            bucket.insert(price, Size(0), bucket.gross(), Some([first, last]));
            if !is_late {
                self.priced(shared, price);
            }
        }
        self.latest(shared, quote);
        self.appear(shared);
        self.release(shared, key);
        Outcome::Accepted
    }

    #[inline]
    pub(super) fn latest(&mut self, shared: &mut Shared, quote: QuoteTick) {
        let QuoteTick { key, bid, ask, .. } = quote;
        if self.quote.is_none_or(|last| (last.event_time, last.seq) < (key.event_time, key.seq)) {
            self.quote = Some(Quote { event_time: key.event_time, seq: key.seq, bid, ask });
            self.queue_quote(shared);
        }
    }

    /// A target has come: what waited for it waits no longer.
    pub(super) fn release(&mut self, shared: &mut Shared, key: Key) {
        if self.waiting.is_empty() || !self.waiting.remove(&key) {
            return;
        }
        for (edit, cursor) in self.edits.remove(&key).unwrap_or_default().0 {
            shared.counts.held -= 1;
            let outcome = self.edit(shared, key, edit, cursor);
            shared.count(outcome, cursor, || self.tick(key, edit));
        }
    }

    pub(super) fn edit(&mut self, shared: &mut Shared, key: Key, edit: Edit, cursor: Cursor) -> Outcome {
        if let Some(i) = self.find_bucket(shared, key.event_time) {
            if let Some(trade) = self.around(shared, i, key).found {
                let edits = self.edits.entry(key).or_default();
                if edits.0.contains_key(&edit) {
                    return Outcome::Duplicate;
                }
                let before = edits.effective(&trade);
                edits.0.insert(edit, cursor);
                let after = edits.effective(&trade);
                if self.source == PriceSource::Last && before != after {
                    self.touch(shared, i);
                    if !self.buckets[i].edit(before, after) {
                        if let Some(edits) = self.edits.get_mut(&key) {
                            edits.0.remove(&edit);
                        }
                        let size = after.map_or(Size(0), |(_, size)| size);
                        return Fault::overflow("size", size_text(size));
                    }
                }
                return Outcome::Accepted;
            }
            if self.quotes.find(key).is_some() {
                return Fault::not_a_trade(key, Event::from(edit).kind());
            }
        }
        if shared.is_sealed(shared.base.open_time(key.event_time)) {
            return Fault::late(key);
        }
        let edits = self.edits.entry(key).or_default();
        // The first one is held, and may die; a repeat is only a duplicate.
        if edits.0.contains_key(&edit) {
            return Outcome::Duplicate;
        }
        edits.0.insert(edit, cursor);
        self.waiting.insert(key);
        self.schedule(shared, key.event_time.saturating_add(1));
        Outcome::Held
    }

    pub(super) fn amend(&mut self, shared: &mut Shared, open_time: Nanos, amend: &Amend) -> Outcome {
        if shared.base.open_time(open_time) != open_time {
            let detail = format!("no bar of {} opens then", shared.base);
            let value = format_rfc3339(open_time);
            return Outcome::Dead(Box::new(Fault { reason: Reason::Invalid, field: "open_time", value, detail }));
        }
        let amended = self.amends.entry(open_time).or_default();
        if !amended.known.insert(amend.clone()) {
            return Outcome::Duplicate;
        }
        if !shared.is_sealed(open_time) {
            self.unsealed_amends.insert(open_time);
            self.schedule(shared, shared.close_time(open_time));
            return Outcome::Held;
        }
        if !std::mem::replace(&mut amended.queued, true) {
            shared.amended.push((self.number, open_time));
        }
        self.appear(shared);
        Outcome::Accepted
    }
}

fn size_text(size: Size) -> String {
    format_fixed(i128::from(size.0), marea_model::num::SCALE)
}

fn compare_quotes(known: &QuoteTick, quote: &QuoteTick, scale: u8) -> Outcome {
    let price = |price: Price| price.decimal(scale).to_string();
    let fields = [
        (known.bid == quote.bid, "bid", price(quote.bid)),
        (known.ask == quote.ask, "ask", price(quote.ask)),
        (known.bid_size == quote.bid_size, "bid_size", size_text(quote.bid_size)),
        (known.ask_size == quote.ask_size, "ask_size", size_text(quote.ask_size)),
    ];
    match fields.into_iter().find(|(same, ..)| !same) {
        None => Outcome::Duplicate,
        Some((_, field, value)) => Fault::conflict(field, value, "a quote that differs"),
    }
}

/// Whether an entry between these neighbours is the first and the last of its bar.
fn ends(neighbours: [Option<Key>; 2], open_time: Nanos, base: Timeframe) -> [bool; 2] {
    let inside = |key: Key| ((key.event_time.wrapping_sub(open_time)) as u64) < base.nanos() as u64;
    neighbours.map(|key| !key.is_some_and(inside))
}
