//! What verdicts are judged by at a moment, gathered from what is cut.

use crate::cutter::Cut;
use marea_model::live::{PolicyState, Role};
use marea_model::policy::Risk;
use marea_model::time::{MILLI, SECOND, format_rfc3339, now_ns};
use marea_model::{AccountId, AccountSnapshot, Event, LiveConfig, Nanos, Price, Quote, Symbol};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// What verdicts on a symbol, and of an account, are judged by.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// The clock, RFC 3339.
    pub now: String,
    /// How the symbol is priced and sized.
    pub instrument: InstrumentFacts,
    /// The latest quote.
    pub quote: Option<QuoteFacts>,
    /// Of the account that was asked for.
    pub account: Option<AccountFacts>,
}

/// An instrument, in its own units.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in marea_model::Instrument")]
pub struct InstrumentFacts {
    pub tick_size: f64,
    pub tick_value: f64,
    pub currency: Option<String>,
    pub min_lot: f64,
    pub max_lot: f64,
    pub lot_step: f64,
    pub min_stop_distance: f64,
}

/// A quote, and what follows from it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct QuoteFacts {
    /// RFC 3339.
    pub event_time: String,
    /// Best bid.
    pub bid: f64,
    /// Best ask.
    pub ask: f64,
    /// (ask − bid) ÷ tick size.
    pub spread_points: f64,
    /// now − event time.
    pub age_ms: i64,
}

/// What an account is judged by.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct AccountFacts {
    /// `master` or `slave`; none if it is not configured.
    pub role: Option<String>,
    /// Of its last snapshot.
    pub equity: Option<f64>,
    /// Of its last snapshot.
    pub currency: Option<String>,
    /// The greatest equity so far.
    pub peak: Option<f64>,
    /// 1 long, −1 short, 0 flat.
    pub position_side: i8,
    /// Of the position.
    pub position_lots: Option<f64>,
    /// None without one, or with an invalid one.
    pub policy: Option<PolicyFacts>,
    /// No-trade windows of this account and symbol: start and end with buffers, RFC 3339.
    pub windows: Vec<(String, String)>,
}

/// A policy, resolved.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in marea_model::Policy")]
pub struct PolicyFacts {
    pub max_spread: f64,
    pub max_slippage: Option<f64>,
    pub max_delay_ms: Option<i64>,
    pub max_quote_age_ms: i64,
    pub risk_per_trade: Option<f64>,
    pub risk_fixed: Option<f64>,
    pub max_drawdown_pct: Option<f64>,
    pub sl_offset: f64,
    pub tp_offset: f64,
    pub copy_sl_tp: bool,
    pub catastrophic_sl: Option<f64>,
    pub allow_short: bool,
}

/// Watches what is cut, and keeps the facts.
#[derive(Debug)]
pub struct Desk {
    now: Nanos,
    live: LiveConfig,
    quotes: HashMap<Symbol, (Nanos, u64, Price, Price)>,
    /// The last snapshot, and the greatest equity so far.
    accounts: BTreeMap<AccountId, (AccountSnapshot, f64)>,
}

impl Desk {
    /// A desk that knows the configuration and has seen nothing.
    pub fn new(live: LiveConfig) -> Self {
        Desk { now: 0, live, quotes: HashMap::new(), accounts: BTreeMap::new() }
    }

    /// The same, at this time.
    pub fn at(live: LiveConfig, now: Nanos) -> Self {
        Desk { now, ..Desk::new(live) }
    }

    /// Takes an epoch's input in.
    pub fn observe(&mut self, cut: &Cut) {
        self.now = now_ns(cut.epoch);
        for update in &cut.config {
            self.live.apply(update);
        }
        for record in cut.records() {
            let tick = &record.tick;
            if let Event::Quote { bid, ask, .. } = tick.event {
                let quote = (tick.event_time, tick.seq, bid, ask);
                let last = self.quotes.entry(tick.symbol).or_insert(quote);
                if (last.0, last.1) < (quote.0, quote.1) {
                    *last = quote;
                }
            }
        }
        for (symbol, quote) in cut.sealed.iter().flat_map(|sealed| &sealed.quotes) {
            if let Some(Quote { event_time, seq, bid, ask }) = *quote {
                let last = self.quotes.entry(*symbol).or_insert((event_time, seq, bid, ask));
                if (last.0, last.1) < (event_time, seq) {
                    *last = (event_time, seq, bid, ask);
                }
            }
        }
        for snapshot in &cut.accounts {
            let equity = snapshot.equity.to_f64();
            match self.accounts.get_mut(&snapshot.account) {
                None => {
                    self.accounts.insert(snapshot.account, (snapshot.clone(), equity));
                }
                Some((last, peak)) => {
                    *peak = peak.max(equity);
                    if (last.event_time, last.seq) < (snapshot.event_time, snapshot.seq) {
                        *last = snapshot.clone();
                    }
                }
            }
        }
    }

