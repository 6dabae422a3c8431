-- What marea keeps, on plain PostgreSQL 15 or later. ../sqlite/0001_init.sql is the same table by table. Payloads are
-- text, since jsonb would rewrite them.
--
--   times        BIGINT nanoseconds since 1970 UTC; the column …_at beside one is for people, to the microsecond
--   prices       BIGINT in units of 10^-price_scale (bars), or NUMERIC with its own decimals
--   sums         i128 as NUMERIC(39,0): volume in 1e-8, turnover in 10^-(price_scale + 8)
--   lots         BIGINT in units of 1e-8
--   floats       8 bytes, and come back bit-equal; undefined is NULL
--   timeframe    text: 1s, 1m, 5m, 1h
--   epoch        now_ms · 4096 + n: the dataflow's time at which the row was last written
--
-- Names order by their bytes, as in the pipeline. A column …_at is NULL for rows that came into a compressed chunk of
-- TimescaleDB before 2.25.2: the view computes it anew.
--
-- Where the server has TimescaleDB, `marea migrate` makes hypertables of bars, indicators and trades, beside this file;
-- roles as well.
--
-- Every table is written by one committer, in the transaction that moves `pipeline.upper`.

-- Where the pipeline stands: one row. `upper` is the first epoch that is not in the store; `logic_version` says which
-- computation wrote it.
CREATE TABLE pipeline (
    id              INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    upper           BIGINT  NOT NULL,
    generation      BIGINT  NOT NULL,
    last_seq        BIGINT  NOT NULL,
    records_in      BIGINT  NOT NULL,
    accepted        BIGINT  NOT NULL,
    duplicate       BIGINT  NOT NULL,
    dead            BIGINT  NOT NULL,
    held            BIGINT  NOT NULL,
    unknown_fields  BIGINT  NOT NULL,
    price_jumps     BIGINT  NOT NULL,
    sealed_through  BIGINT  NOT NULL,
    closed_through  BIGINT  NOT NULL,
    logic_version   BIGINT  NOT NULL
);
-- The least BIGINT: nothing is sealed, nothing is closed.
INSERT INTO pipeline VALUES (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -9223372036854775808, -9223372036854775808, 0);

-- Where each partition of a source stands. `upper`: the first offset not yet taken; `low`: every record whose bar may still
-- change stands there or after it; `greatest`: the greatest event time of its ticks; then how one record before `upper`
-- reads, so that a log which has another one in its place is recognised.
CREATE TABLE partitions (
    source_partition          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    low                       BIGINT NOT NULL,
    upper                     BIGINT NOT NULL,
    greatest                  BIGINT,
    fingerprint_offset        BIGINT,
    fingerprint_timestamp_ms  BIGINT,
    fingerprint_hash          BIGINT
);

-- Messages of sources that cannot be asked for them again, from their partition's `low` on. Acknowledged to the broker
-- only when they are here.
CREATE TABLE raw_messages (
    source_partition  TEXT COLLATE "C" NOT NULL,
    source_offset     BIGINT NOT NULL,
    content_type      TEXT,
    receive_time      BIGINT NOT NULL,
    body              BYTEA  NOT NULL,
    PRIMARY KEY (source_partition, source_offset)
);

-- Every symbol that was ever met, and its latest quote, if it has one: the greatest (event_time, seq). bid, ask: in units
-- of 10^-scale of the instrument.
CREATE TABLE quotes (
    symbol      TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    event_time  BIGINT,
    seq         BIGINT,
    bid         BIGINT,
    ask         BIGINT,
    epoch       BIGINT NOT NULL
);

-- The last snapshot of each account: the greatest (event_time, seq); as it came in `payload`, the rest is for people.
-- `peak`: the greatest equity of all its snapshots.
CREATE TABLE accounts (
    account     TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    event_time  BIGINT  NOT NULL,
    seq         BIGINT  NOT NULL,
    equity      NUMERIC NOT NULL,
    balance     NUMERIC NOT NULL,
    currency    TEXT    NOT NULL,
    positions   BIGINT  NOT NULL,
    peak        NUMERIC NOT NULL,
    payload     TEXT    NOT NULL,
    epoch       BIGINT  NOT NULL
);

-- Every amend of a base bar, also before its bar seals. `payload`: the whole record as JSON, prices as in `bars`.
CREATE TABLE amends (
    symbol     TEXT COLLATE "C" NOT NULL,
    open_time  BIGINT NOT NULL,
    rev        BIGINT NOT NULL,
    payload    TEXT   NOT NULL,
    epoch      BIGINT NOT NULL,
    PRIMARY KEY (symbol, open_time, rev, payload)
);

