//! Base bars to the workers that need them beside their symbol's owner: those that run a strategy on the symbol.
//!
//! * Key: symbol. A worker that comes to need a symbol, since a strategy was added, is sent all its base bars at that very
//!   epoch, then each that changes. What it was sent once it is sent on, needed or not, so that it never has old bars.
//! * Corrects: what it is given it passes on.
//! * State: of each symbol who is sent its bars, and that only once there are strategies. The bars themselves stand in the
//!   [`Scan`] of this worker, which may be some epochs behind: what it has not yet taken in is known by being alive.
//! * Cost: without strategies nothing; else a look-up a bar, and a copy for each worker that is sent it. A change of strategies
//!   looks at every symbol; a worker that comes to need a symbol costs 112 bytes a bar until it has taken them in.
//! * The output frontier promises: all bars for other workers of the epochs before it.

use crate::bars::BarUpsert;
use crate::epochs::{Clock, EpochOperator, EpochStream};
use crate::scan::{Scan, runner};
use marea_model::live::Touched;
use marea_model::{ConfigUpdate, Instruments, LiveConfig, Symbol, Timeframe};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};

/// Base bars for a worker, in the order in which they stand.
pub type Routed = (u64, Vec<BarUpsert>);

/// The kernel: configuration and base bars in, bars for other workers out.
pub struct Route {
    /// This worker, of so many.
    index: usize,
    peers: usize,
    live: LiveConfig,
    /// Of each symbol, which workers are sent its bars; none is here before the first strategy.
    sent: HashMap<Symbol, Vec<bool>>,
    /// Bars of the last epochs, as long as the scan has not taken them in.
    recent: Vec<Weak<Vec<BarUpsert>>>,
}

impl Route {
    /// Of worker `index` of `peers`, to begin with these instruments; no strategies.
    pub fn new(instruments: &Instruments, index: usize, peers: usize) -> Self {
        let (live, sent) = (LiveConfig::new(instruments), HashMap::new());
        Route { index, peers, live, sent, recent: Vec::new() }
    }

    /// With these timeframes: strategies on others do not run.
    pub fn with_timeframes(self, timeframes: &[Timeframe]) -> Self {
        Route { live: self.live.with_timeframes(timeframes), ..self }
    }

    /// Takes in an epoch: its configuration and its bars; `scan` has those of the epochs before, but for the last ones that
    /// it has yet to take in.
    pub fn epoch(&mut self, config: &[ConfigUpdate], bars: &[Arc<Vec<BarUpsert>>], scan: &Scan) -> Vec<Routed> {
        let mut out: Vec<Routed> = (0..self.peers as u64).map(|worker| (worker, Vec::new())).collect();
        let mut strategies = false;
        for update in config {
            strategies |= matches!(self.live.apply(update), Touched::Strategy(_));
        }
        if strategies && !self.live.strategies().is_empty() {
            self.catch_up(scan, &mut out);
        }
        if !self.sent.is_empty() || !self.live.strategies().is_empty() {
            for bar in bars.iter().flat_map(|bars| bars.iter()) {
                let (live, index, peers) = (&self.live, self.index, self.peers);
                let sent = self.sent.entry(bar.symbol).or_insert_with(|| needs(live, bar.symbol, index, peers));
                let to = sent.iter().zip(&mut out).filter(|(sent, _)| **sent);
                to.for_each(|(_, (_, out))| out.push(*bar));
            }
        }
        self.recent.retain(|bars| bars.strong_count() > 0);
        self.recent.extend(bars.iter().map(Arc::downgrade));
        out.retain(|(_, bars)| !bars.is_empty());
        out
    }

    /// Sends all that was there before this epoch to those who need it now and have not had it.
    fn catch_up(&mut self, scan: &Scan, out: &mut [Routed]) {
        let recent: Vec<_> = self.recent.iter().filter_map(Weak::upgrade).collect();
        let recent = || recent.iter().flat_map(|bars| bars.iter());
        let rollup = scan.rollup();
        let base = rollup.timeframes()[0];
        let mut known: Vec<Symbol> = rollup.symbols().chain(self.sent.keys().copied()).collect();
        if self.sent.is_empty() {
            // Since there were strategies each symbol has been noted with its first bar.
            known.extend(recent().map(|bar| bar.symbol));
        }
        known.sort_unstable();
        known.dedup();
        for symbol in known.into_iter().filter(|symbol| crate::scan::owner(*symbol, self.peers) == self.index) {
            let needs = needs(&self.live, symbol, self.index, self.peers);
            let sent = self.sent.entry(symbol).or_insert_with(|| vec![false; needs.len()]);
            for ((sent, needs), (_, out)) in sent.iter_mut().zip(needs).zip(&mut *out) {
                if needs && !std::mem::replace(sent, true) {
                    let history = rollup.history(symbol, base).into_iter().flat_map(|history| history.iter());
                    out.extend(history.map(|(open_time, body)| BarUpsert { symbol, open_time, body: Some(body) }));
                    out.extend(recent().filter(|bar| bar.symbol == symbol));
                }
            }
        }
    }
}

/// Which workers other than the owner run a strategy on a symbol.
fn needs(live: &LiveConfig, symbol: Symbol, owner: usize, peers: usize) -> Vec<bool> {
    let mut needs = vec![false; peers];
    for worker in live.strategies().values().filter_map(|strategy| runner(strategy, symbol, peers)) {
        needs[worker] = worker != owner;
    }
    needs
}

