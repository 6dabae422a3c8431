//! The baselines: plain single-threaded loops, what one would write by hand. `--reference` holds them against those of
//! shared/workloads/rustloop.

use crate::workload::SYMBOLS;
use marea_model::Nanos;

/// What every way of doing W1 must agree on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct W1Sum {
    /// Closed bars.
    pub(crate) bars: u64,
    /// Sum of their closes.
    pub(crate) closes: f64,
    /// Sum of their volumes.
    pub(crate) volumes: f64,
    /// Sums over the symbols of the last values: ema(12), ema(26), rsi(14), upper, lower band, atr(14).
    pub(crate) last: [f64; 6],
}

fn near(a: f64, b: f64, least: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(least)
}

impl W1Sum {
    /// Equal but for the order in which floats were added.
    pub(crate) fn agrees(&self, other: &W1Sum) -> bool {
        self.agrees_on_bars(other) && self.last.iter().zip(&other.last).all(|(a, b)| near(*a, *b, 1.0))
    }

    fn agrees_on_bars(&self, other: &W1Sum) -> bool {
        self.bars == other.bars && near(self.closes, other.closes, 1.0) && near(self.volumes, other.volumes, 1.0)
    }

    /// An error unless this is what the reference loops give for so many trades and such bars, as far as that is known.
    pub(crate) fn check(&self, trades: usize, bar: Nanos) -> anyhow::Result<()> {
        let (bars, closes, volumes, last) = match (trades, bar) {
            (5_000_000, 1_000_000_000) => (
                25_100,
                4_810_898.20,
                25_000_444.222,
                Some([9577.508383, 9572.052430, 2586.791015, 9623.730444, 9519.637556, 18.137838]),
            ),
            (5_000_000, 10_000_000) => (
                1_675_272,
                273_422_651.77,
                25_000_444.222,
                Some([9583.104127, 9582.595025, 2429.726773, 9588.157373, 9576.826627, 1.487505]),
            ),
            (500_000, 1_000_000_000) => (2_600, 498_647.78, 2_498_267.856, None),
            _ => return Ok(()),
        };
        let expected = W1Sum { bars, closes, volumes, last: last.unwrap_or_default() };
        let good = if last.is_some() { self.agrees(&expected) } else { self.agrees_on_bars(&expected) };
        anyhow::ensure!(good, "W1 checksum: {self:?} is not the reference's {expected:?}");
        Ok(())
    }
}

#[derive(Clone, Copy, Default)]
struct Open {
    high: f64,
    low: f64,
    close: f64,
    volume: f64,
    count: u32,
}

/// The five indicators, as small running states.
#[derive(Clone)]
struct Five {
    seen: u32,
    previous: f64,
    ema: [(f64, f64); 2],
    gain: f64,
    loss: f64,
    atr: f64,
    window: [f64; 20],
    base: f64,
    sum: f64,
    squares: f64,
    out: [f64; 6],
}

impl Five {
    fn new() -> Self {
        Five {
            seen: 0,
            previous: 0.0,
            ema: [(0.0, f64::NAN); 2],
            gain: 0.0,
            loss: 0.0,
            atr: 0.0,
            window: [0.0; 20],
            base: 0.0,
            sum: 0.0,
            squares: 0.0,
            out: [f64::NAN; 6],
        }
    }

    #[inline]
    fn push(&mut self, bar: &Open) {
        let (n, x) = (self.seen + 1, bar.close);
        for (slot, period) in [12_u32, 26].into_iter().enumerate() {
            let (sum, value) = &mut self.ema[slot];
            if n > period {
                *value += 2.0 / f64::from(period + 1) * (x - *value);
            } else {
                *sum += x;
                if n == period {
                    *value = *sum / f64::from(period);
                }
            }
            self.out[slot] = *value;
        }
        if n == 1 {
            self.base = x;
        } else {
            let move_ = x - self.previous;
            let (gain, loss) = (move_.max(0.0), (-move_).max(0.0));
            let range = (bar.high - bar.low).max((bar.high - self.previous).abs()).max((bar.low - self.previous).abs());
            if n > 15 {
                self.gain = (self.gain * 13.0 + gain) / 14.0;
                self.loss = (self.loss * 13.0 + loss) / 14.0;
                self.atr = (self.atr * 13.0 + range) / 14.0;
            } else {
                self.gain += gain;
                self.loss += loss;
                self.atr += range;
                if n == 15 {
                    self.gain /= 14.0;
                    self.loss /= 14.0;
                    self.atr /= 14.0;
                }
            }
            if n >= 15 {
                let both = self.gain + self.loss;
                self.out[2] = if both > 0.0 { 100.0 * self.gain / both } else { 0.0 };
                self.out[5] = self.atr;
            }
        }
        let slot = (self.seen % 20) as usize;
        let (y, old) = (x - self.base, self.window[slot]);
        self.window[slot] = y;
        self.sum += y - old;
        self.squares += y * y - old * old;
        if n >= 20 {
            let mean = self.sum / 20.0;
            let deviation = (self.squares / 20.0 - mean * mean).max(0.0).sqrt();
            self.out[3] = mean + self.base + 2.0 * deviation;
            self.out[4] = mean + self.base - 2.0 * deviation;
        }
        self.previous = x;
        self.seen = n;
    }
}