CREATE TABLE bars (
    symbol       TEXT COLLATE "C" NOT NULL,
    timeframe    TEXT COLLATE "C" NOT NULL,
    open_time    BIGINT  NOT NULL,
    price_scale  INTEGER NOT NULL,
    open         BIGINT  NOT NULL,
    high         BIGINT  NOT NULL,
    low          BIGINT  NOT NULL,
    close        BIGINT  NOT NULL,
    volume       NUMERIC(39,0) NOT NULL,
    turnover     NUMERIC(39,0) NOT NULL,
    count        BIGINT  NOT NULL,
    closed       BOOLEAN NOT NULL,
    epoch        BIGINT  NOT NULL,
    open_at      TIMESTAMPTZ GENERATED ALWAYS AS (to_timestamp(open_time / 1e9)) STORED,
    PRIMARY KEY (symbol, timeframe, open_time)
);

CREATE TABLE indicators (
    symbol     TEXT COLLATE "C" NOT NULL,
    timeframe  TEXT COLLATE "C" NOT NULL,
    open_time  BIGINT NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    value      DOUBLE PRECISION NOT NULL,
    epoch      BIGINT NOT NULL,
    open_at    TIMESTAMPTZ GENERATED ALWAYS AS (to_timestamp(open_time / 1e9)) STORED,
    PRIMARY KEY (symbol, timeframe, open_time, name)
);

-- Closed trades of backtests. side: 1 long, -1 short.
CREATE TABLE trades (
    strategy     TEXT COLLATE "C" NOT NULL,
    symbol       TEXT COLLATE "C" NOT NULL,
    timeframe    TEXT COLLATE "C" NOT NULL,
    entry_time   BIGINT  NOT NULL,
    side         INTEGER NOT NULL,
    entry_price  DOUBLE PRECISION NOT NULL,
    exit_time    BIGINT  NOT NULL,
    exit_price   DOUBLE PRECISION NOT NULL,
    quantity     DOUBLE PRECISION NOT NULL,
    pnl          DOUBLE PRECISION NOT NULL,
    fees         DOUBLE PRECISION NOT NULL,
    exit_reason  TEXT    NOT NULL,
    epoch        BIGINT  NOT NULL,
    entry_at     TIMESTAMPTZ GENERATED ALWAYS AS (to_timestamp(entry_time / 1e9)) STORED,
    exit_at      TIMESTAMPTZ GENERATED ALWAYS AS (to_timestamp(exit_time / 1e9)) STORED,
    PRIMARY KEY (strategy, symbol, timeframe, entry_time, side)
);

-- What left since when: a restart compares only that.
CREATE INDEX trades_by_exit ON trades (exit_time);

-- One wide row per strategy × symbol × timeframe × span (`all`, `30d`). `window` is a reserved word.
CREATE TABLE backtest_metrics (
    strategy             TEXT COLLATE "C" NOT NULL,
    symbol               TEXT COLLATE "C" NOT NULL,
    timeframe            TEXT COLLATE "C" NOT NULL,
    span                 TEXT   NOT NULL,
    as_of                BIGINT NOT NULL,
    bars                 BIGINT NOT NULL,
    trades               BIGINT NOT NULL,
    total_return         DOUBLE PRECISION,
    cagr                 DOUBLE PRECISION,
    sharpe               DOUBLE PRECISION,
    sortino              DOUBLE PRECISION,
    max_drawdown         DOUBLE PRECISION,
    calmar               DOUBLE PRECISION,
    recovery_factor      DOUBLE PRECISION,
    win_rate             DOUBLE PRECISION,
    profit_factor        DOUBLE PRECISION,
    expectancy           DOUBLE PRECISION,
    mean_r               DOUBLE PRECISION,
    average_win          DOUBLE PRECISION,
    average_loss         DOUBLE PRECISION,
    largest_win          DOUBLE PRECISION,
    largest_loss         DOUBLE PRECISION,
    fees                 DOUBLE PRECISION,
    average_duration     DOUBLE PRECISION,
    time_in_market       DOUBLE PRECISION,
    buy_and_hold_return  DOUBLE PRECISION,
    epoch                BIGINT NOT NULL,
    PRIMARY KEY (strategy, symbol, timeframe, span)
);

