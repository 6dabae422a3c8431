//! Drives the real cutter and engine through a history, and keeps what they give: the state, and the history tables as
//! a committer would write them. What must hold of every closed epoch, whatever the history, is asserted here.

use crate::histories::{Arrival, History, Item, Random};
use crate::oracle::{self, Facts, Judge, State, World};
use marea::cutter::{Clock, Cut, Cutter, CutterConfig};
use marea::dataflow::DataflowConfig;
use marea::engine::{Engine, EngineConfig};
use marea_model::codec::{Decoder, csv, json};
use marea_model::cursor::{Batch, PartitionMark, Reason};
use marea_model::output::{Change, ClosedEpoch, Key, Totals};
use marea_model::recommendation::{Explanation, Text};
use marea_model::time::{MILLI, Nanos, now_ns};
use marea_model::{
    AccountId, AccountSnapshot, Amount, ConfigUpdate, Cursor, DeadLetter, Output, Partition, Progress, Quote,
    Restoration, Sealed, Symbol, Tick, Ticks, Timeframe,
};
use marea_sources::file::{self, FileConfig, Speed};
use marea_sources::{Carries, Input, Stop};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

/// How a history is cut into epochs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cuts {
    /// So many items an epoch.
    Every(usize),
    /// All in one.
    One,
    /// 1 to 40, by a seed.
    Random(u64),
}

/// How a history is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// Worker threads.
    pub(crate) workers: usize,
    /// Epochs.
    pub(crate) cuts: Cuts,
    /// Whether neighbours of a partition come in one batch.
    pub(crate) grouped: bool,
    /// Whether the last partition finishes first.
    pub(crate) backwards: bool,
    /// Whether the state is compared with the oracle's after every epoch.
    pub(crate) checked: bool,
    /// Whether epochs are submitted without waiting for those before, and metrics are given at the end alone.
    pub(crate) ahead: bool,
    /// Whether the process is killed now and then, by a seed, and another one goes on.
    pub(crate) killed: Option<u64>,
    /// Whether what a restart reads again is lost, and that is accepted.
    pub(crate) lossy: bool,
    /// Whether records come that cannot be read, and some with unknown fields, by a seed.
    pub(crate) noise: Option<u64>,
    /// Whether what would be partitions is files, merged into one partition.
    pub(crate) files: bool,
}

impl How {
    /// One worker, a cut every 9 items, unchecked.
    pub(crate) const PLAIN: How = How {
        workers: 1,
        cuts: Cuts::Every(9),
        grouped: false,
        backwards: false,
        checked: false,
        ahead: false,
        killed: None,
        lossy: false,
        noise: None,
        files: false,
    };
}

/// What a run left behind.
pub(crate) struct Done {
    /// The rows that stand.
    pub(crate) state: State,
    /// What happened, epoch by epoch, without what only a wall clock could tell.
    pub(crate) epochs: Vec<ClosedEpoch>,
    /// Sums over all epochs.
    pub(crate) totals: Totals,
    /// As of the end.
    pub(crate) progress: Progress,
    /// The clock at the end.
    pub(crate) now: Nanos,
}

/// A row of the audit: what a committer would write.
struct AuditRow {
    seq: u64,
    row: Option<Output>,
}

/// The sinks' side: state, audit, dead letters and counts, with the laws of the history tables asserted.
#[derive(Default)]
struct Tables {
    state: State,
    audit: BTreeMap<Key, Vec<AuditRow>>,
    seq: u64,
    dead: BTreeSet<(Cursor, Reason)>,
    totals: Totals,
    last: Option<(u64, Progress)>,
    // What only a restart needs.
    partitions: BTreeMap<Partition, PartitionMark>,
    quotes: BTreeMap<Symbol, Option<Quote>>,
    accounts: BTreeMap<AccountId, (AccountSnapshot, Amount)>,
    amends: BTreeSet<Tick>,
    config: Vec<ConfigUpdate>,
}