/// W1: bars of every symbol, and five indicators on each that closes.
pub(crate) struct W1Loop {
    bar: Nanos,
    end: Nanos,
    open: Vec<Open>,
    fives: Vec<Five>,
    sum: W1Sum,
}

impl W1Loop {
    /// Before the first trade.
    pub(crate) fn new(bar: Nanos) -> Self {
        let (open, fives) = (vec![Open::default(); SYMBOLS], vec![Five::new(); SYMBOLS]);
        W1Loop { bar, end: i64::MIN, open, fives, sum: W1Sum::default() }
    }

    /// Takes a trade.
    #[inline]
    pub(crate) fn trade(&mut self, time: Nanos, symbol: usize, price: f64, size: f64) {
        if time >= self.end {
            self.close_all();
            self.end = time - time.rem_euclid(self.bar) + self.bar;
        }
        let bar = &mut self.open[symbol];
        if bar.count == 0 {
            *bar = Open { high: price, low: price, close: price, volume: size, count: 1 };
        } else {
            if price > bar.high {
                bar.high = price;
            }
            if price < bar.low {
                bar.low = price;
            }
            bar.close = price;
            bar.volume += size;
            bar.count += 1;
        }
    }

    #[cold]
    #[inline(never)]
    fn close_all(&mut self) {
        for (bar, five) in self.open.iter_mut().zip(&mut self.fives) {
            if bar.count > 0 {
                five.push(bar);
                self.sum.bars += 1;
                self.sum.closes += bar.close;
                self.sum.volumes += bar.volume;
                bar.count = 0;
            }
        }
    }

    /// Closes the last bars.
    pub(crate) fn finish(mut self) -> W1Sum {
        self.close_all();
        for five in &self.fives {
            for (total, value) in self.sum.last.iter_mut().zip(five.out) {
                *total += value;
            }
        }
        self.sum
    }
}

/// A trade as the loops want it: event time, symbol, price, size.
pub(crate) type PlainTrade = (Nanos, u32, f64, f64);

/// W1 over trades in memory.
pub(crate) fn w1(trades: &[PlainTrade], bar: Nanos) -> W1Sum {
    let mut plain = W1Loop::new(bar);
    for &(time, symbol, price, size) in trades {
        plain.trade(time, symbol as usize, price, size);
    }
    plain.finish()
}

const SLIPPAGE: f64 = 0.0005;
const COMMISSION: f64 = 0.001;
const CAPITAL: f64 = 100_000.0;
/// Of one-minute bars.
pub(crate) const BARS_A_YEAR: f64 = 525_600.0;

/// The (fast, slow) periods of an EMA cross.
pub(crate) type Variant = (u32, u32);

/// Sums over the variants of W2.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct W2Sum {
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

impl W2Sum {
    /// What W2 must give.
    pub(crate) const EXPECTED: W2Sum = W2Sum {
        total_return: 8.33250667,
        sharpe: 16631.514941,
        drawdown: 0.06544481,
        trades: 1_183_094,
        win_rate: 117.471362,
    };

    /// Equal to the digits that [`W2Sum::EXPECTED`] has.
    pub(crate) fn agrees(&self, other: &W2Sum) -> bool {
        near(self.total_return, other.total_return, 0.01)
            && near(self.sharpe, other.sharpe, 0.01)
            && near(self.drawdown, other.drawdown, 0.01)
            && near(self.win_rate, other.win_rate, 0.01)
            && self.trades == other.trades
    }
}

/// W2: each variant is one loop over the closes.
pub(crate) fn w2(closes: &[f64], variants: &[Variant]) -> W2Sum {
    let mut total = W2Sum::default();
    for &(fast, slow) in variants {
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
        total.sharpe += mean / variance.sqrt() * BARS_A_YEAR.sqrt();
        total.drawdown += drawdown;
        total.trades += trades;
        total.win_rate += wins as f64 / trades.max(1) as f64;
    }
    total
}
