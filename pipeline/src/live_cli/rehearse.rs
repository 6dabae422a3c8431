//! `--dry-run`: the verdicts that a change would flip, by the gate itself.
//!
//! The running feed is asked for its recommendations, and for quote, equity and position behind each of its verdicts. A
//! gate of our own judges them twice, with the tree as it stands and with the changed one. What it says about the first
//! is compared with what the feed has published: where they differ, the market has moved meanwhile or the feed runs on
//! another configuration, and that is said.

use super::desk::{Change, read, updates};
use crate::commands::{say, say_json};
use crate::config::Config;
use crate::explain::Facts;
use crate::http::{self, Url};
use crate::run::Failure;
use marea_model::live::encode_segment;
use marea_model::num::fixed_from_f64;
use marea_model::recommendation::{Action, Explanation, Status};
use marea_model::time::{MILLI, first_epoch, parse_rfc3339};
use marea_model::{
    AccountId, AccountSnapshot, Amount, Decimal, F64, Instruments, Nanos, Position, Price, Recommendation, Symbol,
    Timeframe, Verdict,
};
use marea_operators::bars::{Quote, QuoteUpdate};
use marea_operators::gate::Gate;
use marea_sources::etcd::Tree;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

/// A pair.
type Pair = (AccountId, Symbol);

/// What the feed knows of the market.
struct Market {
    now: Nanos,
    recommendations: Vec<Arc<Recommendation>>,
    quotes: Vec<QuoteUpdate>,
    /// By account: those with the greatest equity first, then the one that stands.
    accounts: Vec<AccountSnapshot>,
    /// What is published: whether it is allowed, and why not.
    published: BTreeMap<Pair, (bool, Vec<String>)>,
}

/// Says which verdicts the change would flip.
pub(super) fn rehearse(
    tree: &Tree,
    change: &Change,
    config: &Config,
    url: Option<&str>,
    json: bool,
) -> Result<(), Failure> {
    let url = match url {
        Some(url) => url.to_owned(),
        None if config.listen.ip().is_unspecified() => format!("http://127.0.0.1:{}", config.listen.port()),
        None => format!("http://{}", config.listen),
    };
    let live = read(tree, config);
    let market = market(&Url::parse(&url).map_err(Failure::refused)?, live.instruments())?;
    let epoch = first_epoch(market.now / MILLI);
    let mut gate = Gate::new(live.instruments(), 0, 1).with_timeframes(&config.pipeline.timeframes);
    let mut verdicts: BTreeMap<Pair, Arc<Verdict>> = BTreeMap::new();
    let mut take = |changes: Vec<(Arc<Verdict>, i64)>| {
        for (verdict, _) in changes.into_iter().filter(|(_, diff)| *diff > 0) {
            verdicts.insert((verdict.account, verdict.symbol), verdict);
        }
        verdicts.clone()
    };
    let recommendations = market.recommendations.into_iter().map(|r| (r, 1)).collect();
    let before = take(gate.epoch(epoch, recommendations, market.quotes, market.accounts, &updates(tree)));
    let change_updates = change.updates(tree.revision.saturating_add(1));
    let after = take(gate.epoch(epoch + 1, Vec::new(), Vec::new(), Vec::new(), &change_updates));

    let reasons = |verdict: &Verdict| verdict.reasons.iter().map(|r| r.as_str().to_owned()).collect::<Vec<_>>();
    let (mut flips, mut others, mut strange, mut text) = (Vec::new(), 0, Vec::new(), String::new());
    for (pair, new) in &after {
        let Some(old) = before.get(pair) else { continue };
        let said = market.published.get(pair);
        if said.is_some_and(|(allow, why)| *allow != old.allow || *why != reasons(old)) {
            strange.push(format!("{} {}", pair.0, pair.1));
        }
        if old.allow == new.allow {
            others += usize::from(old.reasons != new.reasons || old.lots != new.lots);
            continue;
        }
        let of = |verdict: &Verdict| {
            let lots = verdict.lots.map_or(String::new(), |lots| format!(" {lots} lots"));
            if verdict.allow {
                format!("allow {}{lots}", verdict.intent.as_str())
            } else {
                format!("block {}", reasons(verdict).join(", "))
            }
        };
        let _ = writeln!(text, "{} {}: {} -> {}", pair.0, pair.1, of(old), of(new));
        let side = |v: &Verdict| json!({ "allow": v.allow, "intent": v.intent.as_str(), "reasons": reasons(v), "lots": v.lots });
        flips.push(json!({ "account": pair.0, "symbol": pair.1, "from": side(old), "to": side(new) }));
    }
    if json {
        say_json(&json!({
            "dry_run": true,
            "flips": flips,
            "changed_otherwise": others,
            "differ_from_feed": strange,
        }));
        return Ok(());
    }
    if flips.is_empty() {
        text.push_str("no verdict flips\n");
    }
    if others > 0 {
        let _ = writeln!(text, "{others} more change their reasons or lots");
    }
    if !strange.is_empty() {
        let _ = writeln!(
            text,
            "note: the feed has published something else about {}: the market has moved meanwhile, or the feed runs on \
             another configuration",
            strange.join(", ")
        );
    }
    say(text + "a dry run: nothing was written\n");
    Ok(())
}

fn get(url: &Url, path: &str) -> Result<Value, Failure> {
    // The rest of that text is about another command.
    let nobody = |e: String| {
        let e = e.split("; is marea running?").next().unwrap_or_default();
        Failure::failed(format!("{e}; --dry-run asks the running feed: nothing was judged, and nothing was written"))
    };
    let answer = http::get(url, path).map_err(nobody)?;
    match answer.ok() {
        Some(body) => Ok(body.clone()),
        None => Err(Failure::failed(format!("{path}: {}", answer.detail))),
    }
}