impl Tables {
    fn commit(&mut self, closed: &ClosedEpoch) {
        if let Some((epoch, progress)) = self.last {
            assert!(closed.epoch > epoch, "epochs rise strictly: {epoch}, then {}", closed.epoch);
            assert!(closed.progress.sealed_through >= progress.sealed_through, "what is sealed stays sealed");
            assert!(closed.progress.closed_through >= progress.closed_through, "what is closed stays closed");
        }
        self.last = Some((closed.epoch, closed.progress));
        let mut previous: Option<Key> = None;
        for change in &closed.changes {
            let (key, row) = match change {
                Change::Upsert(row) => (row.key(), Some(row.clone())),
                Change::Delete(row) => (row.key(), None),
            };
            assert!(previous.as_ref().is_none_or(|p| *p < key), "changes ascend by key: {previous:?}, {key:?}");
            previous = Some(key.clone());
            let standing = self.state.get(&key);
            if let Change::Delete(row) = change {
                let standing = standing.cloned().map(timeless);
                assert_eq!(standing, Some(timeless(row.clone())), "a deletion names the row that stood");
            }
            let rows = self.audit.entry(key.clone()).or_default();
            let before = rows.last().and_then(|r| r.row.clone()).map(timeless);
            let after = row.clone().map(timeless);
            assert_ne!(before, after, "neighbouring rows of a key differ: {key:?}");
            self.seq += 1;
            rows.push(AuditRow { seq: self.seq, row: row.clone() });
            match row {
                Some(row) => self.state.insert(key, row),
                None => self.state.remove(&key),
            };
        }
        for dead in &closed.dead {
            assert!(self.dead.insert((dead.cursor, dead.reason)), "twice dead: {} {}", dead.cursor, dead.reason);
        }
        self.partitions.extend(closed.marks.iter().map(|mark| (mark.partition, *mark)));
        self.quotes.extend(closed.quotes.iter().copied());
        self.amends.extend(closed.amends.iter().cloned());
        for snapshot in &closed.accounts {
            let known = self.accounts.entry(snapshot.account).or_insert_with(|| (snapshot.clone(), snapshot.equity));
            let rank = |s: &AccountSnapshot| (s.event_time, s.seq, s.clone());
            known.1 = known.1.max(snapshot.equity);
            if rank(snapshot) > rank(&known.0) {
                known.0 = snapshot.clone();
            }
        }
        assert!(closed.totals.balanced(), "epoch {}: {:?}", closed.epoch, closed.totals);
        self.totals.add(&closed.totals);
        assert!(self.totals.held >= 0, "{:?}", self.totals);
        assert_eq!(self.totals.dead, self.dead.len() as i64, "every dead record has its letter");
    }

    /// What a store would give to another process.
    fn restoration(&self, base: Timeframe, as_it_stands: bool) -> Option<Restoration> {
        let (epoch, mut progress) = self.last?;
        let mut partitions = self.partitions.clone();
        if as_it_stands {
            // Quotes may stand in no bar, and busted trades: what is known of them is lost too.
            let of_base = |row: &Output| match row {
                Output::Bar(bar) if bar.timeframe == base => Some(bar.close_time()),
                _ => None,
            };
            let read =
                partitions.values().filter_map(|mark| mark.greatest).map(|at| base.close_time(base.open_time(at)));
            let last = self.state.values().filter_map(of_base).chain(read).max();
            progress.sealed_through = progress.sealed_through.max(last.unwrap_or(Nanos::MIN));
            partitions.values_mut().for_each(|mark| mark.low = mark.upper);
        }
        let is_sealed = |open_time: Nanos| base.close_time(open_time) <= progress.sealed_through;
        let bar = |row: &Output| match row {
            Output::Bar(bar) if bar.timeframe == base && is_sealed(bar.open_time) => {
                Some((bar.symbol, bar.open_time, bar.body))
            }
            _ => None,
        };
        Some(Restoration {
            epoch,
            progress,
            partitions,
            config: self.config.clone(),
            sealed: Sealed {
                bars: self.state.values().filter_map(bar).collect(),
                quotes: self.quotes.iter().map(|(symbol, quote)| (*symbol, *quote)).collect(),
                amends: self.amends.iter().filter(|tick| is_sealed(tick.event_time)).cloned().collect(),
            },
            accounts: self.accounts.values().cloned().collect(),
            dead: self.dead.iter().map(|(cursor, _)| *cursor).collect(),
            raw: Vec::new(),
            unacknowledged: Vec::new(),
        })
    }

    /// What the history tables must be at the end.
    fn close(&self) {
        let mut seqs: Vec<u64> = self.audit.values().flatten().map(|r| r.seq).collect();
        seqs.sort_unstable();
        assert!(seqs.iter().copied().eq(1..=self.seq), "seq is dense");
        for (key, rows) in &self.audit {
            assert_eq!(
                rows.last().and_then(|r| r.row.as_ref()),
                self.state.get(key),
                "the last audit row is the state"
            );
        }
        assert!(self.state.keys().all(|key| self.audit.contains_key(key)), "what stands is in the audit");
    }
}

