//! RabbitMQ: queues and streams over AMQP 0-9-1.
//!
//! | | stream | queue (quorum; durable classic ones too) |
//! |---|---|---|
//! | cursor | the broker's offset of the record | our own number of the message, dense, counted on from the last commit |
//! | after a restart | read again from any offset | never again: each message is handed over with its bytes as well, for the store |
//! | acknowledged | when handed over; it only asks for more | when the epoch that holds the message is committed, never before |
//! | from the broker | every record, in order | every message at least once |
//! | with the store | exactly once | exactly once: a redelivery of what was committed is known by its properties and bytes, also after a restart, acknowledged and dropped (see `deliveries`) |
//! | order | the order of the stream | the order of the queue; redelivered messages go back to their place where the broker can (quorum: to the front), so they may come behind later ones |
//!
//! **Partition**: `rabbitmq:{kind}:{vhost}/{name}`, so that a store that was filled from the one is refused for the other. Offsets of a stream may jump without loss, where the broker keeps its own books
//! in it.
//!
//! **Gaps.** Before a stream is read on, and whenever offsets jump, the broker is asked what it has. A first record behind the
//! one that is wanted (retention by `x-max-length-bytes` or `x-max-age`) is [`RabbitError::Gap`]; a stream that ends before what
//! was read, or has another record where the last one was read, is [`RabbitError::Recreated`]. `accept_gap` goes on instead,
//! but not where a restart has to read again what is gone ([`RabbitError::Lost`]): what stands is right, and would be mended wrongly.
//! A queue that drops messages (`x-message-ttl`, `x-max-length`, `x-expires`, a purge) cannot be told from one that never had
//! them: don't set these on a queue whose messages count, or set `x-overflow: reject-publish`, so that the publisher knows.
//!
//! **Poison.** What cannot be read is a dead letter of ours, acknowledged like all else; nothing is rejected or requeued, so
//! nothing goes round in circles. What kills its consumer before it is read does: a quorum queue's policy should set
//! `delivery-limit` and `dead-letter-exchange`, e.g.
//! `rabbitmqctl set_policy marea '^marea\.' '{"delivery-limit":20,"dead-letter-exchange":"marea.dead"}' --apply-to queues`.
//! A message whose properties are not UTF-8 breaks AMQP clients of this kind: in a stream it is skipped as a dead letter without
//! its bytes, in a queue it ends the source after some tries ([`RabbitError::Unreadable`]).
//!
//! **Backpressure.** At most `prefetch` messages are not acknowledged; while the channel to the cutter is full, nothing is
//! acknowledged and the broker keeps the rest.
//!
//! **Disconnects.** It connects again after 100 ms, later 5 s, and goes on where it was; a queue or stream that does not exist
//! is waited for, and so is a stream whose replica has not started. The topology is the operator's: nothing is declared here.
//!
//! **At its end** a partition is when the broker has nothing that was not handed over: of a queue by its number of ready
//! messages, of a stream by its last record. Asked when idle, every 100 ms at most.

mod deliveries;
mod session;
mod state;
#[cfg(test)]
mod tests;

use crate::{Carries, Committed, Input, Lags, Resume, Sender, Stop, send};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use marea_model::Partition;
use marea_model::codec::Decoder;
use session::Session;
use state::State;
use std::fmt;
use std::path::{Path, PathBuf};

/// Messages that may be unacknowledged, unless configured otherwise.
pub const PREFETCH: u16 = 10_000;
/// Seconds between heartbeats, unless the address says otherwise.
const HEARTBEAT_S: u16 = 10;

/// What is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RabbitKind {
    /// A stream: it keeps what was read.
    Stream,
    /// A queue, quorum or classic: what is acknowledged is gone.
    Queue,
}

impl RabbitKind {
    /// Its name in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            RabbitKind::Stream => "stream",
            RabbitKind::Queue => "queue",
        }
    }
}

