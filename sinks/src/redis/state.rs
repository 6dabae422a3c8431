//! What the answers of Redis mean, and what follows. No I/O.
//!
//! | Redis has | then |
//! |---|---|
//! | what was written | on |
//! | nothing, or something older | it is written |
//! | an epoch of this generation that is not committed yet | published early by this process: on |
//! | a generation or an epoch that the store has not | whoever owns the store decides: another process, then this one is silent for good; this process, then it is overwritten |
//! | no sentinel, an older one | built anew: what stands, then what the audit has after it |

use super::pending::Head;
use crate::feed::stream::valid_until;
use crate::store::{AuditEntry, AuditKey};
use crate::view::Clock;
use marea_model::Epoch;
use marea_model::time::{MILLI, now_ms, parse_rfc3339};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A value lives this long, unless it is written again.
const RECOMMENDATION: u64 = 3_600_000;
/// The first and the longest wait before Redis is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Who wrote a value, and when: what scripts compare.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Stamp {
    pub(super) generation: u64,
    pub(super) epoch: Epoch,
}

/// A wait that doubles with each failure.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Backoff(BACKOFF.0)
    }
}

impl Backoff {
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(BACKOFF.1);
        wait
    }

    pub(super) fn reset(&mut self) {
        *self = Backoff::default();
    }
}

/// When a value goes by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Expiry {
    Never,
    /// Milliseconds since 1970, by the wall clock.
    At(u64),
    /// It has.
    Gone,
}

/// When the value of an entry goes: a recommendation after an hour or with its expiry, whichever is first; a verdict
/// stays as long as it stands. `wall_ms` is now; with the event clock an expiry is as far away as it is by that clock.
pub(super) fn expiry(entry: &AuditEntry, clock: Clock, epoch: Epoch, wall_ms: u64) -> Expiry {
    let (AuditKey::Recommendation(_), Some(payload)) = (entry.key, &entry.payload) else { return Expiry::Never };
    let now = match clock {
        Clock::Wall => i64::try_from(wall_ms).unwrap_or(i64::MAX),
        Clock::Event => now_ms(epoch),
    };
    let expires = valid_until(payload).and_then(|text| parse_rfc3339(text).ok());
    // One without an expiry is none that this program wrote: it does not outlive the hour either.
    let left = expires.map_or(i64::MAX, |at| (at / MILLI).saturating_sub(now));
    match u64::try_from(left) {
        Ok(left) if left > 0 => Expiry::At(wall_ms + left.min(RECOMMENDATION)),
        _ => Expiry::Gone,
    }
}

/// The seqs of those `events`, rising by seq, that are the last of their key: the others go into the stream alone. What the
/// view has by now does not matter: a key that changes all the time would never be written.
pub(super) fn newest(events: &[AuditEntry]) -> BTreeSet<u64> {
    let last: BTreeMap<AuditKey, u64> = events.iter().map(|entry| (entry.key, entry.seq)).collect();
    last.into_values().collect()
}

/// The answer of a script that writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Answer {
    /// 0 written, 1 a newer epoch of this generation stands, 2 a newer generation does.
    pub(super) result: u64,
    pub(super) generation: u64,
    pub(super) epoch: Epoch,
    /// What of another type was in the way: 1 the value, 2 the stream; 4: there was no stream.
    pub(super) healed: u64,
    /// The last seq of the stream, if it is not before the one to be added.
    pub(super) last_seq: u64,
}

/// What follows from an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// On.
    On,
    /// Redis has what the store has not.
    Newer(Stamp),
    /// A stream may lack entries: it was something else, or has none.
    Refill,
}

/// Judges an answer. `early_until`: the last epoch of which this process may have published early; `filled`: whether the
/// stream has been written to before.
pub(super) fn judge(answer: Answer, head: Head, early_until: Epoch, filled: bool) -> Next {
    let Answer { result, generation, epoch, healed, last_seq } = answer;
    let known = head.epoch.max(early_until);
    if result == 2 || (result == 1 && epoch > known) {
        return Next::Newer(Stamp { generation, epoch });
    }
    if last_seq > head.seq {
        // A stream has no epochs: what it has past the audit is of another history.
        return Next::Newer(Stamp { generation: head.generation, epoch: known + 1 });
    }
    if healed & 2 > 0 || (filled && healed & 4 > 0) { Next::Refill } else { Next::On }
}

/// What a sentinel says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// None that can be read.
    Nothing,
    /// Everything up to this seq was written.
    UpTo(u64),
    /// More than the store has.
    Newer(Stamp),
}

/// Reads a sentinel.
pub(super) fn sentinel(text: Option<&str>, head: Head, early_until: Epoch) -> Found {
    let Some((seq, stamp)) = text.and_then(header) else { return Found::Nothing };
    let mine = Stamp { generation: head.generation, epoch: head.epoch.max(early_until) };
    if stamp > mine || seq > head.seq { Found::Newer(stamp) } else { Found::UpTo(seq) }
}

