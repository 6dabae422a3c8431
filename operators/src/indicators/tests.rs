use super::*;
use crate::series::{SeriesBar, utc_day};
use marea_model::time::{DAY, SECOND};
use proptest::prelude::*;

/// A random walk in cents, with flat bars, bars without volume, and gaps up to a day.
fn walks(bars: std::ops::Range<usize>) -> impl Strategy<Value = Series> {
    let bar = (-60_i32..=60, 0_i32..=40, 0_i32..=40, -30_i32..=30, 0_u32..5, 0_u32..500, 0_i64..40);
    prop::collection::vec(bar, bars).prop_map(|steps| {
        let (mut time, mut cents) = (0, 10_000);
        let mut series = Series::new();
        for (gap, up, down, body, kind, volume, hours) in steps {
            time += 60 * SECOND + if hours < 5 { hours * 6 * 3600 * SECOND } else { 0 };
            let price = |cents: i32| f64::from(cents) / 100.0;
            let bar = if kind == 0 {
                let p = price(cents);
                SeriesBar { open_time: time, open: p, high: p, low: p, close: p, volume: 0.0, turnover: 0.0 }
            } else {
                let open = cents + gap;
                let close = open + body;
                let (high, low) = (price(open.max(close) + up), price(open.min(close) - down));
                cents = close;
                let (open, close, volume) = (price(open), price(close), f64::from(volume) / 10.0);
                SeriesBar { open_time: time, open, high, low, close, volume, turnover: volume * close }
            };
            series.push(bar);
        }
        series
    })
}

/// Any indicator with short periods.
fn specs() -> impl Strategy<Value = IndicatorSpec> {
    let names = prop::sample::select(KNOWN.map(|known| known.0).to_vec());
    (names, 1_u32..9, 1_u32..9, 1_u32..9).prop_map(|(name, a, b, c)| {
        let text = match name {
            "macd" => format!("macd({a},{},{c})", a + b),
            "bollinger" => format!("bollinger({a},{})", f64::from(b) / 2.0),
            "stochastic" => format!("stochastic({a},{b},{c})"),
            "obv" | "vwap" => name.to_owned(),
            _ => format!("{name}({a})"),
        };
        text.parse().unwrap()
    })
}

/// Definitions, from scratch at every bar, by closed formulas instead of recurrences.
mod naive {
    use super::*;

    pub(super) fn mean(x: &[f64]) -> f64 {
        x.iter().sum::<f64>() / x.len() as f64
    }

    /// seed · (1 − k)^m + Σ k·(1 − k)^age · x, the seed being the mean of the first n.
    pub(super) fn smoothed(x: &[f64], n: usize, k: f64) -> Option<f64> {
        let rest = x.get(n..)?;
        let weighted = rest.iter().rev().enumerate().map(|(age, x)| k * (1.0 - k).powi(age as i32) * x).sum::<f64>();
        Some(mean(&x[..n]) * (1.0 - k).powi(rest.len() as i32) + weighted)
    }

    pub(super) fn ema(x: &[f64], n: usize) -> Option<f64> {
        smoothed(x, n, 2.0 / (n as f64 + 1.0))
    }

    pub(super) fn rma(x: &[f64], n: usize) -> Option<f64> {
        smoothed(x, n, 1.0 / n as f64)
    }

    /// The plain sum of the first n − 1, then s − s/n + x.
    pub(super) fn wilder_sum(x: &[f64], n: usize) -> Option<f64> {
        let (seed, rest) = (x.get(..n - 1)?, x.get(n - 1..)?);
        let decay = 1.0 - 1.0 / n as f64;
        let sum: f64 = rest.iter().rev().enumerate().map(|(age, x)| decay.powi(age as i32) * x).sum();
        Some(seed.iter().sum::<f64>() * decay.powi(rest.len() as i32) + sum)
    }

    pub(super) fn window(x: &[f64], n: usize) -> Option<&[f64]> {
        x.len().checked_sub(n).map(|from| &x[from..])
    }