/// Wires the route: `bars` are those of the symbols that this worker owns, and `scan` is their kernel here. What it gives
/// is for the worker that stands beside it.
pub fn route<'scope>(
    clock: Clock<'scope>,
    bars: EpochStream<'scope, Arc<Vec<BarUpsert>>>,
    mut kernel: Route,
    scan: Rc<RefCell<Scan>>,
) -> EpochStream<'scope, Routed> {
    let mut operator = EpochOperator::new("route", clock);
    let bars = operator.input(bars);
    let (routed, stream) = operator.output();
    operator.build(move |_, feed| routed.give_vec(kernel.epoch(&feed.config, &bars.take(), &scan.borrow())));
    stream
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::{ScanConfig, owner};
    use marea_model::{BarBody, Nanos, Price, Size};
    use std::collections::BTreeMap;

    const PEERS: usize = 2;

    fn bar(symbol: Symbol, minute: i64, price: Option<i64>) -> BarUpsert {
        let body = price.map(|price| BarBody::first(Price(price), Size(1)));
        BarUpsert { symbol, open_time: minute * 60_000_000_000, body }
    }

    fn strategy(id: &str, symbol: &str) -> ConfigUpdate {
        let rule = r#""kind":"ema_cross","fast":2,"slow":3,"timeframe":"1m""#;
        let value = format!("{{{rule},\"symbols\":[\"{symbol}\"]}}");
        ConfigUpdate::Put { key: format!("/marea/strategies/{id}"), value, revision: 1 }
    }

    /// A symbol of worker 0, and a strategy that worker `runs` runs on it.
    fn pair(runs: usize) -> (Symbol, String) {
        let symbol = (0..).map(|i| Symbol::new(&format!("S{i}")).unwrap()).find(|s| owner(*s, PEERS) == 0).unwrap();
        let on_it = |id: &String| {
            let mut live = LiveConfig::new(&Instruments::default());
            live.apply(&strategy(id, symbol.as_str()));
            live.strategies().values().all(|strategy| runner(strategy, symbol, PEERS) == Some(runs))
        };
        (symbol, (0..).map(|i| format!("x{i}")).find(on_it).unwrap())
    }

    /// What worker 1 has of the bars of worker 0 after each epoch, if it has any.
    fn sent(epochs: &[(Vec<ConfigUpdate>, Vec<BarUpsert>)], scan_lags: usize) -> Vec<BTreeMap<Nanos, Option<i64>>> {
        let (timeframes, instruments) = (vec![Timeframe::M1], Arc::new(Instruments::default()));
        let mut route = Route::new(&instruments, 0, PEERS).with_timeframes(&timeframes);
        let mut scan =
            Scan::new(ScanConfig { timeframes, indicators: Vec::new(), instruments, index: 0, peers: PEERS }).unwrap();
        let (mut stands, mut waiting) = (BTreeMap::new(), Vec::new());
        let epoch = |(config, bars): &(Vec<ConfigUpdate>, Vec<BarUpsert>)| {
            let bars = Arc::new(bars.clone());
            for (worker, bars) in route.epoch(config, &[Arc::clone(&bars)], &scan) {
                assert_eq!(worker, 1, "none to itself");
                stands.extend(bars.into_iter().map(|bar| (bar.open_time, bar.body.map(|body| body.close.0))));
            }
            waiting.push((config.clone(), bars));
            while waiting.len() > scan_lags {
                let (config, bars) = waiting.remove(0);
                scan.epoch(bars.iter().copied(), None, &config, true);
            }
            stands.clone()
        };
        epochs.iter().map(epoch).collect()
    }

    #[test]
    fn who_comes_to_need_a_symbol_is_sent_all_of_it_and_then_what_changes() {
        let (symbol, id) = pair(1);
        let config = |id: &str| vec![strategy(id, symbol.as_str())];
        let gone = ConfigUpdate::Delete { key: format!("/marea/strategies/{id}"), revision: 2 };
        let epochs = [
            (Vec::new(), vec![bar(symbol, 1, Some(10)), bar(symbol, 2, Some(20))]),
            (Vec::new(), vec![bar(symbol, 2, Some(21)), bar(symbol, 1, None), bar(symbol, 0, Some(5))]),
            (config(&id), vec![bar(symbol, 3, Some(30))]),
            (Vec::new(), vec![bar(symbol, 3, None)]),
            // Sent on, that it may never be old.
            (vec![gone], vec![bar(symbol, 4, Some(40))]),
            (config(&id), vec![bar(symbol, 4, Some(41))]),
        ];
        for scan_lags in 0..4 {
            let sent = sent(&epochs, scan_lags);
            let shown: Vec<Vec<_>> =
                sent.iter().map(|s| s.values().flatten().copied().collect()).collect::<Vec<Vec<i64>>>();
            assert_eq!(
                shown,
                [vec![], vec![], vec![5, 21, 30], vec![5, 21], vec![5, 21, 40], vec![5, 21, 41]],
                "{scan_lags} epochs behind"
            );
        }
    }

    #[test]
    fn what_the_owner_runs_itself_is_sent_to_nobody() {
        let (symbol, id) = pair(0);
        let epochs = [(vec![strategy(&id, symbol.as_str())], vec![bar(symbol, 1, Some(10))])];
        assert!(sent(&epochs, 0)[0].is_empty());
    }
}
