//! The page on a made-up market, to work on its looks without a pipeline:
//! `cargo run -p marea-sinks --example page`, then open the address that it prints.
//! An argument is how many seconds it publishes before it falls silent, to see the page fail closed; a second one is
//! the port.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, unreachable_pub)]
#[path = "../tests/sinks/fixture.rs"]
mod fixture;

use fixture::{bar, both, closed, judged, metrics, recommendation, recommended, up, verdict, vote};
use marea_model::output::{Change, ClosedEpoch, MetricsWindow, Totals};
use marea_model::recommendation::{Action, Status};
use marea_model::time::{MILLI, SECOND, first_epoch};
use marea_model::verdict::Intent;
use marea_model::{Bar, BlockReason, F64, Nanos, Output, Timeframe};
use marea_sinks::feed::{Clock, Feed, FeedConfig};
use marea_sinks::metrics::Metrics;
use marea_sinks::store::Ledger;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MARKET: [(&str, i64, u8, i64); 6] = [
    ("EURUSD", 1_084_275, 6, 25),
    ("GBPJPY", 187_452, 3, 20),
    ("BTC/USD", 6_412_350, 2, 1_900),
    ("IBM", 18_190, 2, 4),
    ("AIG", 4_918, 2, 2),
    ("XAUUSD", 238_114, 2, 35),
];

struct Market {
    seed: u64,
    price: BTreeMap<&'static str, i64>,
    bars: BTreeMap<(&'static str, Timeframe), Bar>,
}

impl Market {
    fn random(&mut self, below: i64) -> i64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as i64 % below
    }

    /// One tick of each symbol at `time`, as changes of its bars.
    fn tick(&mut self, time: Nanos, changes: &mut Vec<Change>) {
        for (name, start, scale, step) in MARKET {
            let jump = self.random(2 * step + 1) - step + self.random(3) - 1;
            let last = self.price.entry(name).or_insert(start);
            // Pulled gently back to where it began, so that it stays plausible for hours.
            let price = *last + jump + (start - *last) / 400;
            *last = price;
            let size = self.random(9) + 1;
            for timeframe in [Timeframe::S1, Timeframe::M1, Timeframe::M5, Timeframe::H1] {
                let open_time = timeframe.open_time(time);
                let mut tick = bar(name, timeframe, open_time, [price; 4], scale);
                tick.body.volume *= i128::from(size);
                tick.body.turnover *= i128::from(size);
                tick.body.count = 1;
                tick.closed = false;
                let standing = self.bars.get(&(name, timeframe)).copied();
                let next = match standing {
                    Some(mut bar) if bar.open_time == open_time => {
                        bar.body.append(&tick.body).unwrap();
                        bar
                    }
                    Some(mut bar) => {
                        bar.closed = true;
                        changes.push(up(Output::Bar(bar)));
                        tick
                    }
                    None => tick,
                };
                self.bars.insert((name, timeframe), next);
                changes.push(up(Output::Bar(next)));
            }
        }
    }
}