-- The current recommendations. `payload` is the whole row as JSON, votes and explanation included, byte for byte the
-- last one of the audit.
CREATE TABLE recommendations (
    symbol          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    timeframe       TEXT COLLATE "C" NOT NULL,
    bar_open_time   BIGINT  NOT NULL,
    bar_close_time  BIGINT  NOT NULL,
    action          TEXT    NOT NULL,
    bias            INTEGER NOT NULL,
    status          TEXT    NOT NULL,
    strength        DOUBLE PRECISION NOT NULL,
    consensus       DOUBLE PRECISION NOT NULL,
    confidence      DOUBLE PRECISION NOT NULL,
    agreeing        INTEGER NOT NULL,
    close           NUMERIC NOT NULL,
    atr             DOUBLE PRECISION,
    entry_low       NUMERIC,
    entry_high      NUMERIC,
    stop_loss       NUMERIC,
    take_profit     NUMERIC,
    expires_at      BIGINT  NOT NULL,
    seq             BIGINT  NOT NULL,
    epoch           BIGINT  NOT NULL,
    generation      BIGINT  NOT NULL,
    payload         TEXT    NOT NULL
);

-- The current verdicts. `reasons` are codes joined by a space, in order; a reader past `valid_until` must block.
CREATE TABLE verdicts (
    account              TEXT COLLATE "C" NOT NULL,
    symbol               TEXT COLLATE "C" NOT NULL,
    intent               TEXT    NOT NULL,
    side                 INTEGER NOT NULL,
    allow                BOOLEAN NOT NULL,
    reasons              TEXT    NOT NULL,
    lots                 BIGINT,
    entry                NUMERIC,
    stop_loss            NUMERIC,
    take_profit          NUMERIC,
    cancel_pending       BOOLEAN NOT NULL,
    recommendation_time  BIGINT,
    valid_until          BIGINT,
    blocked_until        BIGINT,
    as_of                BIGINT  NOT NULL,
    seq                  BIGINT  NOT NULL,
    epoch                BIGINT  NOT NULL,
    generation           BIGINT  NOT NULL,
    payload              TEXT    NOT NULL,
    PRIMARY KEY (account, symbol)
);

-- Every recommendation and verdict there ever was, in order. `seq` is dense; neighbouring rows of a key differ;
-- `payload` NULL: no row stands any more. `account` is NULL for a recommendation.
CREATE TABLE audit (
    seq         BIGINT  NOT NULL PRIMARY KEY,
    epoch       BIGINT  NOT NULL,
    generation  BIGINT  NOT NULL,
    kind        TEXT    NOT NULL CHECK (kind IN ('recommendation', 'verdict')),
    account     TEXT COLLATE "C",
    symbol      TEXT COLLATE "C" NOT NULL,
    payload     TEXT,
    CHECK ((kind = 'verdict') = (account IS NOT NULL))
);
CREATE INDEX audit_of_a_key ON audit (symbol, account, seq);

-- What could not be counted, as it came. Each (place, reason) stands once.
CREATE TABLE dead_letters (
    source_partition  TEXT COLLATE "C" NOT NULL,
    source_offset     BIGINT NOT NULL,
    source_row        BIGINT NOT NULL,
    reason            TEXT   NOT NULL,
    field             TEXT   NOT NULL,
    value             TEXT   NOT NULL,
    detail            TEXT   NOT NULL,
    original          BYTEA  NOT NULL,
    epoch             BIGINT NOT NULL,
    PRIMARY KEY (source_partition, source_offset, source_row, reason)
);

-- Every change of the live configuration, in the epoch in which it took effect. `key` NULL: the configuration's source
-- stopped answering (`value` true) or answers again; `value` NULL: the key was deleted.
CREATE TABLE config_events (
    epoch     BIGINT  NOT NULL,
    position  INTEGER NOT NULL,
    key       TEXT,
    value     TEXT,
    revision  BIGINT,
    PRIMARY KEY (epoch, position)
);

-- Bars for people. Prices are exact; vwap is NULL without volume. No continuous aggregates stand behind it: one would be
-- wrong from a correction of a bar to its next refresh, and every timeframe is in `bars` already.
CREATE VIEW market_data AS
SELECT
    symbol,
    timeframe,
    to_timestamp(open_time / 1e9)                                             AS timestamp_utc,
    trim_scale(open  / power(10::numeric, price_scale))                       AS open,
    trim_scale(high  / power(10::numeric, price_scale))                       AS high,
    trim_scale(low   / power(10::numeric, price_scale))                       AS low,
    trim_scale(close / power(10::numeric, price_scale))                       AS close,
    trim_scale(volume / 1e8)                                                  AS volume,
    turnover / nullif(volume, 0) / power(10::numeric, price_scale)            AS vwap,
    count,
    closed
FROM bars;