    /// The live configuration as it stands.
    pub fn live(&self) -> &LiveConfig {
        &self.live
    }

    /// The facts about a symbol and, if asked for, an account.
    pub fn facts(&self, symbol: Symbol, account: Option<AccountId>) -> Facts {
        let instrument = self.live.instruments().get(symbol);
        let scale = instrument.scale;
        let tick_size = instrument.tick_size.to_f64(scale);
        let text = |currency: [u8; 3]| String::from_utf8_lossy(&currency).into_owned();
        let quote = self.quotes.get(&symbol).map(|(event_time, _, bid, ask)| QuoteFacts {
            event_time: format_rfc3339(*event_time),
            bid: bid.to_f64(scale),
            ask: ask.to_f64(scale),
            spread_points: ask.0.saturating_sub(bid.0) as f64 / instrument.tick_size.0 as f64,
            age_ms: self.now.saturating_sub(*event_time) / MILLI,
        });
        let of_account = |account: AccountId| {
            let known = self.accounts.get(&account);
            let position = known.and_then(|(s, _)| s.positions.iter().find(|p| p.symbol == symbol));
            let policy = match self.live.policy(account) {
                PolicyState::Valid(policy) => Some(PolicyFacts {
                    max_spread: policy.max_spread.to_f64(),
                    max_slippage: policy.max_slippage.map(|a| a.to_f64()),
                    max_delay_ms: policy.max_delay_ms,
                    max_quote_age_ms: policy.max_quote_age_ms,
                    risk_per_trade: if let Risk::Percent(p) = policy.risk { Some(p.to_f64()) } else { None },
                    risk_fixed: if let Risk::Fixed(m) = policy.risk { Some(m.to_f64()) } else { None },
                    max_drawdown_pct: policy.max_drawdown_pct.map(|a| a.to_f64()),
                    sl_offset: policy.sl_offset.to_f64(),
                    tp_offset: policy.tp_offset.to_f64(),
                    copy_sl_tp: policy.copy_sl_tp,
                    catastrophic_sl: policy.catastrophic_sl.map(|a| a.to_f64()),
                    allow_short: policy.allow_short,
                }),
                PolicyState::Absent | PolicyState::Invalid(_) => None,
            };
            let windows = self.live.windows(account, symbol).windows.into_iter().map(|w| {
                let from = w.start.saturating_sub(i64::from(w.pre_buffer_sec) * SECOND);
                let to = w.end.saturating_add(i64::from(w.post_buffer_sec) * SECOND);
                (format_rfc3339(from), format_rfc3339(to))
            });
            let role = self.live.accounts().get(&account).map(|role| match role {
                Role::Master => "master".to_owned(),
                Role::Slave => "slave".to_owned(),
            });
            AccountFacts {
                role,
                equity: known.map(|(s, _)| s.equity.to_f64()),
                currency: known.map(|(s, _)| text(s.currency)),
                peak: known.map(|(_, peak)| *peak),
                position_side: position.map_or(0, |p| p.side),
                position_lots: position.map(|p| p.lots.to_f64()),
                policy,
                windows: windows.collect(),
            }
        };
        Facts {
            now: format_rfc3339(self.now),
            instrument: InstrumentFacts {
                tick_size,
                tick_value: instrument.tick_value.to_f64(),
                currency: instrument.currency.map(text),
                min_lot: instrument.min_lot.to_f64(),
                max_lot: instrument.max_lot.to_f64(),
                lot_step: instrument.lot_step.to_f64(),
                min_stop_distance: instrument.min_stop_distance.to_f64(),
            },
            quote,
            account: account.map(of_account),
        }
    }
}
