//! W2: 400 EMA-cross variants over 500,000 one-minute bars. The baseline is a plain loop a variant; the subject is the
//! real scan, to which the 400 strategies are added at once when it already holds the history.

use marea_model::output::Change;
use marea_model::time::SECOND;
use marea_model::{
    BarBody, ConfigUpdate, Instruments, Output, Price, Progress, Size, Symbol, Timeframe, output::MetricsWindow,
    output::net,
};
use marea_operators::bars::BarUpsert;
use marea_operators::rollup::RollupError;
use marea_operators::scan::{Scan, ScanConfig};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SLIPPAGE: f64 = 0.0005;
const COMMISSION: f64 = 0.001;
const CAPITAL: f64 = 100_000.0;
const MINUTES_A_YEAR: f64 = 525_600.0;
/// Open time of the first bar.
const START: i64 = 1_600_000_000 / 60 * 60 * SECOND;

/// (fast, slow) of the 400 variants.
pub(crate) fn variants() -> impl Iterator<Item = (u32, u32)> {
    (5..=24).flat_map(|fast| (0..20).map(move |i| (fast, 30 + 5 * i)))
}

/// Sums over the variants.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Checksum {
    /// Total return.
    pub(crate) total_return: f64,
    /// Sharpe ratio without the first bar's return.
    pub(crate) sharpe: f64,
    /// Greatest drawdown.
    pub(crate) drawdown: f64,
    /// Closed trades.
    pub(crate) trades: u64,
    /// Win rate.
    pub(crate) win_rate: f64,
}

impl Checksum {
    /// What W2 must give.
    pub(crate) const EXPECTED: Checksum = Checksum {
        total_return: 8.33250667,
        sharpe: 16631.514941,
        drawdown: 0.06544481,
        trades: 1_183_094,
        win_rate: 117.471362,
    };

    /// Equal to the digits that [`Checksum::EXPECTED`] has.
    pub(crate) fn agrees(&self, other: &Checksum) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs().max(0.01);
        near(self.total_return, other.total_return)
            && near(self.sharpe, other.sharpe)
            && near(self.drawdown, other.drawdown)
            && near(self.win_rate, other.win_rate)
            && self.trades == other.trades
    }
}

/// The baseline: each variant is one loop over the closes.
pub(crate) fn plain_loop(closes: &[f64]) -> Checksum {
    let mut total = Checksum::default();
    for (fast, slow) in variants() {
        let (fast_k, slow_k) = (2.0 / (f64::from(fast) + 1.0), 2.0 / (f64::from(slow) + 1.0));
        let (mut fast_ema, mut slow_ema) = (closes[0], closes[0]);
        let (mut cash, mut held, mut wanted, mut paid) = (CAPITAL, 0.0, false, 0.0);
        let (mut equity, mut peak, mut drawdown, mut sum, mut squares) = (CAPITAL, CAPITAL, 0.0_f64, 0.0, 0.0);
        let (mut trades, mut wins) = (0_u64, 0_u64);
        for (bar, &close) in closes.iter().enumerate() {
            if wanted != (held > 0.0) {
                if wanted {
                    paid = close * (1.0 + SLIPPAGE) * (1.0 + COMMISSION);
                    cash -= paid;
                    held = 1.0;
                } else {
                    let got = close * (1.0 - SLIPPAGE) * (1.0 - COMMISSION);
                    cash += got;
                    held = 0.0;
                    trades += 1;
                    wins += u64::from(got > paid);
                }
            }
            let marked = cash + held * close;
            let change = marked / equity - 1.0;
            equity = marked;
            sum += change;
            squares += change * change;
            if equity > peak {
                peak = equity;
            }
            let below = 1.0 - equity / peak;
            if below > drawdown {
                drawdown = below;
            }
            fast_ema += fast_k * (close - fast_ema);
            slow_ema += slow_k * (close - slow_ema);
            wanted = bar as u32 + 1 >= slow && fast_ema > slow_ema;
        }
        let n = closes.len() as f64 - 1.0;
        let mean = sum / n;
        let variance = (squares - n * mean * mean) / (n - 1.0);
        total.total_return += equity / CAPITAL - 1.0;
        total.sharpe += mean / variance.sqrt() * MINUTES_A_YEAR.sqrt();
        total.drawdown += drawdown;
        total.trades += trades;
        total.win_rate += wins as f64 / trades.max(1) as f64;
    }
    total
}