COMMENT ON TABLE pipeline IS 'Where the pipeline stands: one row, moved in the transaction of every commit';
COMMENT ON COLUMN pipeline.upper IS 'The first epoch that is not in the store';
COMMENT ON COLUMN pipeline.generation IS 'Rises by one each time that a process takes the store over';
COMMENT ON COLUMN pipeline.last_seq IS 'The last seq of the audit';
COMMENT ON COLUMN pipeline.held IS 'Busts, corrections and amends that wait; records_in = accepted + duplicate + dead + held';
COMMENT ON COLUMN pipeline.price_jumps IS 'Accepted prices far from the one before them';
COMMENT ON COLUMN pipeline.sealed_through IS 'Nanoseconds since 1970: earlier records are late, bars that close by then final';
COMMENT ON COLUMN pipeline.closed_through IS 'Nanoseconds since 1970: bars that close by then are closed';
COMMENT ON COLUMN pipeline.logic_version IS 'Which computation wrote the store; 0 before the first run';
COMMENT ON TABLE partitions IS 'Where each partition of a source stands';
COMMENT ON COLUMN partitions.low IS 'Every record whose bar may still change stands at this offset or after it';
COMMENT ON COLUMN partitions.upper IS 'The first offset not yet taken';
COMMENT ON COLUMN partitions.greatest IS 'The greatest event time of its ticks, nanoseconds since 1970';
COMMENT ON TABLE raw_messages IS 'Messages of sources that cannot be asked for them again';
COMMENT ON TABLE quotes IS 'Every symbol that was ever met, and its latest quote';
COMMENT ON COLUMN quotes.bid IS 'In units of 10^-scale of the instrument';
COMMENT ON COLUMN quotes.ask IS 'In units of 10^-scale of the instrument';
COMMENT ON TABLE accounts IS 'The last snapshot of each account';
COMMENT ON COLUMN accounts.peak IS 'The greatest equity of all its snapshots';
COMMENT ON COLUMN accounts.payload IS 'The snapshot as JSON';
COMMENT ON TABLE amends IS 'Every amend of a base bar';
COMMENT ON TABLE bars IS 'Bars of every timeframe, [open_time, open_time + timeframe)';
COMMENT ON COLUMN bars.open_time IS 'Nanoseconds since 1970';
COMMENT ON COLUMN bars.price_scale IS 'Prices are in units of 10^-price_scale';
COMMENT ON COLUMN bars.volume IS 'Sum of sizes, in 1e-8';
COMMENT ON COLUMN bars.turnover IS 'Sum of price times size, in 10^-(price_scale + 8)';
COMMENT ON COLUMN bars.count IS 'Trades, or quotes';
COMMENT ON COLUMN bars.closed IS 'Whether its time is over';
COMMENT ON COLUMN bars.epoch IS 'When it was last written: now_ms · 4096 + n';
COMMENT ON TABLE indicators IS 'Values of indicators at closed bars; an undefined value has no row';
COMMENT ON COLUMN indicators.open_time IS 'Of the bar, nanoseconds since 1970';
COMMENT ON TABLE trades IS 'Closed trades of backtests';
COMMENT ON COLUMN trades.side IS '1 long, -1 short';
COMMENT ON COLUMN trades.pnl IS 'Net of fees, in money';
COMMENT ON TABLE backtest_metrics IS 'Metrics of each strategy, symbol and timeframe, over all history and 30 days';
COMMENT ON COLUMN backtest_metrics.span IS 'all or 30d';
COMMENT ON COLUMN backtest_metrics.max_drawdown IS 'A fraction, positive is loss';
COMMENT ON TABLE recommendations IS 'The current recommendation of each symbol';
COMMENT ON COLUMN recommendations.payload IS 'The whole row as JSON, byte for byte the last one of the audit';
COMMENT ON TABLE verdicts IS 'The current verdict of each account and symbol';
COMMENT ON COLUMN verdicts.reasons IS 'Codes joined by a space, in order; empty if allowed';
COMMENT ON COLUMN verdicts.lots IS 'In 1e-8';
COMMENT ON COLUMN verdicts.valid_until IS 'Nanoseconds since 1970: a reader past it must block';
COMMENT ON TABLE audit IS 'Every recommendation and verdict there ever was, in order of seq, which is dense';
COMMENT ON COLUMN audit.payload IS 'The row from then on as JSON; NULL: none stands any more';
COMMENT ON TABLE dead_letters IS 'What could not be counted, as it came';
COMMENT ON COLUMN dead_letters.original IS 'Its bytes';
COMMENT ON TABLE config_events IS 'Every change of the live configuration, in order of epoch and position';
COMMENT ON VIEW market_data IS 'Bars for people: times as timestamps, prices and volumes as numbers';
