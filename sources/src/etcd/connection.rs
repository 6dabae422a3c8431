//! One connection to one member. A client of several endpoints would spread its requests over them, those that hang
//! included: here a member that does not answer is left for the next one.

use super::state::{Change, Range};
use super::{EtcdConfig, EtcdError};
use etcd_client::{
    Client, EventType, GetOptions, KeyValue, KvClient, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, TxnResponse,
    WatchOptions, WatchStream,
};
use std::time::Duration;

/// The folders of the tree: begin, and the first key behind.
pub(super) const FOLDERS: [(&str, &str); 2] = [("/echo/", "/echo0"), ("/marea/", "/marea0")];
/// A server takes no request above 1.5 MiB, but a tree may have many values.
const MAX_MESSAGE: usize = 512 << 20;

/// A connection.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    kv: KvClient,
}

/// What a read without values has found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    pub(super) cluster: u64,
    pub(super) revision: i64,
    /// How many keys stand in both folders.
    pub(super) keys: usize,
    /// When one of them was modified last; 0 without keys.
    pub(super) modified: i64,
}

/// What the watch has said.
#[derive(Debug)]
pub(super) enum Heard {
    /// The watch stands.
    Created,
    /// Changes, ordered by revision.
    Events(Vec<Change>),
    /// No more will come, and why.
    Cancelled(String),
}

impl Connection {
    /// Connects and authenticates.
    pub(super) async fn open(config: &EtcdConfig, endpoint: &str, patience: Duration) -> Result<Self, EtcdError> {
        let options = config.options(patience)?;
        let asked = |error| EtcdError::asked(endpoint, "connect", error);
        let client = within(patience, endpoint, "connect", Client::connect([endpoint], Some(options))).await?;
        let client = client.map_err(asked)?;
        let kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
        Ok(Connection { client, kv })
    }

    /// For other transactions.
    pub(super) fn kv(&self) -> KvClient {
        self.kv.clone()
    }

    /// Counts the keys, and asks for the one that was modified last: a linearizable read of a few bytes. Errors name no
    /// endpoint: the caller knows.
    pub(super) async fn count(mut self) -> Result<Count, etcd_client::Error> {
        let last = GetOptions::new().with_keys_only().with_sort(SortTarget::Mod, SortOrder::Descend).with_limit(1);
        let answer = self.kv.txn(both(&last)).await?;
        let (cluster, revision) = header(&answer)?;
        let (mut keys, mut modified) = (0, 0);
        for get in gets(&answer) {
            keys += usize::try_from(get.count()).unwrap_or_default();
            modified = get.kvs().iter().map(KeyValue::mod_revision).fold(modified, i64::max);
        }
        Ok(Count { cluster, revision, keys, modified })
    }

    /// All keys at one revision, linearizable: one transaction of two Ranges.
    pub(super) async fn range(mut self) -> Result<Range, etcd_client::Error> {
        let answer = self.kv.txn(both(&GetOptions::new())).await?;
        let (cluster, revision) = header(&answer)?;
        let keys = gets(&answer).flat_map(|mut get| get.take_kvs()).map(|kv| change(&kv, true)).collect();
        Ok(Range { cluster, revision, keys })
    }

    /// A watch of all that comes from `revision` on. One range from the first folder to the last: two watches would
    /// tell one revision in two parts.
    pub(super) async fn watch(&self, revision: i64) -> Result<WatchStream, etcd_client::Error> {
        let options = WatchOptions::new().with_range(FOLDERS[1].1).with_start_revision(revision);
        let mut client = self.client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        client.watch(FOLDERS[0].0, Some(options)).await
    }
}

/// The next that a watch says.
pub(super) async fn hear(stream: &mut WatchStream) -> Result<Heard, etcd_client::Error> {
    let Some(message) = stream.message().await? else { return Ok(Heard::Cancelled("the stream has ended".to_owned())) };
    if message.canceled() {
        let why = match (message.compact_revision(), message.cancel_reason()) {
            (0, "") => "cancelled".to_owned(),
            (0, why) => why.to_owned(),
            (revision, _) => format!("compacted up to revision {revision}"),
        };
        return Ok(Heard::Cancelled(why));
    }
    if message.created() {
        return Ok(Heard::Created);
    }
    let ours = |kv: &&KeyValue| FOLDERS.iter().any(|(folder, _)| kv.key().starts_with(folder.as_bytes()));
    let events = message.events().iter().filter_map(|event| {
        let kv = event.kv().filter(ours)?;
        Some(change(kv, event.event_type() == EventType::Put))
    });
    Ok(Heard::Events(events.collect()))
}