    pub(super) fn highest(x: &[f64]) -> f64 {
        x.iter().copied().fold(f64::MIN, f64::max)
    }

    pub(super) fn lowest(x: &[f64]) -> f64 {
        x.iter().copied().fold(f64::MAX, f64::min)
    }

    fn ranges(s: &Series) -> Vec<f64> {
        (1..s.len()).map(|i| s.high[i].max(s.close[i - 1]) - s.low[i].min(s.close[i - 1])).collect()
    }

    fn di(s: &Series, n: usize) -> Option<[f64; 2]> {
        let moves: Vec<[f64; 2]> = (1..s.len()).map(|i| [s.high[i] - s.high[i - 1], s.low[i - 1] - s.low[i]]).collect();
        let side = |at: usize| moves.iter().map(|m| if m[at] > m[1 - at] { m[at].max(0.0) } else { 0.0 }).collect();
        let sides: [Vec<f64>; 2] = [side(0), side(1)];
        if s.len() < n + 1 {
            return None;
        }
        let range = wilder_sum(&ranges(s), n)?;
        Some([0, 1].map(|at| if range > 0.0 { 100.0 * wilder_sum(&sides[at], n).unwrap() / range } else { 0.0 }))
    }

    fn fast_k(s: &Series, n: usize) -> f64 {
        let (low, high) = (lowest(window(&s.low, n).unwrap()), highest(window(&s.high, n).unwrap()));
        if high > low { 100.0 * (s.close[s.len() - 1] - low) / (high - low) } else { 0.0 }
    }

    fn head(s: &Series, bars: usize) -> Series {
        let mut head = s.clone();
        head.truncate(bars);
        head
    }

