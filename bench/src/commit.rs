//! What a commit costs: how long a verdict waits for it, on SQLite and PostgreSQL (durable as they come), how many rows a
//! second go in, beside plain COPY on the same server, and how long a verdict waits while the metrics of 1,000
//! strategies on 50 symbols are due: beside a commit that holds them all.

use crate::Options;
use crate::measure::{Took, quantile, try_timed};
use crate::report::{Report, Row};
use anyhow::Context as _;
use marea_model::num::F64;
use marea_model::output::{Change, ClosedEpoch, MetricsRow, MetricsWindow, Rows};
use marea_model::time::SECOND;
use marea_model::verdict::Intent;
use marea_model::{
    AccountId, Bar, BarBody, BlockReason, Epoch, Metrics, Nanos, Output, Price, Size, StrategyId, Symbol, Timeframe,
    Verdict,
};
use marea_servers::Postgres;
use marea_sinks::Store;
use marea_sinks::store::StoreTarget;
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Runtime;

const PART: &str = "commit";
const MILLISECONDS: (&str, f64) = ("ms", 1e3);
/// What is written of a bar.
const COLUMNS: &str = "symbol, timeframe, open_time, price_scale, open, high, low, close, volume, turnover, count, \
                       closed, epoch";
/// Strategies and symbols whose metrics are due at once.
const DUE: (usize, usize) = (1_000, 50);

/// Runs it.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let folder = tempfile::tempdir()?;
    let server = Postgres::start()?;
    let targets = [StoreTarget::Sqlite(folder.path().join("marea.db")), StoreTarget::parse(&server.url())];
    for target in targets {
        let kind = target.kind();
        let mut bench = Bench { store: runtime.block_on(Store::open(&target))?, runtime: &runtime, epoch: 0, bars: 0 };
        bench.latencies(options, kind, report)?;
        bench.while_metrics_are_due(options, kind, report)?;
        if kind == "postgres" {
            bench.beside_copy(options, &server, report)?;
        }
        runtime.block_on(bench.store.close())?;
    }
    Ok(())
}

struct Bench<'a> {
    store: Store,
    runtime: &'a Runtime,
    epoch: Epoch,
    /// Bars written.
    bars: Nanos,
}