/// Runs a history.
pub(crate) fn run(world: &World, history: &History, how: How) -> Done {
    let parts = (0..history.partitions.max(1)).map(|i| Partition::new(&format!("part-{i}")).expect("a name"));
    let files = Partition::new(file::PARTITION).expect("a name");
    let partitions = if how.files { vec![files] } else { parts.collect() };
    let mut run = Run::start(world, history, how, partitions);
    let mut random = Random(if let Cuts::Random(seed) = how.cuts { seed } else { 0 });
    let mut kills = Random(how.killed.unwrap_or_default());
    let mut rest: &[Arrival] = &history.arrivals;
    while !rest.is_empty() {
        let most = match how.cuts {
            Cuts::Every(n) => n,
            Cuts::One => usize::MAX,
            Cuts::Random(_) => 1 + random.below(40) as usize,
        };
        let (now, later) = rest.split_at(most.min(rest.len()));
        let groups: Vec<&[Arrival]> = now.chunk_by(|a, b| how.grouped && run.together(&a.item, &b.item)).collect();
        for group in groups {
            run.push(group);
        }
        let configures = |arrival: &Arrival| matches!(arrival.item, Item::Config(_) | Item::Stale(_));
        if how.killed.is_some() && !how.lossy && kills.below(12) == 0 && !now.iter().any(configures) {
            // What it had taken and not cut comes again.
            run.kill(&mut kills);
        }
        run.cut();
        if how.killed.is_some() && kills.below(6) == 0 {
            run.kill(&mut kills);
        }
        rest = later;
    }
    run.finish()
}

/// Runs a history through the real file source: its ticks from a CSV file in their order of arrival, its snapshots
/// from JSON lines, at full speed or paced; an epoch is what has come when the channel is empty.
pub(crate) fn run_files(world: &World, history: &History, workers: usize, speed: Speed) -> Done {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (ticks, accounts) = (folder.path().join("ticks.csv"), folder.path().join("accounts.jsonl"));
    let records: Vec<Tick> = history.ticks().cloned().collect();
    std::fs::write(&ticks, csv::encode(&records, &world.instruments)).expect("the ticks are written");
    let mut lines: Vec<u8> = Vec::new();
    for arrival in &history.arrivals {
        if let Item::Account(account) = &arrival.item {
            lines.extend(json::encode_account(account));
            lines.push(b'\n');
        }
    }
    std::fs::write(&accounts, lines).expect("the snapshots are written");
    let config = FileConfig { files: vec![ticks], accounts: Some(accounts), csv_format: None, speed };
    let instruments = world.instruments.clone();
    let decoder = Decoder { instruments, base_timeframe: world.timeframes[0], max_ahead: None };

    let mut run = Run::start(world, history, How { workers, ..How::PLAIN }, Vec::new());
    for arrival in &history.arrivals {
        run.configure(&arrival.item);
    }
    let (out, inputs) = crossbeam_channel::bounded(4);
    let files = file::open(&config, &decoder).expect("the files open");
    let source = std::thread::spawn(move || files.run(&out.into(), &Stop::new()));
    while let Ok(input) = inputs.recv() {
        run.cutter.push(input, 0);
        if inputs.is_empty()
            && let Some(cut) = run.cutter.cut(0)
        {
            run.submit(cut);
        }
    }
    source.join().expect("the source does not panic").expect("the files are read");
    let expected = records.len() + history.arrivals.iter().filter(|a| matches!(a.item, Item::Account(_))).count();
    let done = run.finish();
    assert_eq!(done.totals.records_in, expected as i64, "every row arrives");
    done
}

/// A run under way.
struct Run<'a> {
    world: &'a World,
    history: &'a History,
    how: How,
    cutter: Cutter,
    engine: Engine,
    offset: u64,
    revision: u64,
    partitions: Vec<Partition>,
    judge: Judge,
    facts: Facts,
    tables: Tables,
    epochs: Vec<ClosedEpoch>,
    /// Where closed epochs wait until the end, if nobody waits for each.
    ahead: Option<mpsc::Receiver<ClosedEpoch>>,
    submitted: usize,
    /// All that the source has, if it must be read again.
    log: Vec<Batch>,
    /// How much of it has been cut.
    logged: usize,
    noise: Random,
    /// Records that could not be read.
    rejects: i64,
    /// Records with unknown fields.
    unknown_fields: i64,
}