fn now() -> Nanos {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

fn stand(market: &Market, time: Nanos) -> Vec<Change> {
    let mut changes = Vec::new();
    let actions = [Action::StrongBuy, Action::Sell, Action::Hold, Action::Buy, Action::Hold, Action::Sell];
    for ((name, _, scale, _), action) in MARKET.into_iter().zip(actions) {
        let mut row = recommendation(name, action, market.price[name], scale);
        row.bar_open_time = Timeframe::M5.open_time(time) - 300 * SECOND;
        row.bar_close_time = row.bar_open_time + 300 * SECOND;
        row.expires_at = row.bar_close_time + 900 * SECOND;
        let side = action.side();
        row.confidence = F64(match action {
            Action::StrongBuy => 91.3,
            Action::Hold if name == "AIG" => 62.4,
            Action::Hold => 34.0,
            _ => 76.8,
        });
        if name == "AIG" {
            row.bias = -1;
        }
        if name == "XAUUSD" {
            row.status = Status::Invalidated;
        }
        let mut unproven = vote(
            "donchian-breakout",
            side,
            both(
                "The close <b>181.90</b> is above the highest high of the 20 bars before it, 181.52.",
                "El cierre 181,90 supera el máximo de las 20 barras anteriores, 181,52.",
            ),
        );
        unproven.unproven = true;
        unproven.track = F64(1.0);
        unproven.weight = F64(1.0);
        let mut silent = vote(
            "rsi-reversion",
            0,
            both(
                "RSI(14) is 54.2, between its levels 30 and 70: no side.",
                "El RSI(14) está en 54,2, entre sus niveles 30 y 70: sin lado.",
            ),
        );
        silent.weight = F64(0.0);
        row.votes = vec![
            vote(
                "ema-cross",
                side,
                both(
                    "EMA(12) 181.91 is above EMA(26) 181.77: long.",
                    "La EMA(12) 181,91 supera la EMA(26) 181,77: largo.",
                ),
            ),
            unproven,
            silent,
        ];
        row.explanation.summary = both(
            "Strength 0.80 of 1 and consensus 75 % give a confidence of 78: 3 of 5 strategies agree.",
            "Fuerza 0,80 de 1 y consenso del 75 % dan una confianza de 78: coinciden 3 de 5 estrategias.",
        );
        row.explanation.notes =
            vec![both("Volume 34 % above its 20-bar mean.", "Volumen un 34 % sobre su media de 20 barras.")];
        changes.push(up(recommended(row)));
    }
    use BlockReason::{
        DelayAboveMax, DrawdownLimit, Expired, NoPolicy, NoSignal, NoTradeWindow, QuoteStale, SpreadAboveMax,
    };
    let judged_rows = [
        ("M1", "EURUSD", vec![]),
        ("M1", "GBPJPY", vec![SpreadAboveMax]),
        ("M1", "BTC/USD", vec![NoSignal]),
        ("M1", "IBM", vec![NoTradeWindow]),
        ("S1", "EURUSD", vec![QuoteStale, DelayAboveMax]),
        ("S1", "GBPJPY", vec![]),
        ("S1", "XAUUSD", vec![NoSignal, Expired]),
        ("S2-swing", "EURUSD", vec![NoPolicy]),
        ("S2-swing", "IBM", vec![DrawdownLimit]),
    ];
    for (who, of, reasons) in judged_rows {
        let mut row = verdict(who, of, reasons);
        row.as_of = time;
        row.valid_until = Some(Timeframe::M5.open_time(time) + 900 * SECOND);
        row.blocked_until = row.blocked_until.map(|_| time + 754 * SECOND);
        if let (Some(_), Some((_, _, scale, _))) = (row.entry, MARKET.iter().find(|m| m.0 == of)) {
            let close = market.price[of];
            let decimal = |mantissa| Some(marea_model::Decimal { mantissa, scale: *scale });
            row.entry = decimal(close);
            row.stop_loss = decimal(close - close / 500);
            row.take_profit = decimal(close + close * 3 / 1000);
        }
        if (who, of) == ("S1", "GBPJPY") {
            row.intent = Intent::Exit;
            row.side = 1;
            row.stop_loss = None;
            row.take_profit = None;
        }
        if who == "S2-swing" && of == "EURUSD" {
            row.details = vec!["/echo/policy/S2-swing/max_spread: <b>\"5,0\"</b> is not a number".to_owned()];
        }
        changes.push(up(judged(row)));
    }
    let strategies = [
        "ema-cross",
        "rsi-reversion",
        "macd-cross",
        "bollinger-reversion",
        "donchian-breakout",
        "trend-pullback",
        "consensus",
    ];
    for (i, (name, ..)) in MARKET.into_iter().enumerate() {
        for (j, strategy) in strategies.into_iter().enumerate() {
            let x = ((i * 7 + j * 13) % 17) as f64 / 17.0;
            for window in [MetricsWindow::Days30, MetricsWindow::All] {
                let mut row = metrics(name, strategy, window, (j != 3).then_some(3.1 * x - 0.6));
                row.metrics.total_return = Some(F64(0.09 * x - 0.021));
                row.metrics.win_rate = Some(F64(0.35 + 0.3 * x));
                row.metrics.max_drawdown = Some(F64(0.012 + 0.05 * (1.0 - x)));
                row.metrics.profit_factor = (j != 5).then_some(F64(0.8 + x));
                row.metrics.trades = 8 + ((i * 31 + j * 5) % 40) as u64;
                changes.push(up(Output::Metrics(Box::new(row))));
            }
        }
    }
    changes
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let silent_after = std::env::args().nth(1).and_then(|s| s.parse().ok()).map(Duration::from_secs);
    let port = std::env::args().nth(2).unwrap_or_else(|| "0".to_owned());
    let feed = Feed::new(
        FeedConfig {
            clock: Clock::Wall,
            workers: 1,
            store: None,
            max_lag: Duration::from_secs(5),
            config_current: None,
        },
        Metrics::new(env!("CARGO_PKG_VERSION"), "synthetic"),
    );
    feed.health().set_hydrated(true);
    let mut market = Market { seed: 7, price: BTreeMap::new(), bars: BTreeMap::new() };
    let mut ledger = Ledger::new(1);
    let start = now();
    let mut history = Vec::new();
    for second in (0..7_200).rev() {
        market.tick(start - second * SECOND, &mut history);
    }
    // One change a key: what stands in the end.
    let netted: BTreeMap<_, _> = history
        .into_iter()
        .map(|change| match &change {
            Change::Upsert(row) | Change::Delete(row) => (row.key(), change),
        })
        .collect();
    let mut first = closed(first_epoch(start / MILLI), netted.into_values().chain(stand(&market, start)).collect());
    first.totals =
        Totals { records_in: 91_250, accepted: 90_112, duplicate: 1_011, dead: 124, held: 3, ..Totals::default() };
    let publish = |ledger: &mut Ledger, epoch: ClosedEpoch| {
        let epochs = [epoch];
        let committed = ledger.commit(&epochs).unwrap();
        feed.publish(&epochs, &committed);
    };
    publish(&mut ledger, first);
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("http://{}/", listener.local_addr()?);
    let server = tokio::spawn(feed.clone().serve(listener, std::future::pending()));
    let begun = tokio::time::Instant::now();
    let mut timer = tokio::time::interval(Duration::from_millis(200));
    let mut last = first_epoch(start / MILLI);
    while !server.is_finished() {
        timer.tick().await;
        if silent_after.is_some_and(|after| begun.elapsed() > after) {
            continue;
        }
        feed.health().beat(0);
        let mut changes = Vec::new();
        let time = now();
        market.tick(time, &mut changes);
        last = first_epoch(time / MILLI).max(last + 1);
        let mut epoch = closed(last, changes);
        epoch.totals = Totals { records_in: 1_968, accepted: 1_940, duplicate: 24, dead: 4, ..Totals::default() };
        publish(&mut ledger, epoch);
    }
    server.await?
}
