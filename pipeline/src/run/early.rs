//! `publish = "fast"`: closed epochs pass Redis on their way to the committer.

use super::{Failure, spawn};
use crossbeam_channel::{Receiver, bounded};
use marea_model::output::ClosedEpoch;
use marea_sinks::redis::Redis;

/// Epochs that wait for the committer beside those that wait here: as many as a transaction takes. While it lasts those
/// behind them are not held up.
const WAITING: usize = 256;

/// Hands every epoch to Redis before it goes on. `restored`: the first one is what stands already.
pub(super) fn publish(
    closed: Receiver<ClosedEpoch>,
    redis: Redis,
    restored: bool,
) -> Result<Receiver<ClosedEpoch>, Failure> {
    let (out, onwards) = bounded(WAITING);
    // It ends with the engine, or with the committer.
    spawn("early", move || {
        for (i, epoch) in closed.iter().enumerate() {
            if i > 0 || !restored {
                redis.early(&epoch);
            }
            if out.send(epoch).is_err() {
                return;
            }
        }
    })?;
    Ok(onwards)
}