/// The seq, epoch and generation that a body begins with.
pub(super) fn header(text: &str) -> Option<(u64, Stamp)> {
    #[derive(serde::Deserialize)]
    struct Header {
        seq: Option<u64>,
        epoch: Epoch,
        generation: u64,
    }
    let Header { seq, epoch, generation } = serde_json::from_str(text).ok()?;
    Some((seq.unwrap_or_default(), Stamp { generation, epoch }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{account, symbol};
    use marea_model::time::first_epoch;
    use std::time::SystemTime;

    const HEAD: Head = Head { generation: 4, epoch: 100, seq: 7, committed_at: SystemTime::UNIX_EPOCH };

    fn entry(seq: u64, payload: Option<&str>) -> AuditEntry {
        let key = AuditKey::Recommendation(symbol("IBM"));
        AuditEntry { seq, epoch: 1, generation: 1, key, payload: payload.map(Into::into) }
    }

    #[test]
    fn a_wait_doubles_up_to_a_second() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..7).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1_000, 1_000]);
        backoff.reset();
        assert_eq!(backoff.next().as_millis(), 50);
    }

    #[test]
    fn a_recommendation_goes_after_an_hour_or_with_its_expiry() {
        let at = |ms: i64| format!(r#"{{"expires_at":"{}"}}"#, marea_model::time::format_rfc3339(ms * MILLI));
        let epoch = first_epoch(1_000);
        for (expires, clock, wall, expected) in [
            (5_000, Clock::Wall, 1_000, Expiry::At(5_000)),
            (5_000_000, Clock::Wall, 1_000, Expiry::At(3_601_000)),
            (5_000, Clock::Wall, 5_000, Expiry::Gone),
            (5_000, Clock::Wall, 9_000, Expiry::Gone),
            (5_000, Clock::Event, 9_000, Expiry::At(13_000)),
            (1_000, Clock::Event, 0, Expiry::Gone),
        ] {
            assert_eq!(
                expiry(&entry(1, Some(&at(expires))), clock, epoch, wall),
                expected,
                "{expires} {clock:?} {wall}"
            );
        }
        assert_eq!(expiry(&entry(1, Some("{}")), Clock::Wall, epoch, 0), Expiry::At(3_600_000));
        let verdict = AuditEntry { key: AuditKey::Verdict(account("M"), symbol("IBM")), ..entry(1, Some(&at(1))) };
        assert_eq!(expiry(&verdict, Clock::Wall, epoch, 9), Expiry::Never);
    }

    #[test]
    fn the_newest_value_of_a_key_wins() {
        let other = AuditKey::Verdict(account("M"), symbol("IBM"));
        let (first, second, gone) = (entry(1, Some("{}")), entry(2, Some("{}")), entry(4, None));
        let verdict = AuditEntry { key: other, ..entry(3, Some("{}")) };
        for (events, expected) in [
            (vec![], vec![]),
            (vec![&first], vec![1]),
            (vec![&first, &second, &verdict], vec![2, 3]),
            (vec![&first, &second, &verdict, &gone], vec![3, 4]),
        ] {
            let events: Vec<AuditEntry> = events.into_iter().cloned().collect();
            assert_eq!(newest(&events), expected.into_iter().collect());
        }
    }

    #[test]
    fn answers() {
        let newer = |generation, epoch| Next::Newer(Stamp { generation, epoch });
        for (answer, expected) in [
            (Answer::default(), Next::On),
            (Answer { result: 1, generation: 4, epoch: 105, ..Answer::default() }, Next::On),
            (Answer { result: 1, generation: 4, epoch: 111, ..Answer::default() }, newer(4, 111)),
            (Answer { result: 2, generation: 5, epoch: 1, ..Answer::default() }, newer(5, 1)),
            (Answer { last_seq: 7, ..Answer::default() }, Next::On),
            (Answer { last_seq: 8, ..Answer::default() }, newer(4, 111)),
            (Answer { healed: 1, ..Answer::default() }, Next::On),
            (Answer { healed: 2, ..Answer::default() }, Next::Refill),
            (Answer { healed: 4, ..Answer::default() }, Next::Refill),
        ] {
            assert_eq!(judge(answer, HEAD, 110, true), expected, "{answer:?}");
        }
        let first = Answer { healed: 4, ..Answer::default() };
        assert_eq!(judge(first, HEAD, 110, false), Next::On, "the first entry of a stream");
    }

    #[test]
    fn sentinels() {
        let newer = |generation, epoch| Found::Newer(Stamp { generation, epoch });
        for (text, expected) in [
            (None, Found::Nothing),
            (Some(""), Found::Nothing),
            (Some("OK"), Found::Nothing),
            (Some(r#"{"seq":7,"epoch":100,"generation":4}"#), Found::UpTo(7)),
            (Some(r#"{"seq":5,"epoch":90,"generation":3}"#), Found::UpTo(5)),
            (Some(r#"{"seq":8,"epoch":100,"generation":3}"#), newer(3, 100)),
            (Some(r#"{"seq":7,"epoch":101,"generation":4}"#), newer(4, 101)),
            (Some(r#"{"seq":1,"epoch":1,"generation":5}"#), newer(5, 1)),
        ] {
            assert_eq!(sentinel(text, HEAD, 0), expected, "{text:?}");
        }
    }
}
