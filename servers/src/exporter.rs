//! What tells Prometheus about servers that do not tell it themselves.

use std::time::Duration;

use rustix::process::Signal;

use crate::folder::Folder;
use crate::process::{self, Host, Plan, Process, require};
use crate::{ServerError, net, process_methods};

/// An exporter of one server's metrics.
pub struct Exporter {
    host: Host,
    address: String,
}

process_methods!(Exporter);

impl Exporter {
    /// Of the Redis server at `redis://host:port/`.
    pub fn redis(url: &str) -> Result<Self, ServerError> {
        let url = url.to_owned();
        Self::start("redis exporter", "prometheus-redis-exporter", "redis_exporter", move |address| {
            (vec![format!("-redis.addr={url}"), format!("-web.listen-address={address}")], Vec::new())
        })
    }

    /// Of the PostgreSQL server at `postgres://user@host:port/database`, without encryption.
    pub fn postgres(url: &str) -> Result<Self, ServerError> {
        let source = format!("{url}?sslmode=disable");
        Self::start("postgres exporter", "prometheus-postgres-exporter", "postgres_exporter", move |address| {
            (vec![format!("--web.listen-address={address}")], vec![("DATA_SOURCE_NAME", source.clone())])
        })
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// `debian` is its name as a package and as a program, `usual` what others call the program.
    fn start(
        server: &'static str,
        debian: &'static str,
        usual: &'static str,
        settings: impl Fn(&str) -> (Vec<String>, Vec<(&'static str, String)>) + Send + Sync + 'static,
    ) -> Result<Self, ServerError> {
        let found = process::find(usual, &[]);
        let program = found.map_or_else(|| require(server, debian, debian, &[]), Ok)?;
        let folder = Folder::new("exporter")?;
        let [port] = net::free_ports()?;
        let address = format!("127.0.0.1:{port}");
        let (ready, listen) = (address.clone(), address.clone());
        let plan = Plan {
            server,
            command: Box::new(move || {
                let (arguments, environment) = settings(&listen);
                let mut command = process::command(&program);
                command.args(arguments).envs(environment);
                command
            }),
            ready: Box::new(move || net::http_says(&ready, "/metrics", "_up 1")),
            stop: Signal::TERM,
            deadline: Duration::from_secs(30),
        };
        let process = Process::start(plan, folder)?;
        Ok(Self { host: Host::Child(Box::new(process)), address })
    }
}