    /// The values at the last bar.
    pub(super) fn values(spec: IndicatorSpec, s: &Series) -> Values {
        let (c, len) = (&s.close, s.len());
        let last = c[len - 1];
        match spec {
            IndicatorSpec::Sma { period } => one(window(c, period as usize).map(mean)),
            IndicatorSpec::Ema { period } => one(ema(c, period as usize)),
            IndicatorSpec::Rma { period } => one(rma(c, period as usize)),
            IndicatorSpec::Rsi { period } => {
                let changes: Vec<f64> = c.windows(2).map(|w| w[1] - w[0]).collect();
                let gains: Vec<f64> = changes.iter().map(|x| x.max(0.0)).collect();
                let losses: Vec<f64> = changes.iter().map(|x| (-x).max(0.0)).collect();
                let both = rma(&gains, period as usize).zip(rma(&losses, period as usize));
                one(both.map(|(g, l)| if g + l > 0.0 { 100.0 * g / (g + l) } else { 0.0 }))
            }
            IndicatorSpec::Macd { fast, slow, signal } => {
                let (fast, slow, signal) = (fast as usize, slow as usize, signal as usize);
                let line: Vec<f64> = (slow..=len)
                    .map(|to| ema(&c[slow - fast..to], fast).unwrap() - ema(&c[..to], slow).unwrap())
                    .collect();
                match ema(&line, signal) {
                    None => [None; 4],
                    Some(y) => [Some(line[line.len() - 1]), Some(y), Some(line[line.len() - 1] - y), None],
                }
            }
            IndicatorSpec::Bollinger { period, deviations } => match window(c, period as usize) {
                None => [None; 4],
                Some(w) => {
                    let m = mean(w);
                    let d = deviations.0 * mean(&w.iter().map(|x| (x - m).powi(2)).collect::<Vec<_>>()).sqrt();
                    [Some(m - d), Some(m), Some(m + d), None]
                }
            },
            IndicatorSpec::Atr { period } => one(rma(&ranges(s), period as usize)),
            IndicatorSpec::Stochastic { k, smooth, d } => {
                let (k, smooth, d) = (k as usize, smooth as usize, d as usize);
                if len < k + smooth + d - 2 {
                    return [None; 4];
                }
                let slow = |to: usize| mean(&(0..smooth).map(|j| fast_k(&head(s, to - j), k)).collect::<Vec<_>>());
                let signal = mean(&(0..d).map(|j| slow(len - j)).collect::<Vec<_>>());
                [Some(slow(len)), Some(signal), None, None]
            }
            IndicatorSpec::Adx { period } => {
                let n = period as usize;
                let Some([plus, minus]) = di(s, n) else { return [None; 4] };
                // DX of every bar that has one; it keeps its last value where both DIs are 0, but does not move ADX.
                let (mut dx, mut history) = (0.0, Vec::new());
                for to in n + 1..=len {
                    let [p, m] = di(&head(s, to), n).unwrap();
                    if p + m > 0.0 {
                        dx = 100.0 * (p - m).abs() / (p + m);
                        history.push(dx);
                    } else if history.len() < n {
                        history.push(0.0);
                    }
                }
                let adx = (len >= 2 * n).then(|| rma(&history, n).unwrap());
                [adx, Some(plus), Some(minus), Some(dx)]
            }
            IndicatorSpec::Cci { period } => {
                let typical: Vec<f64> = (0..len).map(|i| (s.high[i] + s.low[i] + s.close[i]) / 3.0).collect();
                one(window(&typical, period as usize).map(|w| {
                    let m = mean(w);
                    let distance = mean(&w.iter().map(|x| (x - m).abs()).collect::<Vec<_>>());
                    let flat = distance <= 1e-13 * m.abs();
                    if flat { 0.0 } else { (w[w.len() - 1] - m) / (0.015 * distance) }
                }))
            }
            IndicatorSpec::WilliamsR { period } => {
                let w = window(&s.high, period as usize).zip(window(&s.low, period as usize));
                one(w
                    .map(|(high, low)| (highest(high), lowest(low)))
                    .map(|(high, low)| if high > low { -100.0 * (high - last) / (high - low) } else { 0.0 }))
            }
            IndicatorSpec::Roc { period } => {
                one(window(c, period as usize + 1)
                    .map(|w| if w[0] == 0.0 { 0.0 } else { 100.0 * (last - w[0]) / w[0] }))
            }
            IndicatorSpec::Obv => {
                let signed =
                    |i: usize| s.volume[i] * (s.close[i] - s.close[i - 1]).partial_cmp(&0.0).unwrap() as i8 as f64;
                one(Some(s.volume[0] + (1..len).map(signed).sum::<f64>()))
            }
            IndicatorSpec::Donchian { period } => {
                let w = window(&s.high, period as usize).zip(window(&s.low, period as usize));
                let Some((high, low)) = w.map(|(high, low)| (highest(high), lowest(low))) else { return [None; 4] };
                [Some(low), Some((low + high) / 2.0), Some(high), None]
            }
            IndicatorSpec::Vwap => {
                let day: Vec<usize> =
                    (0..len).filter(|i| utc_day(s.open_time[*i]) == utc_day(s.open_time[len - 1])).collect();
                let volume: f64 = day.iter().map(|i| s.volume[*i]).sum();
                let typical = |i: &usize| (s.high[*i] + s.low[*i] + s.close[*i]) / 3.0 * s.volume[*i];
                one((volume > 0.0).then(|| day.iter().map(typical).sum::<f64>() / volume))
            }
        }
    }
}

fn bits(values: Values) -> [Option<u64>; 4] {
    values.map(|v| v.map(f64::to_bits))
}

