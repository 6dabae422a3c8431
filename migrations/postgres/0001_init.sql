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
-- Every table is written by one committer, in the transaction that moves `pipeline.upper`.

-- Where the pipeline stands: one row. `upper` is the first epoch that is not in the store.
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
    sealed_through  BIGINT  NOT NULL,
    closed_through  BIGINT  NOT NULL
);
-- The least BIGINT: nothing is sealed, nothing is closed.
INSERT INTO pipeline VALUES (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, -9223372036854775808, -9223372036854775808);

-- The first offset not yet read of each partition.
CREATE TABLE cursors (
    source_partition  TEXT   NOT NULL PRIMARY KEY,
    upper             BIGINT NOT NULL
);

CREATE TABLE bars (
    symbol       TEXT    NOT NULL,
    timeframe    TEXT    NOT NULL,
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
    symbol     TEXT   NOT NULL,
    timeframe  TEXT   NOT NULL,
    open_time  BIGINT NOT NULL,
    name       TEXT   NOT NULL,
    value      DOUBLE PRECISION NOT NULL,
    epoch      BIGINT NOT NULL,
    open_at    TIMESTAMPTZ GENERATED ALWAYS AS (to_timestamp(open_time / 1e9)) STORED,
    PRIMARY KEY (symbol, timeframe, open_time, name)
);

-- Closed trades of backtests. side: 1 long, -1 short.
CREATE TABLE trades (
    strategy     TEXT    NOT NULL,
    symbol       TEXT    NOT NULL,
    timeframe    TEXT    NOT NULL,
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

-- One wide row per strategy × symbol × timeframe × span (`all`, `30d`). `window` is a reserved word.
CREATE TABLE backtest_metrics (
    strategy             TEXT   NOT NULL,
    symbol               TEXT   NOT NULL,
    timeframe            TEXT   NOT NULL,
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
    symbol          TEXT    NOT NULL PRIMARY KEY,
    timeframe       TEXT    NOT NULL,
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
    account              TEXT    NOT NULL,
    symbol               TEXT    NOT NULL,
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
