-- Messages of queues that were committed and may not have been acknowledged to their broker: it may deliver them again, and
-- they are then known by `identity`, 16 bytes, a hash of all that their producer gave them.
CREATE TABLE unacknowledged (
    source_partition  TEXT COLLATE "C" NOT NULL,
    source_offset     BIGINT NOT NULL,
    identity          BYTEA  NOT NULL,
    PRIMARY KEY (source_partition, source_offset)
);
COMMENT ON TABLE unacknowledged IS 'What messages of queues are known by until they are acknowledged';
