//! Servers at the keyboard: `marea-servers up kafka etcd`, until Ctrl-C.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use clap::{Parser, Subcommand, ValueEnum};
use marea_servers::{Etcd, Kafka, Postgres, Prometheus, RabbitMq, Redis, ServerError, fetch_kafka};

#[derive(Parser)]
#[command(about = "Real servers on free ports of loopback, for tests and for the keyboard")]
struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start servers, say how to reach them, and keep them until Ctrl-C; their data goes with them
    Up {
        /// Which servers
        #[arg(value_enum, required = true)]
        servers: Vec<Kind>,
        /// What Prometheus scrapes
        #[arg(long, default_value = "127.0.0.1:8000", value_name = "HOST:PORT")]
        scrape: String,
    },
    /// Fetch Kafka's jars into the cache, if they are not there
    Fetch,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Kafka,
    Rabbitmq,
    Etcd,
    Postgres,
    Redis,
    Prometheus,
}

/// A server that runs as long as this does, and what to tell about it.
struct Up {
    _server: Box<dyn Send>,
    name: &'static str,
    address: String,
    variable: Option<&'static str>,
    attempt: String,
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Task::Up { servers, scrape } => up(&servers, &scrape),
        Task::Fetch => fetch_kafka().map(|folder| println!("{}", folder.display())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("marea-servers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Ends by Ctrl-C, which ends this process: its servers die with it, and their folders go.
fn up(kinds: &[Kind], scrape: &str) -> Result<(), ServerError> {
    let mut distinct: Vec<Kind> = Vec::new();
    for kind in kinds {
        if !distinct.contains(kind) {
            distinct.push(*kind);
        }
    }
    let (began, mut running) = (Instant::now(), Vec::with_capacity(distinct.len()));
    thread::scope(|scope| {
        let starting: Vec<_> = distinct.iter().map(|kind| scope.spawn(|| start(*kind, scrape))).collect();
        for server in starting {
            let server = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            tell(&server);
            running.push(server);
        }
        Ok::<(), ServerError>(())
    })?;
    eprintln!("==> all up in {:.1} s; Ctrl-C stops them and removes their data", began.elapsed().as_secs_f64());
    loop {
        thread::park();
    }
}

fn tell(server: &Up) {
    let mut text = format!("{:<10} {}\n", server.name, server.address);
    if let Some(variable) = server.variable {
        text.push_str(&format!("{:10}   for tests  export {variable}={}\n", "", server.address));
    }
    text.push_str(&format!("{:10}   try        {}\n", "", server.attempt));
    // Nobody reads any more: then nobody needs to be told.
    let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
}

fn start(kind: Kind, scrape: &str) -> Result<Up, ServerError> {
    Ok(match kind {
        Kind::Kafka => {
            let server = Kafka::start()?;
            server.create_topic("marea.ticks.v1", 4, &[])?;
            server.create_topic("marea.accounts.v1", 1, &[])?;
            let address = server.brokers();
            let attempt = format!("kcat -b {address} -L      (topics marea.ticks.v1 and marea.accounts.v1 are there)");
            Up { _server: Box::new(server), name: "kafka", address, variable: Some("MAREA_TEST_KAFKA"), attempt }
        }
        Kind::Rabbitmq => {
            let server = RabbitMq::start()?;
            let (address, page) = (server.url(), server.management());
            let port = page.rsplit(':').next().unwrap_or_default();
            let attempt = format!(
                "rabbitmqadmin -H 127.0.0.1 -P {port} -u test -p test list queues      (or the page {page}, test, test)\n\
                 {:10}   beside it  export MAREA_TEST_RABBITMQ_MANAGEMENT={page}",
                ""
            );
            Up { _server: Box::new(server), name: "rabbitmq", address, variable: Some("MAREA_TEST_RABBITMQ"), attempt }
        }
        Kind::Etcd => {
            let server = Etcd::start()?;
            let address = server.endpoint();
            let attempt = format!("ETCDCTL_API=3 etcdctl --endpoints {address} get --prefix /");
            Up { _server: Box::new(server), name: "etcd", address, variable: Some("MAREA_TEST_ETCD"), attempt }
        }
        Kind::Postgres => {
            let server = Postgres::start()?;
            let address = server.url();
            let attempt = format!("psql {address}");
            Up { _server: Box::new(server), name: "postgres", address, variable: Some("MAREA_TEST_POSTGRES"), attempt }
        }
        Kind::Redis => {
            let server = Redis::start()?;
            let address = server.url();
            let attempt = format!("redis-cli -u {address} ping");
            Up { _server: Box::new(server), name: "redis", address, variable: Some("MAREA_TEST_REDIS"), attempt }
        }
        Kind::Prometheus => {
            let server = Prometheus::start(&[scrape])?;
            let address = server.url();
            let attempt = format!("curl {address}/api/v1/targets      (it scrapes {scrape})");
            Up { _server: Box::new(server), name: "prometheus", address, variable: None, attempt }
        }
    })
}
