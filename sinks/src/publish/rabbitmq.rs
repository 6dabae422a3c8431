//! Publishes to RabbitMQ, each message confirmed.
//!
//! ```text
//!  publish ──► outstanding, bounded ──► exchange (topic, durable) ──# ──► queue (quorum, durable) or stream
//!                  ▲                                                             │ stored
//!                  └────────────────────────── confirm ◄─────────────────────────┘
//! ```
//!
//! 1. **Confirmed** is what the broker stored: persistent messages, `mandatory`, and a confirm for each. A message that no
//!    queue takes, or that the broker refuses, is an error.
//! 2. **Pipelined**: many messages wait for their confirm at once, [`OUTSTANDING`] at most. They are sent in the order in which
//!    they are published.
//! 3. **The first error stays**: nothing is sent after it. What was not confirmed by then may or may not be stored; publishing it
//!    again under the same message id is how it is made sure of, and what makes the repeat known.
//! 4. Nothing waits for ever: a broker that confirms nothing for [`PATIENCE`] (it may be out of disk or memory) is an error.
//!
//! The calls block. The runtime has one thread of its own, so that heartbeats go on while the caller is elsewhere.

use futures_util::FutureExt;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind};
use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The exchange of ticks.
pub const EXCHANGE: &str = "marea.ticks";
/// Messages that may wait for their confirm.
pub const OUTSTANDING: usize = 4096;
/// How long the broker may take for an answer.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Seconds between heartbeats, unless the address says otherwise.
const HEARTBEAT_S: u16 = 10;

/// What takes the messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RabbitKind {
    /// A quorum queue: what is acknowledged is gone.
    Queue,
    /// A stream: it keeps what was read.
    Stream,
}

impl RabbitKind {
    fn queue_type(self) -> &'static str {
        match self {
            RabbitKind::Queue => "quorum",
            RabbitKind::Stream => "stream",
        }
    }
}

/// Files for `amqps://`, PEM.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RabbitTls {
    /// The certificates that sign the broker's. Needed for TLS.
    pub ca: Option<PathBuf>,
    /// Our certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// Why publishing ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RabbitPublishError {
    /// The address cannot be used. It is not shown: it may hold a password.
    #[error("RabbitMQ: url: {0}; it must be amqp://user:password@host:port/vhost or amqps://…")]
    Address(String),
    /// A file of certificates or keys cannot be read.
    #[error("RabbitMQ: {key}: {}: {source}", path.display())]
    File {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The runtime could not be made.
    #[error("the runtime of the RabbitMQ publisher could not be made: {0}")]
    Runtime(std::io::Error),
    /// The broker cannot be reached, or refuses the user.
    #[error("RabbitMQ at {host}: cannot connect as {user} to the vhost {vhost}: {reason}")]
    Connect {
        /// Host and port.
        host: String,
        /// The user.
        user: String,
        /// The vhost.
        vhost: String,
        /// What happened.
        reason: String,
    },
    /// The exchange, the queue or the stream cannot be declared, e.g. since it exists in another form.
    #[error("RabbitMQ at {host}: cannot declare {what}: {reason}")]
    Declare {
        /// Host and port.
        host: String,
        /// What it was.
        what: String,
        /// The broker's words.
        reason: String,
    },
    /// A name is too long for AMQP.
    #[error("RabbitMQ: {field} may have 255 bytes, and has {bytes}")]
    TooLong {
        /// Which one.
        field: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// No queue takes the message.
    #[error(
        "RabbitMQ at {host}: nothing takes messages of {exchange} with the key {routing_key}: {reply}; bind a queue or stream to it"
    )]
    Unroutable {
        /// Host and port.
        host: String,
        /// The exchange.
        exchange: String,
        /// The routing key.
        routing_key: String,
        /// The broker's words.
        reply: String,
    },
    /// The broker did not take the message.
    #[error(
        "RabbitMQ at {host}: the broker refused a message with the key {routing_key}: is the queue full (x-overflow)?"
    )]
    Refused {
        /// Host and port.
        host: String,
        /// The routing key.
        routing_key: String,
    },
    /// The connection is gone.
    #[error("RabbitMQ at {host}: lost with {unconfirmed} messages unconfirmed: {reason}; publish these again")]
    Lost {
        /// Host and port.
        host: String,
        /// Messages that may or may not be stored.
        unconfirmed: u64,
        /// What happened.
        reason: String,
    },
    /// Publishing goes on after its first error.
    #[error("RabbitMQ: nothing is published after the first error: {0}")]
    Ended(String),
}

