//! The connection: to one server, to the one that Sentinels name, or to a Cluster.

use super::config::{Parts, RedisConfig};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline, RedisError,
    RedisResult, TlsMode, Value,
};
use std::pin::Pin;
use std::time::Duration;

/// How long a connection may take.
pub(super) const CONNECT: Duration = Duration::from_secs(2);
/// How long an answer may take. A server that needs longer is treated as gone, and tried again.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// Where to connect.
pub(super) enum Target {
    Server(Client),
    Sentinels { sentinels: Vec<ConnectionAddr>, service: String, settings: redis::RedisConnectionInfo, tls: bool },
    Cluster(Box<ClusterClient>),
}

impl Target {
    /// Reads a URL. The error says what it must be, not what it is.
    pub(super) fn parse(url: &str) -> Result<Target, String> {
        let parts = Parts::read(url)?;
        let scheme = if parts.tls { "rediss" } else { "redis" };
        let shown = |error: RedisError| format!("must be one that Redis understands: {error}");
        match parts.kind {
            "sentinel" => {
                let [service, db @ ..] = parts.path.as_slice() else {
                    return Err(
                        "must name the service after the Sentinels, as redis+sentinel://HOST/SERVICE".to_owned()
                    );
                };
                let (credentials, db) = (parts.credentials, db.first().unwrap_or(&"0"));
                let info = format!("{scheme}://{credentials}localhost/{db}").as_str().into_connection_info();
                let settings = info.map_err(shown)?.redis_settings().clone();
                let sentinels = parts.hosts.into_iter().map(|(host, port)| {
                    let port = port.unwrap_or(26_379);
                    match parts.tls {
                        false => ConnectionAddr::Tcp(host, port),
                        true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
                    }
                });
                let sentinels = sentinels.collect();
                Ok(Target::Sentinels { sentinels, service: (*service).to_owned(), settings, tls: parts.tls })
            }
            "cluster" => {
                let nodes = parts
                    .hosts
                    .iter()
                    .map(|(host, port)| format!("{scheme}://{}{host}:{}", parts.credentials, port.unwrap_or(6_379)));
                let builder = ClusterClient::builder(nodes).tcp_settings(prompt());
                let client = builder.connection_timeout(CONNECT).response_timeout(ANSWER).build();
                client.map(|client| Target::Cluster(Box::new(client))).map_err(shown)
            }
            _ => url.into_connection_info().and_then(server).map(Target::Server).map_err(shown),
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Target::Cluster(_))
    }

    /// Connects, at most [`CONNECT`] and [`ANSWER`] long. Gives also what connects to the same server once more; none to a
    /// Cluster.
    pub(super) async fn connect(&self) -> RedisResult<(Link, Option<Client>)> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(ANSWER));
        let connecting = async {
            let client = match self {
                Target::Server(client) => client.clone(),
                Target::Sentinels { sentinels, service, settings, tls } => {
                    let kind = SentinelServerType::Master;
                    let mut builder = SentinelClientBuilder::new(sentinels.iter().cloned(), service, kind)?;
                    builder = builder.set_client_to_redis_db(settings.db());
                    if let Some(user) = settings.username() {
                        builder = builder.set_client_to_redis_username(user);
                    }
                    if let Some(password) = settings.password() {
                        builder = builder.set_client_to_redis_password(password);
                    }
                    if *tls {
                        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
                    }
                    let master = builder.build()?.async_get_client().await?;
                    server(master.get_connection_info().clone())?
                }
                Target::Cluster(client) => {
                    return client.get_async_connection().await.map(|c| (Link::Cluster(Box::new(c)), None));
                }
            };
            let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            Ok((Link::Server(connection), Some(client)))
        };
        let late = |_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        tokio::time::timeout(CONNECT + ANSWER, connecting).await.map_err(late)?
    }
}

fn server(info: ConnectionInfo) -> RedisResult<Client> {
    Client::open(info.set_tcp_settings(prompt()))
}

/// What is written is sent, and does not wait until what was sent before has been received: the default would. What nobody
/// receives breaks the connection.
fn prompt() -> TcpSettings {
    let settings = TcpSettings::default().set_nodelay(true);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(ANSWER);
    settings
}

/// A connection. Cloning shares it.
#[derive(Clone)]
pub(super) enum Link {
    Server(MultiplexedConnection),
    Cluster(Box<ClusterConnection>),
}

/// Answers to come, in the order of their commands; the first error is the error of all, though others may have been
/// carried out.
pub(super) type Answers = Pin<Box<dyn Future<Output = RedisResult<Vec<Value>>> + Send>>;

impl Link {
    /// What sends commands at once (to a Cluster one after the other) when it is looked at first. One server carries out
    /// first what was sent first, whoever waits for it; no more than some fifty may be on their way, or the first look does
    /// not send.
    pub(super) fn all(&self, commands: Vec<Cmd>) -> Answers {
        Box::pin(self.clone().send(commands))
    }

    async fn send(mut self, commands: Vec<Cmd>) -> RedisResult<Vec<Value>> {
        match &mut self {
            Link::Server(connection) => {
                let mut pipeline = Pipeline::with_capacity(commands.len());
                for command in commands {
                    pipeline.add_command(command);
                }
                match pipeline.is_empty() {
                    true => Ok(Vec::new()),
                    false => {
                        let answers = pipeline.ignore_errors().query_async::<Vec<RedisResult<Value>>>(connection);
                        answers.await?.into_iter().collect()
                    }
                }
            }
            Link::Cluster(connection) => {
                let mut answers = Vec::with_capacity(commands.len());
                for command in &commands {
                    answers.push(connection.req_packed_command(command).await?.extract_error()?);
                }
                Ok(answers)
            }
        }
    }

    /// One command.
    pub(super) async fn one(&self, command: Cmd) -> RedisResult<Value> {
        Ok(self.all(vec![command]).await?.pop().unwrap_or(Value::Nil))
    }
}

/// Where a configuration leads.
pub(super) fn target(config: &RedisConfig) -> Result<Target, String> {
    // Two providers are among the dependencies, and rustls asks which. The first choice of the process stands.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Target::parse(&config.url)
}