impl Bench<'_> {
    /// An epoch with a verdict that is another one than before.
    fn next(&mut self) -> anyhow::Result<ClosedEpoch> {
        self.epoch += 1;
        let verdict = verdict(self.epoch.is_multiple_of(2))?;
        Ok(closed(self.epoch, vec![Change::Upsert(Output::Verdict(Arc::new(verdict)))]))
    }

    fn commit(&mut self, epoch: &ClosedEpoch) -> anyhow::Result<Took> {
        let work = || Ok(self.runtime.block_on(self.store.commit(std::slice::from_ref(epoch)))?);
        Ok(try_timed(work)?.1)
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        Ok(self.runtime.block_on(self.store.settle())?)
    }

    /// New bars of one symbol, and a verdict.
    fn bars(&mut self, rows: usize) -> anyhow::Result<ClosedEpoch> {
        let symbol = Symbol::new("IBM")?;
        let mut bars = Vec::with_capacity(rows);
        for _ in 1..rows {
            self.bars += 1;
            let body = BarBody::first(Price(18_190 + self.bars % 100), Size(100));
            let (timeframe, open_time) = (Timeframe::S1, self.bars * SECOND);
            bars.push(Bar { symbol, timeframe, open_time, body, scale: 2, closed: true });
        }
        Ok(ClosedEpoch { rows: Arc::new(Rows { bars, ..Rows::default() }), ..self.next()? })
    }

    fn latencies(&mut self, options: &Options, kind: &str, report: &mut Report) -> anyhow::Result<()> {
        for (rows, commits) in [(1, 1_000), (50, 1_000), (1_000, 100)] {
            let mut took = Vec::new();
            for _ in 0..if options.quick { 10 } else { commits } {
                let epoch = self.bars(rows)?;
                took.push(self.commit(&epoch)?.wall * 1e3);
            }
            let (p50, p99) = (quantile(&took, 0.5), quantile(&took, 0.99));
            let note = format!("p99 {p99:.2} ms, {:.0} epochs/s, {:.0} rows/s", 1e3 / p50, rows as f64 * 1e3 / p50);
            report.add(Row::value(PART, format!("{kind}: a commit of {rows} rows"), "ms", took).note(note));
        }
        Ok(())
    }

    /// New bars, far more than an epoch has, beside the same bars by COPY from a file of the server's into a table with
    /// the same key.
    fn beside_copy(&mut self, options: &Options, server: &Postgres, report: &mut Report) -> anyhow::Result<()> {
        let rows = if options.quick { 20_000 } else { 100_000 };
        let file = format!("{}/bars.copy", server.query("SHOW data_directory")?.trim());
        let (mut base, mut subject) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            let from = (self.bars + 1) * SECOND;
            let epoch = self.bars(rows + 1)?;
            subject.push(self.commit(&epoch)?);
            let of = format!("SELECT {COLUMNS} FROM bars WHERE open_time >= {from}");
            server.query(&format!("COPY ({of}) TO '{file}'"))?;
            server.query("DROP TABLE IF EXISTS copied; CREATE TABLE copied (LIKE bars INCLUDING ALL)")?;
            base.push(try_timed(|| Ok(server.query(&format!("COPY copied ({COLUMNS}) FROM '{file}'"))?))?.1);
        }
        let row =
            Row::rate(PART, format!("postgres: {rows} new bars, beside plain COPY"), rows as f64, &base, &subject);
        report.add(row.note("CPU of this process alone: the server's is not counted"));
        Ok(())
    }

    /// Metrics of these many, and a verdict.
    fn with_metrics(&mut self, strategies: usize, symbols: usize, sharpe: f64) -> anyhow::Result<ClosedEpoch> {
        let rows = Rows { metrics: metrics(strategies, symbols, sharpe)?, ..Rows::default() };
        Ok(ClosedEpoch { rows: Arc::new(rows), ..self.next()? })
    }

    /// A verdict that comes just as a chunk of metrics was begun, if one was. Whether there is more to write at once.
    fn behind_a_chunk(&mut self) -> anyhow::Result<(bool, Took)> {
        let epoch = self.next()?;
        try_timed(|| {
            let more = self.runtime.block_on(self.store.follow())?;
            self.commit(&epoch)?;
            Ok(more)
        })
    }

    /// A bar closes: how long a verdict waits for its commit. Baseline: metrics and verdicts as one, so that a verdict
    /// waits for all of it. Subject: a verdict that comes just as a chunk of metrics has been begun.
    fn while_metrics_are_due(&mut self, options: &Options, kind: &str, report: &mut Report) -> anyhow::Result<()> {
        let (strategies, symbols) = if options.quick { (100, 10) } else { DUE };
        let (mut base, mut first, mut subject, mut pass) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..options.rounds {
            let epoch = self.with_metrics(strategies, symbols, f64::from(round))?;
            let ((), took) = try_timed(|| {
                self.commit(&epoch)?;
                self.settle()
            })?;
            base.push(took);

            let epoch = self.with_metrics(strategies, symbols, f64::from(round) + 0.5)?;
            first.push(self.commit(&epoch)?);
            // A pass begins once a second at most.
            let (mut more, mut took) = self.behind_a_chunk()?;
            while !more {
                std::thread::sleep(std::time::Duration::from_millis(10));
                (more, took) = self.behind_a_chunk()?;
            }
            let began = Instant::now();
            subject.push(took);
            while more {
                (more, took) = self.behind_a_chunk()?;
                subject.push(took);
            }
            pass.push(began.elapsed().as_secs_f64());
            self.settle()?;
        }
        let rows = strategies * symbols;
        let what = format!("{kind}: a verdict in the epoch of {rows} rows of metrics");
        report.add(Row::time(PART, what, MILLISECONDS, &base, &first).note("baseline: metrics in the same commit"));
        let walls: Vec<f64> = subject.iter().map(|took| took.wall * 1e3).collect();
        let p99 = quantile(&walls, 0.99);
        let what = format!("{kind}: a verdict while {rows} rows of metrics follow");
        let note = format!("p99 {p99:.1} ms; all have followed after {:.2} s", quantile(&pass, 0.5));
        report.add(Row::time(PART, what, MILLISECONDS, &base, &subject).note(note));
        Ok(())
    }
}

fn closed(epoch: Epoch, changes: Vec<Change>) -> ClosedEpoch {
    ClosedEpoch { changes, ..ClosedEpoch::empty(epoch) }
}

fn verdict(allow: bool) -> anyhow::Result<Verdict> {
    Ok(Verdict {
        account: AccountId::new("M1")?,
        symbol: Symbol::new("IBM")?,
        intent: Intent::Enter,
        side: 1,
        allow,
        cancel_pending: false,
        blocked_until: None,
        reasons: if allow { Vec::new() } else { vec![BlockReason::QuoteStale] },
        details: Vec::new(),
        lots: None,
        entry: None,
        stop_loss: None,
        take_profit: None,
        recommendation_time: None,
        valid_until: None,
        as_of: 0,
    })
}

fn metrics(strategies: usize, symbols: usize, sharpe: f64) -> anyhow::Result<Vec<MetricsRow>> {
    let mut rows = Vec::with_capacity(strategies * symbols);
    for strategy in 0..strategies {
        let strategy = StrategyId::new(&format!("strategy-{strategy}")).context("a strategy's id")?;
        for symbol in 0..symbols {
            let metrics = Metrics { bars: 480, trades: 12, sharpe: Some(F64(sharpe)), ..Metrics::default() };
            let (symbol, timeframe) = (Symbol::new(&format!("S{symbol}"))?, Timeframe::M5);
            rows.push(MetricsRow { strategy, symbol, timeframe, window: MetricsWindow::All, as_of: 0, metrics });
        }
    }
    Ok(rows)
}