/// How much was published.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Published {
    /// Messages that were sent.
    pub sent: u64,
    /// Messages that the broker has stored.
    pub confirmed: u64,
}

struct Outstanding {
    confirm: Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>,
    routing_key: String,
}

/// A connection to publish on.
pub struct RabbitPublisher {
    host: String,
    outstanding: VecDeque<Outstanding>,
    published: Published,
    ended: Option<String>,
    channel: Channel,
    connection: Connection,
    // Last: what is above lives on it.
    runtime: Runtime,
}

impl fmt::Debug for RabbitPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitPublisher")
            .field("host", &self.host)
            .field("published", &self.published)
            .finish_non_exhaustive()
    }
}

impl RabbitPublisher {
    /// Connects, once.
    pub fn connect(url: &str, tls: &RabbitTls) -> Result<Self, RabbitPublishError> {
        let mut uri: AMQPUri = url.parse().map_err(RabbitPublishError::Address)?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
        let tls = read_tls(tls)?;
        let host = format!("{}:{}", uri.authority.host, uri.authority.port);
        let (user, vhost) = (uri.authority.userinfo.username.clone(), uri.vhost.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("marea-rabbitmq")
            .enable_all()
            .build()
            .map_err(RabbitPublishError::Runtime)?;
        let connect = async {
            let properties = ConnectionProperties::default().with_connection_name("marea".into());
            let lapin_runtime = lapin::runtime::default_runtime()?;
            let connection = Connection::connect_uri_with_config(uri, properties, tls, lapin_runtime).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            lapin::Result::Ok((connection, channel))
        };
        let (connection, channel) = match runtime.block_on(within(CONNECT, connect)) {
            Ok(connected) => connected,
            Err(reason) => return Err(RabbitPublishError::Connect { host, user, vhost, reason }),
        };
        let (outstanding, published) = (VecDeque::new(), Published::default());
        Ok(RabbitPublisher { host, outstanding, published, ended: None, channel, connection, runtime })
    }

    /// Sees to it that the exchange (topic, durable) and the queue (quorum, durable) or stream exist, and that the one brings
    /// everything to the other.
    pub fn ensure(&mut self, kind: RabbitKind, name: &str, exchange: &str) -> Result<(), RabbitPublishError> {
        let (queue, from) = (short("name", name)?, short("exchange", exchange)?);
        let connection = &self.connection;
        let declare = async {
            // An error closes the channel: not the one that publishes.
            let channel = connection.create_channel().await?;
            let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            channel.exchange_declare(from.clone(), ExchangeKind::Topic, options, FieldTable::default()).await?;
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.queue_type().into()));
            channel.queue_declare(queue.clone(), QueueDeclareOptions::durable(), arguments).await?;
            channel.queue_bind(queue, from, "#".into(), QueueBindOptions::default(), FieldTable::default()).await?;
            channel.close(200, "done".into()).await
        };
        let what = format!("exchange {exchange} and {} {name}", kind.queue_type());
        let declared = self.runtime.block_on(within(PATIENCE, declare));
        declared.map_err(|reason| RabbitPublishError::Declare { host: self.host.clone(), what, reason })
    }

    /// Sends a message. Waits only while too many are unconfirmed.
    pub fn publish(
        &mut self,
        exchange: &str,
        routing_key: &str,
        content_type: &str,
        message_id: Option<&str>,
        body: &[u8],
    ) -> Result<(), RabbitPublishError> {
        if let Some(first) = &self.ended {
            return Err(RabbitPublishError::Ended(first.clone()));
        }
        let (to, key) = (short("exchange", exchange)?, short("routing key", routing_key)?);
        let mut properties =
            BasicProperties::default().with_content_type(short("content type", content_type)?).with_delivery_mode(2);
        if let Some(id) = message_id {
            properties = properties.with_message_id(short("message id", id)?);
        }
        let (channel, body) = (self.channel.clone(), body.to_vec());
        let mut confirm = Box::pin(async move {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            channel.basic_publish(to, key, options, &body, properties).await?.await
        });
        self.published.sent += 1;
        // The first look at it queues the message, so that the order is ours.
        let routing_key = routing_key.to_owned();
        match (&mut confirm).now_or_never() {
            Some(confirmed) => self.settle(confirmed, &routing_key)?,
            None => self.outstanding.push_back(Outstanding { confirm, routing_key }),
        }
        if self.outstanding.len() >= OUTSTANDING {
            self.drain(OUTSTANDING / 2)?;
        }
        Ok(())
    }

    /// Waits until everything is confirmed.
    pub fn flush(&mut self) -> Result<Published, RabbitPublishError> {
        if let Some(first) = &self.ended {
            return Err(RabbitPublishError::Ended(first.clone()));
        }
        self.drain(0)?;
        Ok(self.published)
    }

    /// How much was published so far.
    pub fn published(&self) -> Published {
        self.published
    }

    fn drain(&mut self, left: usize) -> Result<(), RabbitPublishError> {
        while self.outstanding.len() > left
            && let Some(Outstanding { confirm, routing_key }) = self.outstanding.pop_front()
        {
            let confirmed = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, confirm).await });
            match confirmed {
                Ok(confirmed) => self.settle(confirmed, &routing_key)?,
                Err(_) => return Err(self.lose(format!("no confirm within {} s", PATIENCE.as_secs()))),
            }
        }
        Ok(())
    }

    fn settle(&mut self, confirmed: lapin::Result<Confirmation>, routing_key: &str) -> Result<(), RabbitPublishError> {
        let host = self.host.clone();
        let error = match confirmed {
            Ok(Confirmation::Ack(None)) => {
                self.published.confirmed += 1;
                return Ok(());
            }
            Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) => {
                RabbitPublishError::Unroutable {
                    host,
                    exchange: returned.exchange.as_str().to_owned(),
                    routing_key: routing_key.to_owned(),
                    reply: returned.reply_text.as_str().to_owned(),
                }
            }
            Ok(Confirmation::Nack(None)) => RabbitPublishError::Refused { host, routing_key: routing_key.to_owned() },
            Ok(Confirmation::NotRequested) => return Err(self.lose("the channel does not confirm".to_owned())),
            Err(error) => return Err(self.lose(error.to_string())),
        };
        self.ended = Some(error.to_string());
        Err(error)
    }

    fn lose(&mut self, reason: String) -> RabbitPublishError {
        let unconfirmed = self.published.sent - self.published.confirmed;
        let error = RabbitPublishError::Lost { host: self.host.clone(), unconfirmed, reason };
        self.ended = Some(error.to_string());
        error
    }
}

impl Drop for RabbitPublisher {
    fn drop(&mut self) {
        let close = self.connection.close(200, "done".into());
        let _ = self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), close).await });
    }
}

/// An answer in time, or why there is none.
async fn within<T>(limit: Duration, answer: impl Future<Output = lapin::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

fn short(field: &'static str, text: &str) -> Result<ShortString, RabbitPublishError> {
    ShortString::try_new(text).map_err(|_| RabbitPublishError::TooLong { field, bytes: text.len() })
}

fn read_tls(tls: &RabbitTls) -> Result<OwnedTLSConfig, RabbitPublishError> {
    let read = |key, path: &Path| {
        std::fs::read(path).map_err(|source| RabbitPublishError::File { key, path: path.to_owned(), source })
    };
    let ca = tls.ca.as_deref().map(|path| read("ca", path)).transpose()?;
    let cert_chain = ca.map(|pem| String::from_utf8_lossy(&pem).into_owned());
    let identity = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => Some(OwnedIdentity::PKCS8 { pem: read("cert", cert)?, key: read("key", key)? }),
        _ => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}
