-- What marea keeps, on SQLite. ../postgres/0001_init.sql is the same table by table; types differ only as said here.
--
--   times        BIGINT nanoseconds since 1970 UTC; the column …_at beside one is for people, to the millisecond
--   prices       BIGINT in units of 10^-price_scale (bars), or exact decimal text (PostgreSQL: NUMERIC)
--   sums         i128 as decimal text (PostgreSQL: NUMERIC(39,0)): volume in 1e-8, turnover in 10^-(price_scale + 8)
--   lots         BIGINT in units of 1e-8
--   floats       8 bytes, and come back bit-equal; undefined is NULL. Their columns have no declared type here, since
--                REAL would lose the sign of -0.0 (PostgreSQL: DOUBLE PRECISION)
--   timeframe    text: 1s, 1m, 5m, 1h
--   epoch        now_ms · 4096 + n: the dataflow's time at which the row was last written
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
    source_partition          TEXT   NOT NULL PRIMARY KEY,
    low                       BIGINT NOT NULL,
    upper                     BIGINT NOT NULL,
    greatest                  BIGINT,
    fingerprint_offset        BIGINT,
    fingerprint_timestamp_ms  BIGINT,
    fingerprint_hash          BIGINT
) WITHOUT ROWID;

-- Messages of sources that cannot be asked for them again, from their partition's `low` on. Acknowledged to the broker
-- only when they are here.
CREATE TABLE raw_messages (
    source_partition  TEXT   NOT NULL,
    source_offset     BIGINT NOT NULL,
    content_type      TEXT,
    receive_time      BIGINT NOT NULL,
    body              BLOB   NOT NULL,
    PRIMARY KEY (source_partition, source_offset)
);

-- Every symbol that was ever met, and its latest quote, if it has one: the greatest (event_time, seq). bid, ask: in units
-- of 10^-scale of the instrument.
CREATE TABLE quotes (
    symbol      TEXT   NOT NULL PRIMARY KEY,
    event_time  BIGINT,
    seq         BIGINT,
    bid         BIGINT,
    ask         BIGINT,
    epoch       BIGINT NOT NULL
) WITHOUT ROWID;

-- The last snapshot of each account: the greatest (event_time, seq); as it came in `payload`, the rest is for people.
-- `peak`: the greatest equity of all its snapshots.
CREATE TABLE accounts (
    account     TEXT    NOT NULL PRIMARY KEY,
    event_time  BIGINT  NOT NULL,
    seq         BIGINT  NOT NULL,
    equity      TEXT    NOT NULL,
    balance     TEXT    NOT NULL,
    currency    TEXT    NOT NULL,
    positions   BIGINT  NOT NULL,
    peak        TEXT    NOT NULL,
    payload     TEXT    NOT NULL,
    epoch       BIGINT  NOT NULL
) WITHOUT ROWID;

-- Every amend of a base bar, also before its bar seals. `payload`: the whole record as JSON, prices as in `bars`.
CREATE TABLE amends (
    symbol     TEXT   NOT NULL,
    open_time  BIGINT NOT NULL,
    rev        BIGINT NOT NULL,
    payload    TEXT   NOT NULL,
    epoch      BIGINT NOT NULL,
    PRIMARY KEY (symbol, open_time, rev, payload)
) WITHOUT ROWID;

CREATE TABLE bars (
    symbol       TEXT    NOT NULL,
    timeframe    TEXT    NOT NULL,
    open_time    BIGINT  NOT NULL,
    price_scale  INTEGER NOT NULL,
    open         BIGINT  NOT NULL,
    high         BIGINT  NOT NULL,
    low          BIGINT  NOT NULL,
    close        BIGINT  NOT NULL,
    volume       TEXT    NOT NULL,
    turnover     TEXT    NOT NULL,
    count        BIGINT  NOT NULL,
    closed       BOOLEAN NOT NULL,
    epoch        BIGINT  NOT NULL,
    open_at      TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%fZ', open_time / 1000000000.0, 'unixepoch')) VIRTUAL,
    PRIMARY KEY (symbol, timeframe, open_time)
) WITHOUT ROWID;

CREATE TABLE indicators (
    symbol     TEXT   NOT NULL,
    timeframe  TEXT   NOT NULL,
    open_time  BIGINT NOT NULL,
    name       TEXT   NOT NULL,
    value             NOT NULL,
    epoch      BIGINT NOT NULL,
    open_at    TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%fZ', open_time / 1000000000.0, 'unixepoch')) VIRTUAL,
    PRIMARY KEY (symbol, timeframe, open_time, name)
) WITHOUT ROWID;