/// The two halves that die together.
fn process(world: &World, how: How, restoration: Option<Restoration>) -> (Cutter, Engine) {
    let config = CutterConfig {
        clock: Clock::Event,
        lateness: world.lateness,
        max_ticks: 1_000_000,
        timeframes: world.timeframes.clone(),
        instruments: world.instruments.clone(),
        metrics_every: if how.ahead { Nanos::MAX } else { 0 },
    };
    let cutter = match restoration {
        Some(restoration) => Cutter::resume(config, restoration),
        None => Cutter::new(config),
    };
    let dataflow = DataflowConfig {
        timeframes: world.timeframes.clone(),
        indicators: world.indicators.clone(),
        instruments: world.instruments.clone(),
    };
    (cutter, Engine::start(&EngineConfig { workers: how.workers, dataflow }).expect("the engine starts"))
}

impl<'a> Run<'a> {
    fn start(world: &'a World, history: &'a History, how: How, partitions: Vec<Partition>) -> Run<'a> {
        let (mut cutter, engine) = process(world, how, None);
        for partition in &partitions {
            cutter.push(Input::Start { partition: *partition, carries: Carries::Ticks }, 0);
        }
        let ahead = how.ahead.then(|| {
            let (out, closed) = mpsc::channel();
            let outputs = engine.outputs().clone();
            std::thread::spawn(move || outputs.into_iter().all(|epoch| out.send(epoch).is_ok()));
            closed
        });
        Run {
            world,
            history,
            how,
            cutter,
            engine,
            ahead,
            submitted: 0,
            log: Vec::new(),
            logged: 0,
            noise: Random(how.noise.unwrap_or_default()),
            rejects: 0,
            unknown_fields: 0,
            offset: 0,
            revision: 0,
            judge: Judge::new(&partitions, world.lateness),
            partitions,
            facts: Facts {
                ticks: Vec::new(),
                accounts: Vec::new(),
                config: BTreeMap::new(),
                stale: false,
                progress: Progress::START,
                now: 0,
            },
            tables: Tables::default(),
            epochs: Vec::new(),
        }
    }

    /// Accounts come through the first partition.
    fn partition(&self, item: &Item) -> Option<Partition> {
        match item {
            Item::Tick(_) if self.how.files => self.partitions.first().copied(),
            Item::Tick(tick) => Some(self.history.partition(tick.symbol)),
            Item::Account(_) => self.partitions.first().copied(),
            Item::Config(_) | Item::Stale(_) => None,
        }
    }

    fn together(&self, a: &Item, b: &Item) -> bool {
        let partition = self.partition(a);
        partition.is_some() && partition == self.partition(b)
    }

    fn push(&mut self, group: &[Arrival]) {
        let Some(partition) = self.partition(&group[0].item) else {
            for arrival in group {
                self.configure(&arrival.item);
            }
            return;
        };
        let (mut records, mut accounts, mut rejects, mut unknown_fields) = (Ticks::new(), Vec::new(), Vec::new(), 0);
        for arrival in group {
            let mut cursor = Cursor { partition, offset: self.offset, row: 0 };
            if let (true, Item::Tick(tick)) = (self.how.files, &arrival.item) {
                cursor.partition = self.history.partition(tick.symbol);
            }
            self.offset += 1;
            if self.how.noise.is_some() {
                unknown_fields += self.noise.below(2);
                if self.noise.below(5) == 0 {
                    rejects.push(unreadable(Cursor { offset: self.offset, ..cursor }));
                    self.offset += 1;
                }
            }
            match &arrival.item {
                Item::Tick(tick) => {
                    if self.judge.admits(partition, tick) {
                        self.facts.ticks.push(tick.clone());
                    }
                    records.push(cursor, tick.clone());
                }
                Item::Account(account) => {
                    self.judge.tells(account.event_time);
                    self.facts.accounts.push(account.clone());
                    accounts.push((cursor, account.clone()));
                }
                Item::Config(_) | Item::Stale(_) => {}
            }
        }
        self.rejects += rejects.len() as i64;
        self.unknown_fields += unknown_fields as i64;
        let batch =
            Batch { records, accounts, rejects, unknown_fields, upper: self.offset, ..Batch::new(partition, 0) };
        if self.how.killed.is_some() {
            self.log.push(batch.clone());
        }
        self.cutter.push(Input::Batch(batch), 0);
    }

    /// Ends the process, and starts another one that goes on from what the first has left behind.
    fn kill(&mut self, random: &mut Random) {
        let lossy = self.how.lossy;
        let Some(restoration) = self.tables.restoration(self.world.timeframes[0], lossy) else { return };
        self.judge.seals(restoration.progress.sealed_through);
        self.facts.progress.sealed_through = restoration.progress.sealed_through;
        let (epoch, partitions) = (restoration.epoch, restoration.partitions.clone());
        (self.cutter, self.engine) = process(self.world, self.how, Some(restoration));
        for partition in &self.partitions {
            self.cutter.push(Input::Start { partition: *partition, carries: Carries::Ticks }, 0);
        }
        // Partitions are read each in its order, but not in the order of before.
        let mut order = self.partitions.clone();
        let first = random.below(order.len() as u64) as usize;
        order.rotate_left(first);
        let (cut, uncut) = self.log.split_at(self.logged);
        for partition in order {
            // Files are read from their beginnings.
            let low = if self.how.files { 0 } else { partitions.get(&partition).map_or(0, |mark| mark.low) };
            for batch in cut.iter().filter(|batch| batch.partition == partition && batch.upper > low) {
                self.cutter.push(Input::Batch(batch.clone()), 0);
            }
        }
        for batch in uncut {
            self.cutter.push(Input::Batch(batch.clone()), 0);
        }
        let cut = self.cutter.restored().expect("all of it has been read again");
        assert_eq!((cut.epoch, cut.progress), (epoch, self.facts.progress));
        self.engine.submit(cut).expect("the engine runs");
        let mut closed = self.engine.outputs().recv_timeout(Duration::from_secs(60)).expect("every epoch closes");
        closed.expand();
        assert_eq!((closed.epoch, closed.totals, closed.dead.len()), (epoch, Totals::default(), 0), "counted before");
        let rows = closed.changes.into_iter().map(|change| match change {
            Change::Upsert(row) => (row.key(), timeless(row)),
            Change::Delete(row) => panic!("nothing stood before: {row:?}"),
        });
        let stood: State = self.tables.state.iter().map(|(key, row)| (key.clone(), timeless(row.clone()))).collect();
        let difference = difference(&stood, &rows.collect());
        assert!(difference.is_empty(), "after a restart at epoch {epoch}: expected what stood\n{difference}");
    }

    fn configure(&mut self, item: &Item) {
        if !matches!(item, Item::Config(_) | Item::Stale(_)) {
            return;
        }
        self.revision += 1;
        let revision = self.revision;
        let updates = match item {
            Item::Config(edits) => edits
                .iter()
                .cloned()
                .map(|(key, value)| match value {
                    Some(value) => {
                        self.facts.config.insert(key.clone(), value.clone());
                        ConfigUpdate::Put { key, value, revision }
                    }
                    None => {
                        self.facts.config.remove(&key);
                        ConfigUpdate::Delete { key, revision }
                    }
                })
                .collect(),
            Item::Stale(stale) => {
                self.facts.stale = *stale;
                vec![ConfigUpdate::Stale(*stale)]
            }
            Item::Tick(_) | Item::Account(_) => Vec::new(),
        };
        self.tables.config.extend(updates.iter().cloned());
        self.cutter.push(Input::Config(updates), 0);
    }

    fn cut(&mut self) {
        self.logged = self.log.len();
        if let Some(cut) = self.cutter.cut(0) {
            let (progress, now) = (self.judge.progress(), self.judge.now());
            assert_eq!(cut.progress, progress, "progress");
            assert_eq!(now_ns(cut.epoch), now, "the clock is the greatest event time");
            self.submit(cut);
        }
    }

    fn submit(&mut self, cut: Cut) {
        (self.facts.progress, self.facts.now) = (cut.progress, now_ns(cut.epoch));
        let epoch = cut.epoch;
        self.engine.submit(cut).expect("the engine runs");
        if self.ahead.is_some() {
            self.submitted += 1;
            return;
        }
        let mut closed = self.engine.outputs().recv_timeout(Duration::from_secs(60)).expect("every epoch closes");
        closed.expand();
        assert_eq!(closed.epoch, epoch);
        self.tables.commit(&closed);
        if self.how.checked {
            let expected = oracle::state(self.world, &self.facts);
            let got: State = self.tables.state.iter().map(|(k, row)| (k.clone(), wordless(row.clone()))).collect();
            let difference = difference(&expected, &got);
            assert!(difference.is_empty(), "epoch {epoch}: expected the oracle's state\n{difference}");
        }
        self.epochs.push(closed);
    }

    fn finish(mut self) -> Done {
        if self.how.backwards {
            self.partitions.reverse();
        }
        for partition in &self.partitions {
            self.cutter.push(Input::Finished { partition: *partition }, 0);
        }
        let cut = self.cutter.finish(Some(self.history.until));
        assert_eq!(now_ns(cut.epoch), self.history.until - self.history.until.rem_euclid(MILLI));
        assert_eq!(cut.progress.closed_through, now_ns(cut.epoch), "at the end everything is closed");
        self.submit(cut);
        for _ in 0..self.submitted {
            let closed = self.ahead.as_ref().map(|closed| closed.recv_timeout(Duration::from_secs(60)));
            let mut closed = closed.and_then(Result::ok).expect("every epoch closes");
            closed.expand();
            self.tables.commit(&closed);
            self.epochs.push(closed);
        }
        self.tables.close();
        let totals = self.tables.totals;
        if self.how.checked {
            let dead = self.judge.late + self.rejects;
            let accounts = self.facts.accounts.len() as i64;
            assert_eq!(totals.records_in, self.facts.ticks.len() as i64 + dead + accounts);
            assert_eq!(totals.unknown_fields, self.unknown_fields);
            let mut once = self.facts.clone();
            let mut seen = BTreeSet::new();
            once.ticks.retain(|tick| seen.insert(tick.clone()));
            let counted = oracle::count(&once, self.world.timeframes[0]);
            assert_eq!(totals.accepted, counted.accepted + accounts, "accepted");
            // What waited when something was lost goes on being counted as held.
            if once.ticks.len() == self.facts.ticks.len() && !self.how.lossy {
                assert_eq!((totals.held, totals.dead), (counted.held, counted.dead + dead), "held, dead");
            }
        }
        let state = std::mem::take(&mut self.tables.state);
        Done {
            state: state.into_iter().map(|(key, row)| (key, timeless(row))).collect(),
            epochs: self.epochs,
            totals,
            progress: self.facts.progress,
            now: self.facts.now,
        }
    }
}