fn market(url: &Url, instruments: &Instruments) -> Result<Market, Failure> {
    let odd = |what: &str| Failure::failed(format!("the feed's {what} cannot be read: it runs another version"));
    let mut market = Market {
        now: 0,
        recommendations: Vec::new(),
        quotes: Vec::new(),
        accounts: Vec::new(),
        published: BTreeMap::new(),
    };
    let body = get(url, "/api/v1/recommendations")?;
    for row in body["recommendations"].as_array().ok_or_else(|| odd("recommendations"))? {
        let r = &row["recommendation"];
        if r.is_object() {
            market.recommendations.push(Arc::new(recommendation(r, instruments).ok_or_else(|| odd("recommendation"))?));
        }
    }
    let body = get(url, "/api/v1/verdicts")?;
    let mut symbols: BTreeMap<Symbol, Option<Quote>> = BTreeMap::new();
    let mut accounts: BTreeMap<AccountId, (AccountSnapshot, Amount)> = BTreeMap::new();
    for row in body["verdicts"].as_array().ok_or_else(|| odd("verdicts"))? {
        let verdict = &row["verdict"];
        if !verdict.is_object() {
            continue;
        }
        let name = |field: &str| verdict[field].as_str().ok_or_else(|| odd("verdict"));
        let account = AccountId::new(name("account")?).map_err(Failure::failed)?;
        let symbol = Symbol::canonical(name("symbol")?).map_err(Failure::failed)?;
        let reasons = verdict["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
        let allow = verdict["allow"].as_bool().ok_or_else(|| odd("verdict"))?;
        market.published.insert((account, symbol), (allow, reasons.collect()));
        let path =
            format!("/api/v1/facts/{}?account={}", encode_segment(symbol.as_str()), encode_segment(account.as_str()));
        let facts = Facts::deserialize(&get(url, &path)?).map_err(|_| odd("facts"))?;
        let now = parse_rfc3339(&facts.now).map_err(|_| odd("facts"))?;
        market.now = market.now.max(now);
        let scale = instruments.get(symbol).scale;
        symbols.insert(
            symbol,
            facts.quote.as_ref().and_then(|quote| {
                let price = |value| fixed_from_f64(value, scale).ok().map(Price);
                let event_time = parse_rfc3339(&quote.event_time).ok()?;
                Some(Quote { event_time, seq: 0, bid: price(quote.bid)?, ask: price(quote.ask)? })
            }),
        );
        let Some(of) = facts.account else { continue };
        let amount = |value: f64| fixed_from_f64(value, marea_model::num::SCALE).map(Amount);
        let (Some(equity), Some(currency)) = (of.equity, of.currency) else { continue };
        let equity = amount(equity).map_err(|_| odd("facts"))?;
        let peak = of.peak.map_or(Ok(equity), amount).map_err(|_| odd("facts"))?;
        let currency: [u8; 3] = currency.into_bytes().try_into().map_err(|_| odd("facts"))?;
        let (snapshot, _) = accounts.entry(account).or_insert_with(|| {
            let positions = Vec::new();
            (AccountSnapshot { account, event_time: now, seq: 1, equity, balance: equity, currency, positions }, peak)
        });
        if let (side @ (1 | -1), Some(lots)) = (of.position_side, of.position_lots) {
            let lots = amount(lots).map_err(|_| odd("facts"))?;
            snapshot.positions.push(Position { symbol, side, lots });
        }
    }
    market.quotes = symbols.into_iter().map(|(symbol, quote)| QuoteUpdate { symbol, quote }).collect();
    for (mut snapshot, peak) in accounts.into_values() {
        snapshot.positions.sort();
        market.accounts.push(AccountSnapshot { seq: 0, equity: peak, ..snapshot.clone() });
        market.accounts.push(snapshot);
    }
    Ok(market)
}

/// What the gate reads of a recommendation.
fn recommendation(json: &Value, instruments: &Instruments) -> Option<Recommendation> {
    let symbol = Symbol::canonical(json["symbol"].as_str()?).ok()?;
    // A mid has one digit more than its quotes.
    let scale = instruments.get(symbol).scale + 1;
    let decimal = |value: &Value| {
        let mantissa = value.as_f64().and_then(|value| fixed_from_f64(value, scale).ok());
        mantissa.map(|mantissa| Decimal { mantissa, scale })
    };
    let time = |field: &str| parse_rfc3339(json[field].as_str()?).ok();
    let actions = [Action::StrongBuy, Action::Buy, Action::Hold, Action::Sell, Action::StrongSell];
    let statuses = [Status::Active, Status::Invalidated, Status::Expired];
    Some(Recommendation {
        symbol,
        timeframe: Timeframe::deserialize(&json["timeframe"]).ok()?,
        bar_open_time: time("bar_open_time")?,
        bar_close_time: time("bar_close_time")?,
        action: actions.into_iter().find(|action| json["action"] == action.as_str())?,
        bias: 0,
        status: statuses.into_iter().find(|status| json["status"] == status.as_str())?,
        strength: F64(0.0),
        consensus: F64(0.0),
        confidence: F64(json["confidence"].as_f64()?),
        agreeing: 0,
        close: decimal(&json["close"])?,
        atr: None,
        entry_low: None,
        entry_high: None,
        stop_loss: decimal(&json["stop_loss"]),
        take_profit: decimal(&json["take_profit"]),
        expires_at: time("expires_at")?,
        votes: Vec::new(),
        explanation: Explanation::default(),
    })
}