-- Closed trades of backtests. side: 1 long, -1 short.
CREATE TABLE trades (
    strategy     TEXT    NOT NULL,
    symbol       TEXT    NOT NULL,
    timeframe    TEXT    NOT NULL,
    entry_time   BIGINT  NOT NULL,
    side         INTEGER NOT NULL,
    entry_price          NOT NULL,
    exit_time    BIGINT  NOT NULL,
    exit_price           NOT NULL,
    quantity             NOT NULL,
    pnl                  NOT NULL,
    fees                 NOT NULL,
    exit_reason  TEXT    NOT NULL,
    epoch        BIGINT  NOT NULL,
    entry_at     TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%fZ', entry_time / 1000000000.0, 'unixepoch')) VIRTUAL,
    exit_at      TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%fZ', exit_time / 1000000000.0, 'unixepoch')) VIRTUAL,
    PRIMARY KEY (strategy, symbol, timeframe, entry_time, side)
) WITHOUT ROWID;

-- What left since when: a restart compares only that.
CREATE INDEX trades_by_exit ON trades (exit_time);

-- One wide row per strategy × symbol × timeframe × span (`all`, `30d`). `window` is a reserved word.
CREATE TABLE backtest_metrics (
    strategy             TEXT   NOT NULL,
    symbol               TEXT   NOT NULL,
    timeframe            TEXT   NOT NULL,
    span                 TEXT   NOT NULL,
    as_of                BIGINT NOT NULL,
    bars                 BIGINT NOT NULL,
    trades               BIGINT NOT NULL,
    total_return,
    cagr,
    sharpe,
    sortino,
    max_drawdown,
    calmar,
    recovery_factor,
    win_rate,
    profit_factor,
    expectancy,
    mean_r,
    average_win,
    average_loss,
    largest_win,
    largest_loss,
    fees,
    average_duration,
    time_in_market,
    buy_and_hold_return,
    epoch                BIGINT NOT NULL,
    PRIMARY KEY (strategy, symbol, timeframe, span)
) WITHOUT ROWID;

-- The current recommendations. `payload` is the whole row as JSON, votes and explanation included, byte for byte the
-- last one of the audit.
CREATE TABLE recommendations (
    symbol          TEXT    NOT NULL PRIMARY KEY,
    timeframe       TEXT    NOT NULL,
    bar_open_time   BIGINT  NOT NULL,
    bar_close_time  BIGINT  NOT NULL,
    action          TEXT    NOT NULL,
    bias            INTEGER NOT NULL,
    status          TEXT    NOT NULL,
    strength                NOT NULL,
    consensus               NOT NULL,
    confidence              NOT NULL,
    agreeing        INTEGER NOT NULL,
    close           TEXT    NOT NULL,
    atr,
    entry_low       TEXT,
    entry_high      TEXT,
    stop_loss       TEXT,
    take_profit     TEXT,
    expires_at      BIGINT  NOT NULL,
    seq             BIGINT  NOT NULL,
    epoch           BIGINT  NOT NULL,
    generation      BIGINT  NOT NULL,
    payload         TEXT    NOT NULL
) WITHOUT ROWID;

-- The current verdicts. `reasons` are codes joined by a space, in order; a reader past `valid_until` must block.
CREATE TABLE verdicts (
    account              TEXT    NOT NULL,
    symbol               TEXT    NOT NULL,
    intent               TEXT    NOT NULL,
    side                 INTEGER NOT NULL,
    allow                BOOLEAN NOT NULL,
    reasons              TEXT    NOT NULL,
    lots                 BIGINT,
    entry                TEXT,
    stop_loss            TEXT,
    take_profit          TEXT,
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
) WITHOUT ROWID;

-- Every recommendation and verdict there ever was, in order. `seq` is dense; neighbouring rows of a key differ;
-- `payload` NULL: no row stands any more. `account` is NULL for a recommendation.
CREATE TABLE audit (
    seq         INTEGER NOT NULL PRIMARY KEY,
    epoch       BIGINT  NOT NULL,
    generation  BIGINT  NOT NULL,
    kind        TEXT    NOT NULL CHECK (kind IN ('recommendation', 'verdict')),
    account     TEXT,
    symbol      TEXT    NOT NULL,
    payload     TEXT,
    CHECK ((kind = 'verdict') = (account IS NOT NULL))
);
CREATE INDEX audit_of_a_key ON audit (symbol, account, seq);

-- What could not be counted, as it came. Each (place, reason) stands once.
CREATE TABLE dead_letters (
    source_partition  TEXT   NOT NULL,
    source_offset     BIGINT NOT NULL,
    source_row        BIGINT NOT NULL,
    reason            TEXT   NOT NULL,
    field             TEXT   NOT NULL,
    value             TEXT   NOT NULL,
    detail            TEXT   NOT NULL,
    original          BLOB   NOT NULL,
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