impl fmt::Display for RabbitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What to read from which broker.
#[derive(Clone, PartialEq, Eq)]
pub struct RabbitConfig {
    /// `amqp://user:password@host:port/vhost`, or `amqps://` for TLS; the vhost is percent-encoded (`%2f`).
    pub url: String,
    /// The stream or queue of ticks.
    pub name: String,
    /// What it is.
    pub kind: RabbitKind,
    /// Another stream or queue, of the same kind, of account snapshots.
    pub accounts: Option<String>,
    /// Messages that may be unacknowledged, in each of the two.
    pub prefetch: u16,
    /// The certificates that sign the broker's, PEM.
    pub ca: Option<PathBuf>,
    /// Our certificate, PEM.
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
    /// Ends at what is there at the start.
    pub until_end: bool,
    /// Goes on where a stream no longer has what is needed, or is another one.
    pub accept_gap: bool,
}

impl fmt::Debug for RabbitConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitConfig")
            .field("url", &redact(&self.url))
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("accounts", &self.accounts)
            .field("prefetch", &self.prefetch)
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .field("key", &self.key)
            .field("until_end", &self.until_end)
            .field("accept_gap", &self.accept_gap)
            .finish()
    }
}

impl RabbitConfig {
    /// A configuration with defaults.
    pub fn new(url: impl Into<String>, name: impl Into<String>, kind: RabbitKind) -> Self {
        RabbitConfig {
            url: url.into(),
            name: name.into(),
            kind,
            accounts: None,
            prefetch: PREFETCH,
            ca: None,
            cert: None,
            key: None,
            until_end: false,
            accept_gap: false,
        }
    }

    /// All that is wrong, found without network, each naming its key.
    pub fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let uri = address(&self.url).map_err(|reason| wrong.push(format!("url: {reason}"))).ok();
        for (key, name) in [("name", Some(&self.name)), ("accounts", self.accounts.as_ref())] {
            let Some(name) = name else { continue };
            if name.is_empty() || name.len() > 255 {
                wrong.push(format!("{key}: must have 1 to 255 bytes, and has {}", name.len()));
            } else if let Some(uri) = &uri
                && let Err(error) = partition(uri, self.kind, name)
            {
                wrong.push(format!("{key}: {error}"));
            }
        }
        if self.accounts.as_ref() == Some(&self.name) {
            wrong.push(format!("accounts: must be another {} than name", self.kind));
        }
        if self.prefetch == 0 {
            wrong.push("prefetch: must be at least 1 (0 would be without limit)".to_owned());
        }
        let tls = uri.as_ref().is_none_or(|uri| uri.scheme == AMQPScheme::AMQPS);
        for (key, path) in [("ca", &self.ca), ("cert", &self.cert), ("key", &self.key)] {
            let Some(path) = path else { continue };
            if !tls {
                wrong.push(format!("{key}: needs a url with amqps://"));
            }
            if let Err(error) = std::fs::File::open(path) {
                wrong.push(format!("{key}: {}: {error}", path.display()));
            }
        }
        if uri.is_some_and(|uri| uri.scheme == AMQPScheme::AMQPS) && self.ca.is_none() {
            wrong.push("ca: amqps:// needs the certificates that sign the broker's".to_owned());
        }
        match (&self.cert, &self.key) {
            (Some(_), None) => wrong.push("key: cert needs its key".to_owned()),
            (None, Some(_)) => wrong.push("cert: key needs its certificate".to_owned()),
            _ => {}
        }
        wrong
    }
}

/// An address without its password, for people to read.
pub fn redact(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return match url.rsplit_once('@') {
            Some((_, host)) => format!("***@{host}"),
            None => url.to_owned(),
        };
    };
    // A password with an unescaped slash or question mark is not to be seen either: the last @ counts.
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split_once(':').map_or(user.to_owned(), |(user, _)| format!("{user}:***"));
            format!("{scheme}://{user}@{host}")
        }
        None => url.to_owned(),
    }
}