/// What a decoder gives for bytes that are no record.
fn unreadable(cursor: Cursor) -> DeadLetter {
    let (field, value, detail) = (String::new(), String::new(), "is no record".to_owned());
    DeadLetter { cursor, reason: Reason::Malformed, field, value, detail, original: b"nonsense".to_vec() }
}

/// A row without the moment of its computation, which is no part of the state.
pub(crate) fn timeless(row: Output) -> Output {
    match row {
        Output::Verdict(verdict) => {
            let mut verdict = Arc::unwrap_or_clone(verdict);
            verdict.as_of = 0;
            Output::Verdict(Arc::new(verdict))
        }
        other => other,
    }
}

/// A row without its sentences, which the oracle does not write.
fn wordless(row: Output) -> Output {
    match timeless(row) {
        Output::Verdict(verdict) => {
            let mut verdict = Arc::unwrap_or_clone(verdict);
            verdict.details.clear();
            Output::Verdict(Arc::new(verdict))
        }
        Output::Recommendation(recommendation) => {
            let mut recommendation = Arc::unwrap_or_clone(recommendation);
            recommendation.explanation = Explanation::default();
            for vote in &mut recommendation.votes {
                vote.reason = Text::default();
            }
            Output::Recommendation(Arc::new(recommendation))
        }
        other => other,
    }
}

/// The first rows that differ, for people; empty iff the states are equal, bit by bit.
pub(crate) fn difference(expected: &State, got: &State) -> String {
    let mut text = String::new();
    let keys: BTreeSet<&Key> = expected.keys().chain(got.keys()).collect();
    let mut count = 0;
    for key in keys {
        let (expected, got) = (expected.get(key), got.get(key));
        if expected != got {
            count += 1;
            if count <= 6 {
                let show = |row: Option<&Output>| row.map_or("no row".to_owned(), |row| format!("{row:?}"));
                let _ = write!(text, "{key:?}\n  expected {}\n       got {}\n", show(expected), show(got));
            }
        }
    }
    if count > 6 {
        let _ = writeln!(text, "… and {} rows more", count - 6);
    }
    text
}
