-- Far prices are counted as they come, by the process that sees them (`marea_price_jumps_total`): no state.
ALTER TABLE pipeline DROP COLUMN price_jumps;