/// An address that can be used, or what is wrong with it; never with its password.
fn address(url: &str) -> Result<AMQPUri, String> {
    let rest = url.strip_prefix("amqp://").or_else(|| url.strip_prefix("amqps://"));
    let Some(rest) = rest else {
        return Err(format!("{} must begin with amqp:// or amqps://", redact(url)));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let Some((user, host)) = authority.rsplit_once('@') else {
        return Err(format!("{} must name a user and a password: amqp://user:password@host", redact(url)));
    };
    if user.split_once(':').is_none_or(|(user, password)| user.is_empty() || password.is_empty()) {
        return Err(format!("{} must name a user and a password: amqp://user:password@host", redact(url)));
    }
    let mut uri: AMQPUri = url.parse().map_err(|error| format!("{} is no address: {error}", redact(url)))?;
    if let Some((literal, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        // The client's parser takes any IPv6 address for localhost.
        uri.authority.host = literal.to_owned();
    }
    if host.is_empty() || host.starts_with(':') {
        return Err(format!("{} must name a host", redact(url)));
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
    Ok(uri)
}

fn partition(uri: &AMQPUri, kind: RabbitKind, name: &str) -> Result<Partition, String> {
    Partition::new(&format!("rabbitmq:{kind}:{}/{name}", uri.vhost)).map_err(|error| error.to_string())
}

/// Why the source ended. What can be retried is retried within: each of these is for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RabbitError {
    /// The configuration cannot be used.
    #[error("RabbitMQ is configured wrongly: {}", .0.join("; "))]
    Config(Vec<String>),
    /// A file of certificates or keys cannot be read.
    #[error("{key}: {}: {source}", path.display())]
    File {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The runtime of the source's thread could not be made.
    #[error("the runtime of the RabbitMQ source could not be made: {0}")]
    Runtime(std::io::Error),
    /// The broker refuses the user.
    #[error("{host} refuses the user {user} in the vhost {vhost}: {reply}; check the password and the permissions")]
    Refused {
        /// Host and port.
        host: String,
        /// The user.
        user: String,
        /// The vhost.
        vhost: String,
        /// The broker's words.
        reply: String,
    },
    /// A certificate is not accepted, by us or by the broker.
    #[error("{host}: {reason}; check ca, cert and key, and the broker's certificate")]
    Untrusted {
        /// Host and port.
        host: String,
        /// Whose certificate, and why.
        reason: String,
    },
    /// It is a queue where a stream was configured, or the reverse.
    #[error("{partition} is configured as a {configured}, and is a {found}: set the right kind")]
    WrongKind {
        /// The partition.
        partition: Partition,
        /// As configured.
        configured: RabbitKind,
        /// As it is.
        found: RabbitKind,
    },
    /// The store holds what was read from somewhere else.
    #[error(
        "the store holds a run that has read {found}, and the configuration asks for {configured}: set kind, vhost and names as they were, or name another store"
    )]
    OtherSource {
        /// What was read.
        found: Partition,
        /// What is configured.
        configured: String,
    },
    /// The stream no longer has what is needed.
    #[error(
        "{partition} begins with offset {first}, and is needed from offset {wanted}: retention took what lies between; --accept-gap goes on without it"
    )]
    Gap {
        /// The partition.
        partition: Partition,
        /// The first offset that is needed.
        wanted: u64,
        /// The first offset that is there.
        first: u64,
    },
    /// The stream no longer has what a restart has to read again.
    #[error(
        "{partition}: a restart has to read {wanted} to {upper} again, and {detail}: what stands cannot be computed without it, so nothing is; begin anew in another store"
    )]
    Lost {
        /// The partition.
        partition: Partition,
        /// The first offset that is needed.
        wanted: u64,
        /// The end of what was read.
        upper: u64,
        /// How it is lost, with offsets.
        detail: String,
    },
    /// The stream is another one than was read before.
    #[error("{partition} is not the stream that was read before: {detail}; --accept-gap reads the new one")]
    Recreated {
        /// The partition.
        partition: Partition,
        /// How it differs, with offsets.
        detail: String,
    },
    /// A message of a queue breaks the connection each time.
    #[error(
        "{partition} has a message behind offset {offset} that breaks the connection whenever it is delivered ({detail}): take it out of the queue"
    )]
    Unreadable {
        /// The partition.
        partition: Partition,
        /// Our number of the next message.
        offset: u64,
        /// What the client says.
        detail: String,
    },
}

