//! The inputs of W1 and W2: seeded, the same on every machine.

/// splitmix64.
pub(crate) struct Random(u64);

impl Random {
    /// A generator that begins at `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Nearly normal, of variance 1: the sum of four uniforms. Only + and ·, so the same bits anywhere.
    fn normal(&mut self) -> f64 {
        let sum = self.unit() + self.unit() + self.unit() + self.unit();
        (sum - 2.0) * 1.732_050_807_568_877_2
    }
}

/// A trade of W1: prices in cents, sizes in thousandths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trade {
    /// Event time in nanoseconds.
    pub(crate) time: i64,
    /// 0 to 49.
    pub(crate) symbol: u32,
    /// Thousandths.
    pub(crate) size: u32,
    /// Cents.
    pub(crate) price: i64,
}

impl Trade {
    /// The price in money.
    pub(crate) fn price(&self) -> f64 {
        self.price as f64 / 100.0
    }

    /// The size in units.
    pub(crate) fn size(&self) -> f64 {
        f64::from(self.size) / 1000.0
    }
}

/// Symbols of W1.
pub(crate) const SYMBOLS: usize = 50;

/// W1's trades: about 10,000 a second of event time, in calm spells and bursts; symbol k gets a share of 1/(k + 3).
pub(crate) fn trades(count: usize) -> Vec<Trade> {
    let mut random = Random::new(42);
    let shares: Vec<f64> = (0..SYMBOLS).map(|k| 1.0 / (k as f64 + 3.0)).collect();
    let total: f64 = shares.iter().sum();
    let mut so_far = 0.0;
    let mut cumulated: Vec<f64> = shares
        .iter()
        .map(|share| {
            so_far += share / total;
            so_far
        })
        .collect();
    cumulated[SYMBOLS - 1] = 1.0;
    let mut prices: Vec<f64> = (0..SYMBOLS).map(|k| 20.0 + 7.0 * k as f64).collect();
    let volatility: Vec<f64> = (0..SYMBOLS).map(|_| 2e-5 + 8e-5 * random.unit()).collect();
    let (mut time, mut burst, mut hot) = (1_700_000_000_000_000_000_i64, 0_u64, 0_usize);
    let mut trades = Vec::with_capacity(count);
    for _ in 0..count {
        if burst == 0 && random.bits().is_multiple_of(2000) {
            burst = 200 + random.bits() % 800;
            hot = (random.bits() % SYMBOLS as u64) as usize;
        }
        let gap = if burst > 0 {
            burst -= 1;
            random.bits() % 20_000
        } else {
            random.bits() % 254_000
        };
        time += gap as i64;
        let bursting = burst > 0;
        let symbol = if bursting && random.bits() & 1 == 0 {
            hot
        } else {
            let at = random.unit();
            cumulated.partition_point(|&x| x <= at).min(SYMBOLS - 1)
        };
        let sigma = volatility[symbol] * if bursting { 4.0 } else { 1.0 };
        prices[symbol] = (prices[symbol] * (1.0 + sigma * random.normal())).max(1.0);
        let price = (prices[symbol] * 100.0).round() as i64;
        let size = 1 + (random.bits() % 10_000) as u32;
        trades.push(Trade { time, symbol: symbol as u32, size, price });
    }
    trades
}

/// W2's one-minute bars (500,000 of them): closes in units of 1e-4. (Opens, highs and lows are drawn, and not used by W2.)
pub(crate) fn closes(count: usize) -> Vec<i64> {
    let mut random = Random::new(42 ^ 0xba55);
    let (mut price, mut drift, mut left) = (100.0_f64, 0.0, 0_u64);
    (0..count)
        .map(|_| {
            if left == 0 {
                left = 50 + random.bits() % 400;
                drift = 2.0e-4 * random.normal() - 2e-3 * (price / 100.0 - 1.0) * 0.05;
            }
            left -= 1;
            for _ in 0..4 {
                price *= 1.0 + drift / 4.0 + 5e-4 * random.normal();
            }
            price = price.max(5.0);
            random.bits();
            (price * 10_000.0).round() as i64
        })
        .collect()
}

/// What arrives of W1's trades: `(trade, whether this is its bust)`, as indexes into the trades, in order of arrival.
/// 1 % come late by up to a minute of event time, 0.1 % are busted 1 to 30 s after they came.
pub(crate) fn disorder(trades: &[Trade]) -> Vec<(u32, bool)> {
    const S: u64 = 1_000_000_000;
    let mut random = Random::new(7);
    let mut arrivals: Vec<(i64, u32, bool)> = Vec::with_capacity(trades.len() + trades.len() / 500);
    for (i, trade) in trades.iter().enumerate() {
        let dice = random.bits() % 1000;
        let late = if dice < 10 { (random.bits() % (60 * S)) as i64 } else { 0 };
        arrivals.push((trade.time + late, i as u32, false));
        if dice == 500 {
            arrivals.push((trade.time + late + (S + random.bits() % (29 * S)) as i64, i as u32, true));
        }
    }
    arrivals.sort_by_key(|(at, ..)| *at);
    arrivals.into_iter().map(|(_, i, bust)| (i, bust)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_over_half_a_million_trades_gives_the_known_sums() {
        let plain = crate::w1::plain(&trades(500_000));
        crate::loops::w1(&plain, 1_000_000_000).check(plain.len(), 1_000_000_000).unwrap();
    }

    #[test]
    fn one_in_a_hundred_is_late_and_one_in_a_thousand_is_busted_after_it_came() {
        let trades = trades(100_000);
        let arrivals = disorder(&trades);
        let busts = arrivals.iter().filter(|(_, bust)| *bust).count();
        assert!((50..200).contains(&busts), "{busts}");
        let mut came = vec![false; trades.len()];
        let (mut greatest, mut late) = (0, 0);
        for (i, bust) in arrivals {
            assert_eq!(came[i as usize], bust, "trade {i}");
            came[i as usize] = true;
            if !bust {
                late += usize::from(i < greatest);
                greatest = greatest.max(i);
            }
        }
        assert!(came.into_iter().all(|came| came));
        assert!((500..2_000).contains(&late), "{late}");
    }
}
