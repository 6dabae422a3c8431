-- Metrics and indicators are written behind the rest, in transactions of their own. `metrics_upper`: the first epoch whose
-- metrics and indicators are not all in the store. `indicators_low`: every indicator of a bar that opens before it is in
-- the store; the greatest BIGINT: all are. What an older marea wrote may lack the metrics of its last second, so their
-- upper is 0: the next start compares them.
ALTER TABLE pipeline ADD COLUMN metrics_upper BIGINT NOT NULL DEFAULT 0;
ALTER TABLE pipeline ADD COLUMN indicators_low BIGINT NOT NULL DEFAULT 9223372036854775807;

-- A restart asks for the last event of each key, not for all of them.
CREATE INDEX config_events_by_key ON config_events (key, epoch, position);

COMMENT ON COLUMN pipeline.metrics_upper IS 'The first epoch whose metrics and indicators are not all in the store';
COMMENT ON COLUMN pipeline.indicators_low IS 'Nanoseconds since 1970: all indicators of bars that open before it are in the store';