fn agree(a: Values, b: Values) -> bool {
    a.iter().zip(&b).all(|pair| match pair {
        (None, None) => true,
        (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * b.abs().max(1.0),
        _ => false,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn an_indicator_is_its_formula(spec in specs(), series in walks(1..60)) {
        let (mut indicator, mut head) = (spec.build(), Series::new());
        for i in 0..series.len() {
            head.push(series.bar(i));
            let (ours, naive) = (indicator.step(&series, i), naive::values(spec, &head));
            prop_assert!(agree(ours, naive), "{} at bar {}: {:?}, by its formula {:?}", spec, i, ours, naive);
            if i + 1 >= spec.warm_up() as usize && spec != IndicatorSpec::Vwap {
                prop_assert_eq!(ours.iter().flatten().count(), spec.outputs().len());
            }
        }
    }

    #[test]
    fn a_series_may_begin_a_lookback_before(spec in specs(), series in walks(2..60), at in 0.0..1.0) {
        let middle = (at * series.len() as f64) as usize;
        let mut whole = spec.build();
        for i in 0..middle {
            whole.step(&series, i);
        }
        let mut part = whole;
        let from = middle.saturating_sub(spec.lookback());
        let tail = series.tail(from);
        for i in middle..series.len() {
            prop_assert_eq!(bits(whole.step(&series, i)), bits(part.step(&tail, i - from)));
            prop_assert_eq!(whole, part);
        }
    }

    #[test]
    fn equal_states_and_windows_go_on_equally(
        spec in specs(),
        series in walks(40..60),
        at in 0_usize..20,
        up in 1..50,
    ) {
        let mut edited = series.clone();
        edited.high[at] += f64::from(up) / 100.0;
        edited.close[at] = edited.high[at];
        edited.volume[at] += 1.0;
        let (mut a, mut b) = (spec.build(), spec.build());
        let mut met = false;
        for i in 0..series.len() {
            let values = (bits(a.step(&series, i)), bits(b.step(&edited, i)));
            prop_assert!(!met || (values.0 == values.1 && a == b));
            met = a == b && i >= at + spec.lookback();
            // What has no state but its age has met as soon as the window is past.
            let windowed = !["ema", "rma", "rsi", "macd", "atr", "adx", "obv", "vwap"].contains(&KNOWN[spec.known()].0);
            prop_assert!(!windowed || met == (i >= at + spec.lookback()));
        }
    }
}

/// A deterministic walk of minutes, long enough for recurrences to forget.
fn long_walk(bars: usize) -> Series {
    let (mut x, mut price) = (7_u64, 100.0_f64);
    (0..bars)
        .map(|i| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let open = price;
            price += ((x >> 33) as f64 / (1_u64 << 31) as f64 - 0.5) * 0.4;
            let open_time = i as i64 * 60 * SECOND;
            let (high, low) = (open.max(price) + 0.05, open.min(price) - 0.05);
            SeriesBar { open_time, open, high, low, close: price, volume: 10.0, turnover: 0.0 }
        })
        .collect()
}

#[test]
fn an_edit_is_forgotten_to_the_bit() {
    let series = long_walk(6000);
    let mut edited = series.clone();
    edited.close[100] += 1.0;
    edited.high[100] += 1.0;
    let forgotten = |text: &str| {
        let spec: IndicatorSpec = text.parse().unwrap();
        let (mut a, mut b) = (spec.build(), spec.build());
        let last = (0..series.len()).filter(|i| {
            let values = (bits(a.step(&series, *i)), bits(b.step(&edited, *i)));
            values.0 != values.1 || a != b
        });
        last.last().unwrap() - 100
    };
    assert!((200..500).contains(&forgotten("ema(26)")), "{}", forgotten("ema(26)"));
    for text in ["ema(12)", "rma(14)", "rsi(14)", "macd(12,26,9)", "atr(14)", "adx(14)"] {
        assert!(forgotten(text) < 1000, "{text}: {}", forgotten(text));
    }
    for (text, bars) in
        [("sma(20)", 19), ("bollinger(20,2)", 19), ("cci(20)", 19), ("roc(10)", 10), ("donchian(20)", 19)]
    {
        assert_eq!(forgotten(text), bars, "{text}");
    }
    // Until the day's last minute.
    assert_eq!(forgotten("vwap"), 1439 - 100);
}

#[test]
fn values_at_the_edges() {
    let flat: Series = (0..40)
        .map(|i| SeriesBar {
            open_time: i * DAY / 4,
            open: 0.1,
            high: 0.1,
            low: 0.1,
            close: 0.1,
            volume: 0.0,
            turnover: 0.0,
        })
        .collect();
    for (text, expected) in [
        ("sma(20)", [Some(0.1), None, None, None]),
        ("ema(12)", [Some(0.1), None, None, None]),
        ("rma(14)", [Some(0.1), None, None, None]),
        ("rsi(14)", [Some(0.0), None, None, None]),
        ("macd(12,26,9)", [Some(0.0), Some(0.0), Some(0.0), None]),
        ("bollinger(20,2)", [Some(0.1), Some(0.1), Some(0.1), None]),
        ("atr(14)", [Some(0.0), None, None, None]),
        ("stochastic(14,3,3)", [Some(0.0), Some(0.0), None, None]),
        ("adx(14)", [Some(0.0); 4]),
        ("cci(20)", [Some(0.0), None, None, None]),
        ("williams_r(14)", [Some(0.0), None, None, None]),
        ("roc(10)", [Some(0.0), None, None, None]),
        ("obv", [Some(0.0), None, None, None]),
        ("donchian(20)", [Some(0.1), Some(0.1), Some(0.1), None]),
        // Nothing was traded all day.
        ("vwap", [None; 4]),
    ] {
        let spec: IndicatorSpec = text.parse().unwrap();
        let mut indicator = spec.build();
        let values: Vec<Values> = (0..flat.len()).map(|i| indicator.step(&flat, i)).collect();
        assert_eq!(values[39], expected, "{text} of a flat market");
        let first = values.iter().position(|v| v[0].is_some());
        assert_eq!(first.map(|i| i as u32 + 1), (text != "vwap").then(|| spec.warm_up()), "{text}: first value");
    }
}

#[test]
fn specs_read_as_they_print() {
    for spec in IndicatorSpec::defaults() {
        assert_eq!(spec.to_string().parse(), Ok(spec));
        assert_eq!(serde_json::from_str::<IndicatorSpec>(&serde_json::to_string(&spec).unwrap()).unwrap(), spec);
    }
    let names = |text: &str| text.parse::<IndicatorSpec>().unwrap().outputs().join(" ");
    assert_eq!(names("ema(12)"), "ema(12)");
    assert_eq!(names("vwap"), "vwap");
    assert_eq!(names("macd( 12, 26,9)"), "macd(12,26,9).macd macd(12,26,9).signal macd(12,26,9).hist");
    assert_eq!(names("bollinger(20,2.50)"), "bollinger(20,2.5).lower bollinger(20,2.5).middle bollinger(20,2.5).upper");
    assert_eq!(names("stochastic(14,3,3)"), "stochastic(14,3,3).k stochastic(14,3,3).d");
    assert_eq!(names("adx(14)"), "adx(14).adx adx(14).plus_di adx(14).minus_di adx(14).dx");
}

#[test]
fn a_bad_spec_names_its_parameter() {
    for (text, expected) in [
        ("ema(0)", "period: 0 must be 1 to 10000 bars"),
        ("ema(10001)", "period: 10001 must be 1 to 10000 bars"),
        ("ema(-1)", "period: \"-1\" must be a whole number of bars"),
        ("ema", "ema: takes (period)"),
        ("ema()", "period: \"\" must be a whole number of bars"),
        ("ema(1,2)", "ema: takes (period)"),
        ("macd(26,12,9)", "fast: 26 must be below slow = 12"),
        ("macd(12,26)", "macd: takes (fast,slow,signal)"),
        ("bollinger(20,NaN)", "deviations: NaN must be 0.1 to 10"),
        ("bollinger(20,x)", "deviations: \"x\" must be a number"),
        ("stochastic(14,3,101)", "d: 101 must be 1 to 100 bars"),
        ("obv(1)", "obv: takes no parameters"),
    ] {
        assert_eq!(text.parse::<IndicatorSpec>().unwrap_err().to_string(), expected, "{text}");
    }
    let error = "magic(1)".parse::<IndicatorSpec>().unwrap_err().to_string();
    assert!(error.starts_with("indicator: unknown indicator \"magic(1)\"; known: sma, ema, "), "{error}");
}