/// Waits no longer than this.
pub(super) async fn within<T>(
    patience: Duration,
    endpoint: &str,
    what: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, EtcdError> {
    let timeout = |_| EtcdError::Silent { endpoint: endpoint.to_owned(), what, patience };
    tokio::time::timeout(patience, work).await.map_err(timeout)
}

fn both(options: &GetOptions) -> Txn {
    let get = |(from, to): (&str, &str)| TxnOp::get(from, Some(options.clone().with_range(to)));
    Txn::new().and_then(FOLDERS.map(get))
}

fn gets(answer: &TxnResponse) -> impl Iterator<Item = etcd_client::GetResponse> {
    answer.op_responses().into_iter().filter_map(|response| match response {
        TxnOpResponse::Get(get) => Some(get),
        _ => None,
    })
}

/// Cluster and revision of an answer.
fn header(answer: &TxnResponse) -> Result<(u64, i64), etcd_client::Error> {
    let header =
        answer.header().ok_or_else(|| etcd_client::Error::Internal("an answer without a header".to_owned()))?;
    Ok((header.cluster_id(), header.revision()))
}

fn change(kv: &KeyValue, stands: bool) -> Change {
    let value = stands.then(|| value_text(kv.value()));
    Change { key: key_text(kv.key()), value, revision: kv.mod_revision() }
}

/// A value that is not UTF-8 becomes a text that no reader of the tree takes for anything, so that it blocks what it
/// touches: a `[` begins neither a number nor a time, a name, a switch or an object, and what follows is no array.
pub(super) fn value_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("[not UTF-8: {}", String::from_utf8_lossy(bytes)),
    }
}

/// The bytes of a key that are not UTF-8 become `%FF`, which decodes to no name.
pub(super) fn key_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("%{byte:02X}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use marea_model::live::{Effect, LiveConfig, PolicyState};
    use marea_model::{AccountId, ConfigUpdate, Instruments};

    #[test]
    fn a_value_that_is_not_utf8_blocks_what_it_touches() {
        let put =
            |key: &str, value: &[u8]| ConfigUpdate::Put { key: key.into(), value: value_text(value), revision: 3 };
        let account = AccountId::new("M1").unwrap();
        for field in ["max_spread", "enabled", "max_delay_ms", "risk_per_trade"] {
            let mut live = LiveConfig::new(&Instruments::default());
            for (key, value) in
                [("core/master_accounts", "M1"), ("policy/M1/max_spread", "1"), ("policy/M1/risk_fixed", "1")]
            {
                live.apply(&put(&format!("/echo/{key}"), value.as_bytes()));
            }
            assert!(matches!(live.policy(account), PolicyState::Valid(_)));
            live.apply(&put(&format!("/echo/policy/M1/{field}"), b"1\xff"));
            let PolicyState::Invalid(details) = live.policy(account) else { panic!("{field}") };
            assert!(details[0].starts_with(&format!("/echo/policy/M1/{field}: \"[not UTF-8: 1")), "{details:?}");
        }
        let mut live = LiveConfig::new(&Instruments::default());
        live.apply(&put("/echo/core/master_accounts", b"M1,M2"));
        // The accounts that it last named are blocked, none is forgotten.
        live.apply(&put("/echo/core/master_accounts", b"M1,M2,\xff"));
        assert_eq!(live.accounts().len(), 2);
        assert!(matches!(live.policy(account), PolicyState::Invalid(_)));
        live.apply(&put("/echo/core/trading_enabled", b"true\xff"));
        assert!(!live.trading_enabled());
        for (key, effect) in [
            ("/echo/windows/M1/IBM/active", Effect::Blocks),
            ("/echo/windows/M1/IBM/start_utc", Effect::Blocks),
            ("/marea/strategies/x", Effect::Absent),
            ("/marea/instruments/IBM", Effect::Kept),
        ] {
            live.apply(&put(key, b"{\xff}"));
            assert!(live.problems().iter().any(|p| p.key == key && p.effect == effect), "{key}");
        }
    }

    #[test]
    fn a_key_that_is_not_utf8_stays_a_key_of_its_folder() {
        assert_eq!(key_text(b"/echo/policy/M1/max_spread"), "/echo/policy/M1/max_spread");
        assert_eq!(key_text("/echo/policy/ñ".as_bytes()), "/echo/policy/ñ");
        assert_eq!(key_text(b"/echo/policy/M1/\xff\x80x"), "/echo/policy/M1/%FF%80x");
    }
}
