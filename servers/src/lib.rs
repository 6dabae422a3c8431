//! Real servers as child processes, for tests and for a developer at the keyboard.
//!
//! Each server listens on free ports of loopback, keeps its data and its log in a temporary folder, and is ready when
//! `start` returns. It can be killed, paused, resumed, stopped, and started again on the same ports and data; dropped, it
//! is killed and its folder removed. Nothing makes it faster at the price of data that a killed server would keep.
//!
//! A server never outlives the process that started it, however that ends (on Linux; elsewhere only if it is dropped).
//!
//! [`shared`] has one instance of each for a test binary. Where the servers cannot be installed, environment variables
//! name some that run already.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod certificates;
mod etcd;
mod exporter;
mod folder;
mod jars;
mod kafka;
mod net;
mod postgres;
mod process;
mod prometheus;
mod proxy;
mod rabbitmq;
mod redis;
pub mod relay;
pub mod shared;

use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

pub use certificates::Certificates;
pub use etcd::Etcd;
pub use exporter::Exporter;
pub use jars::{KAFKA_VERSION, fetch as fetch_kafka};
pub use kafka::Kafka;
pub use postgres::Postgres;
pub use prometheus::Prometheus;
pub use proxy::Proxy;
pub use rabbitmq::RabbitMq;
pub use redis::Redis;

/// Why a server could not be started, or not be dealt with as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A program is not on this machine.
    #[error("{server}: there is no program `{program}` here; `./dev setup` installs it (Debian's package {package})")]
    Missing {
        /// The server that needs it.
        server: &'static str,
        /// The program.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// A folder or a file of a server could not be made.
    #[error("{server}: {path}: {source}")]
    File {
        /// The server whose file it is.
        server: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// No range of ports is free.
    #[error("no free port on loopback: {0}")]
    Ports(io::Error),
    /// A process could not be started.
    #[error("{server}: cannot start its process: {source}")]
    Spawn {
        /// The server.
        server: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The server ended before it was ready.
    #[error("{server} ended before it was ready ({status}); its log, {log}, ends so:\n{tail}", log = log.display())]
    Ended {
        /// The server.
        server: &'static str,
        /// How it ended.
        status: String,
        /// Its log. The file goes with its folder.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// The server runs but was not ready in time.
    #[error("{server} was not ready after {seconds} s; its log, {log}, ends so:\n{tail}", log = log.display())]
    Late {
        /// The server.
        server: &'static str,
        /// How long it was waited for.
        seconds: u64,
        /// Its log. The file goes with its folder.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A client program or a request failed.
    #[error("{server}: {what}: {message}")]
    Failed {
        /// The server.
        server: &'static str,
        /// What was tried.
        what: String,
        /// What came of it.
        message: String,
    },
    /// The server is not a child of this process.
    #[error("{server} was not started here but named by {variable}: it cannot be killed, paused, stopped or restarted")]
    External {
        /// The server.
        server: &'static str,
        /// The environment variable that named it.
        variable: &'static str,
    },
    /// The server does not run.
    #[error("{server} does not run: restart() starts it again")]
    NotRunning {
        /// The server.
        server: &'static str,
    },
    /// The server runs already.
    #[error("{server} runs already: kill() or stop() it before restart()")]
    Running {
        /// The server.
        server: &'static str,
    },
}

/// Waits until `done` says so, asking every 10 ms.
///
/// # Panics
///
/// After `deadline`, with `what` was waited for: it is for tests.
#[track_caller]
pub fn wait_until(deadline: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < deadline, "waited {} s in vain: {what}", deadline.as_secs_f64());
        thread::sleep(Duration::from_millis(10));
    }
}

/// What every server can do, given to the type that wraps it.
macro_rules! process_methods {
    ($server:ty) => {
        impl $server {
            /// Its process id; none while it does not run, or if it was not started here.
            pub fn pid(&self) -> Option<u32> {
                self.host.process().ok()?.pid()
            }

            /// SIGKILL to it and its children, and waits until they are gone. Ports and data stay for [`Self::restart`].
            pub fn kill(&self) -> Result<(), $crate::ServerError> {
                self.host.process()?.kill()
            }

            /// SIGSTOP to it and its children: its connections stay open, and nothing answers.
            pub fn pause(&self) -> Result<(), $crate::ServerError> {
                self.host.process()?.pause()
            }

            /// SIGCONT, after [`Self::pause`].
            pub fn resume(&self) -> Result<(), $crate::ServerError> {
                self.host.process()?.resume()
            }

            /// Asks it to shut down as an operator would, and waits until it is gone; after 30 s kills it.
            pub fn stop(&self) -> Result<(), $crate::ServerError> {
                self.host.process()?.stop()
            }

            /// Starts it again on the same ports and data, after [`Self::kill`] or [`Self::stop`]; returns when it is ready.
            pub fn restart(&self) -> Result<(), $crate::ServerError> {
                self.host.process()?.restart()
            }

            /// Its log, if it was started here.
            pub fn log(&self) -> Option<&std::path::Path> {
                self.host.process().ok().map($crate::process::Process::log)
            }
        }
    };
}
pub(crate) use process_methods;