/// What a connection needs.
struct Address {
    uri: AMQPUri,
    tls: OwnedTLSConfig,
}

impl Address {
    fn new(config: &RabbitConfig) -> Result<Self, RabbitError> {
        let uri = address(&config.url).map_err(|reason| RabbitError::Config(vec![format!("url: {reason}")]))?;
        let read = |key, path: &Path| {
            std::fs::read(path).map_err(|source| RabbitError::File { key, path: path.to_owned(), source })
        };
        let ca = config.ca.as_deref().map(|path| read("ca", path)).transpose()?;
        let cert_chain = ca.map(|pem| String::from_utf8_lossy(&pem).into_owned());
        let identity = match (&config.cert, &config.key) {
            (Some(cert), Some(key)) => Some(OwnedIdentity::PKCS8 { pem: read("cert", cert)?, key: read("key", key)? }),
            _ => None,
        };
        Ok(Address { uri, tls: OwnedTLSConfig { identity, cert_chain } })
    }
}

/// A source that is ready to run.
pub struct Rabbit {
    config: RabbitConfig,
    address: Address,
    feeds: Vec<(String, State)>,
    committed: Committed,
    lags: Lags,
}

impl fmt::Debug for Rabbit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rabbit").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Checks the configuration and reads its files; the broker is first asked by [`Rabbit::run`].
pub fn open(
    config: RabbitConfig,
    decoder: Decoder,
    resume: Vec<Resume>,
    committed: Committed,
    lags: Lags,
) -> Result<Rabbit, RabbitError> {
    let wrong = config.check();
    if !wrong.is_empty() {
        return Err(RabbitError::Config(wrong));
    }
    let address = Address::new(&config)?;
    let mut feeds = Vec::new();
    let accounts = config.accounts.iter().map(|name| (name, Carries::Accounts));
    for (name, carries) in std::iter::once((&config.name, Carries::Ticks)).chain(accounts) {
        let partition =
            partition(&address.uri, config.kind, name).map_err(|reason| RabbitError::Config(vec![reason]))?;
        let resume = resume.iter().find(|resume| resume.partition == partition).copied();
        let mut state = State::new(partition, config.kind, carries, decoder.clone(), resume);
        if let (RabbitKind::Queue, Some(resume)) = (config.kind, resume) {
            // What comes again of it is acknowledged at once.
            committed.advance([(partition, resume.upper)]);
            state.deliveries.expect(committed.remembered(partition));
        }
        feeds.push((name.clone(), state));
    }
    let strange = resume.iter().find(|resume| feeds.iter().all(|(_, state)| state.partition() != resume.partition));
    if let Some(Resume { partition: found, .. }) = strange {
        let configured = feeds.iter().map(|(_, state)| state.partition().to_string());
        let configured = configured.collect::<Vec<_>>().join(" and ");
        return Err(RabbitError::OtherSource { found: *found, configured });
    }
    Ok(Rabbit { config, address, feeds, committed, lags })
}

impl Rabbit {
    /// The partitions that it reads: ticks first.
    pub fn partitions(&self) -> Vec<Partition> {
        self.feeds.iter().map(|(_, state)| state.partition()).collect()
    }

    /// Reads until it is stopped, nobody listens any more, or (with `until_end`) all is read and, of queues, committed
    /// and acknowledged.
    pub fn run(self, out: &Sender, stop: &Stop) -> Result<(), RabbitError> {
        for (_, state) in &self.feeds {
            let (partition, carries) = (state.partition(), state.carries());
            if send(out, stop, Input::Start { partition, carries }).is_err() {
                return Ok(());
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(RabbitError::Runtime)?;
        runtime.block_on(Session::new(self, out, stop).run())
    }
}