/// The Sharpe ratio over the n − 1 returns without the first, which is 0, from the one over all n.
fn without_first(sharpe: f64, n: f64) -> f64 {
    // Scaled so that the mean of n is 1: then the sum is n, and the variance follows from the ratio.
    let variance = MINUTES_A_YEAR / (sharpe * sharpe);
    let squares = variance * (n - 1.0) + n;
    let mean = n / (n - 1.0);
    let variance = (squares - (n - 1.0) * mean * mean) / (n - 2.0);
    sharpe.signum() * mean / variance.sqrt() * MINUTES_A_YEAR.sqrt()
}

fn variant(fast: u32, slow: u32) -> ConfigUpdate {
    ConfigUpdate::Put {
        key: format!("/marea/strategies/v-{fast}-{slow}"),
        value: format!(
            r#"{{"kind":"ema_cross","fast":{fast},"slow":{slow},"sides":"long","timeframe":"1m","fill":"next_close",
            "seed":"first","size":1,"slippage_bps":5,"commission_bps":10}}"#
        ),
        revision: 1,
    }
}

fn bar(at: usize, close: i64) -> anyhow::Result<BarUpsert> {
    let open_time = START + at as i64 * 60 * SECOND;
    let body = BarBody::first(Price(close * 10_000), Size(0));
    Ok(BarUpsert { symbol: Symbol::new("W2")?, open_time, body: Some(body) })
}

fn scan() -> Result<Scan, RollupError> {
    Scan::new(ScanConfig {
        timeframes: vec![Timeframe::M1],
        indicators: Vec::new(),
        instruments: Arc::new(Instruments::default()),
        index: 0,
        peers: 1,
    })
}

fn through(bars: usize) -> Option<Progress> {
    Some(Progress { sealed_through: i64::MIN, closed_through: START + bars as i64 * 60 * SECOND })
}

fn checksum(changes: Vec<Change>) -> Checksum {
    let mut sum = Checksum::default();
    for change in changes {
        let Change::Upsert(Output::Metrics(row)) = change else { continue };
        if row.window != MetricsWindow::All {
            continue;
        }
        let m = row.metrics;
        let value = |v: Option<marea_model::F64>| v.map_or(0.0, |v| v.0);
        sum.total_return += value(m.total_return);
        sum.sharpe += without_first(value(m.sharpe), m.bars as f64);
        sum.drawdown += value(m.max_drawdown);
        sum.trades += m.trades;
        sum.win_rate += value(m.win_rate);
    }
    sum
}

/// The subject, backfill: 400 variants added at once to a scan that holds the history.
pub(crate) fn added_at_once(closes: &[i64]) -> anyhow::Result<(Checksum, Duration)> {
    let mut scan = scan()?;
    let bars = closes.iter().enumerate().map(|(i, c)| bar(i, *c)).collect::<anyhow::Result<Vec<_>>>()?;
    scan.epoch(bars, through(closes.len()), &[]);
    let config: Vec<ConfigUpdate> = variants().map(|(fast, slow)| variant(fast, slow)).collect();
    let begin = Instant::now();
    let out = scan.epoch([], None, &config);
    let took = begin.elapsed();
    Ok((checksum(net(out.deltas)), took))
}

/// The subject, streaming: one closed bar an epoch, all variants live, metrics emitted at every bar.
pub(crate) fn bar_by_bar(closes: &[i64]) -> anyhow::Result<Duration> {
    let mut scan = scan()?;
    let config: Vec<ConfigUpdate> = variants().map(|(fast, slow)| variant(fast, slow)).collect();
    scan.epoch([], None, &config);
    let begin = Instant::now();
    for (i, close) in closes.iter().enumerate() {
        std::hint::black_box(scan.epoch([bar(i, *close)?], through(i + 1), &[]));
    }
    Ok(begin.elapsed())
}
