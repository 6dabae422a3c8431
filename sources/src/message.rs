//! What a message of a broker says, by its content type.
//!
//! | content type | ticks | accounts |
//! |---|---|---|
//! | `application/json` | one tick | one snapshot |
//! | `application/vnd.apache.arrow.stream` | one IPC stream, any number of ticks | – |
//!
//! Parameters (`; charset=utf-8`) and case do not matter. Any other type, none, an empty message (a tombstone), and one of
//! more than [`MAX_BYTES`] are dead letters, at once and for good: what cannot be read now cannot be read later.

use crate::Carries;
use marea_model::codec::{Decoded, Decoder, arrow, json};
use marea_model::cursor::{Batch, Reason, excerpt};
use marea_model::{Cursor, DeadLetter, Nanos, RawMessage};

/// The content type of JSON.
pub const JSON: &str = "application/json";
/// The content type of Arrow.
pub const ARROW: &str = "application/vnd.apache.arrow.stream";
/// The longest message that is read.
pub const MAX_BYTES: usize = 8 << 20;

/// Decodes one message; whatever is wrong with it becomes a dead letter.
pub(crate) fn decode(
    decoder: &Decoder,
    carries: Carries,
    content_type: Option<&[u8]>,
    body: Option<&[u8]>,
    cursor: Cursor,
    receive_time: Nanos,
    out: &mut Decoded,
) {
    let mut reject = |reason, field: &str, value: String, detail: &str, body: &[u8]| {
        let (field, detail, original) = (field.to_owned(), detail.to_owned(), body.to_vec());
        out.rejects.push(DeadLetter { cursor, reason, field, value, detail, original });
    };
    let Some(body) = body.filter(|body| !body.is_empty()) else {
        return reject(Reason::Missing, "", String::new(), "the message is empty", &[]);
    };
    if body.len() > MAX_BYTES {
        let detail = format!("the message has {} bytes, and may have {MAX_BYTES}", body.len());
        return reject(Reason::Overflow, "", String::new(), &detail, body);
    }
    let Some(content_type) = content_type else {
        let detail = format!("the message has no content type: it must be {JSON} or {ARROW}");
        return reject(Reason::Schema, "content-type", String::new(), &detail, body);
    };
    match (essence(content_type), carries) {
        (Some(Essence::Json), Carries::Ticks) => json::decode(decoder, body, cursor, receive_time, out),
        (Some(Essence::Json), Carries::Accounts) => json::decode_account(decoder, body, cursor, receive_time, out),
        (Some(Essence::Arrow), Carries::Ticks) => arrow::decode_stream(decoder, body, cursor, receive_time, out),
        (Some(Essence::Arrow), Carries::Accounts) | (None, _) => {
            let detail = match carries {
                Carries::Ticks => format!("must be {JSON} or {ARROW}"),
                Carries::Accounts => format!("must be {JSON}"),
            };
            let value = excerpt(&String::from_utf8_lossy(content_type));
            reject(Reason::Schema, "content-type", value, &detail, body);
        }
    }
}

/// Messages that were stored as they came, decoded once more: a batch a partition, in order.
pub fn replay(decoder: &Decoder, messages: &[RawMessage]) -> Vec<Batch> {
    let of_one = messages.chunk_by(|a, b| a.cursor.partition == b.cursor.partition);
    let batch = |messages: &[RawMessage]| {
        let mut decoded = Decoded::default();
        let last = messages.last()?;
        for message in messages {
            let (content_type, cursor) = (message.content_type.as_deref().map(str::as_bytes), message.cursor);
            let body = Some(message.body.as_slice());
            decode(decoder, Carries::Ticks, content_type, body, cursor, message.receive_time, &mut decoded);
        }
        Some(Batch {
            records: decoded.records,
            rejects: decoded.rejects,
            upper: last.cursor.offset + 1,
            ..Batch::new(last.cursor.partition, last.receive_time)
        })
    };
    of_one.filter_map(batch).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Essence {
    Json,
    Arrow,
}

fn essence(content_type: &[u8]) -> Option<Essence> {
    let end = content_type.iter().position(|b| *b == b';').unwrap_or(content_type.len());
    let name = content_type[..end].trim_ascii();
    let known = [(JSON, Essence::Json), (ARROW, Essence::Arrow)];
    known.into_iter().find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes())).map(|(_, essence)| essence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use marea_model::time::SECOND;
    use marea_model::{Instruments, Partition, Timeframe};
    use std::sync::Arc;

    fn read(carries: Carries, content_type: Option<&str>, body: Option<&[u8]>) -> Decoded {
        let decoder =
            Decoder { instruments: Arc::new(Instruments::default()), base_timeframe: Timeframe::S1, max_ahead: None };
        let mut out = Decoded::default();
        let cursor = Cursor { partition: Partition::new("t/0").unwrap(), offset: 7, row: 0 };
        decode(&decoder, carries, content_type.map(str::as_bytes), body, cursor, 2_000_000_000 * SECOND, &mut out);
        assert_eq!(out.len(), 1, "every message ends as one record or one dead letter");
        out
    }

    const TICK: &[u8] =
        br#"{"kind":"trade","symbol":"A","event_time":1600000000000000000,"seq":1,"price":"1","size":"1"}"#;
    const ACCOUNT: &[u8] = br#"{"account":"M1","event_time":1600000000000000000,"seq":1,"equity":"1","balance":"1","currency":"USD","positions":[]}"#;

    #[test]
    fn the_content_type_says_what_it_is() {
        for content_type in ["application/json", "Application/JSON ; charset=utf-8"] {
            assert_eq!(read(Carries::Ticks, Some(content_type), Some(TICK)).records.len(), 1);
            assert_eq!(read(Carries::Accounts, Some(content_type), Some(ACCOUNT)).accounts.len(), 1);
        }
    }

    #[test]
    fn what_cannot_be_read_is_dead_at_once() {
        let large = vec![b' '; MAX_BYTES + 1];
        #[allow(clippy::type_complexity, reason = "a table")]
        let cases: [(Option<&str>, Option<&[u8]>, Reason); 7] = [
            (Some(JSON), None, Reason::Missing),
            (Some(JSON), Some(b""), Reason::Missing),
            (Some(JSON), Some(&large), Reason::Overflow),
            (None, Some(TICK), Reason::Schema),
            (Some("text/plain"), Some(TICK), Reason::Schema),
            (Some(""), Some(TICK), Reason::Schema),
            (Some(JSON), Some(b"{\"kind\":"), Reason::Malformed),
        ];
        for (content_type, body, reason) in cases {
            let out = read(Carries::Ticks, content_type, body);
            assert_eq!(out.rejects[0].reason, reason, "{content_type:?} {}", out.rejects[0].detail);
            assert_eq!(out.rejects[0].original, body.unwrap_or_default());
            assert_eq!(out.rejects[0].cursor.offset, 7);
        }
        assert_eq!(read(Carries::Accounts, Some(ARROW), Some(TICK)).rejects[0].reason, Reason::Schema);
    }
}
