//! Redis, as a cache: nothing on disk.

use std::time::Duration;

use rustix::process::Signal;

use crate::folder::Folder;
use crate::process::{self, Host, Plan, Process, require};
use crate::{ServerError, net, process_methods};

const SERVER: &str = "redis";

/// A Redis server. It writes nothing to disk: killed or stopped, it has forgotten everything.
pub struct Redis {
    host: Host,
    url: String,
}

process_methods!(Redis);

impl Redis {
    /// Starts a server.
    pub fn start() -> Result<Self, ServerError> {
        let program = require(SERVER, "redis-server", "redis-server", &[])?;
        let folder = Folder::new(SERVER)?;
        let [port] = net::free_ports()?;
        let address = format!("127.0.0.1:{port}");
        let (ready, data) = (address.clone(), folder.path().to_path_buf());
        let plan = Plan {
            server: SERVER,
            command: Box::new(move || {
                let mut command = process::command(&program);
                command.arg("--port").arg(port.to_string()).args(["--bind", "127.0.0.1", "--dir"]).arg(&data);
                command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
                command
            }),
            ready: Box::new(move || net::greet(&ready, b"PING\r\n").is_ok_and(|answer| answer.starts_with(b"+PONG"))),
            stop: Signal::TERM,
            deadline: Duration::from_secs(30),
        };
        let process = Process::start(plan, folder)?;
        Ok(Self { host: Host::Child(Box::new(process)), url: format!("redis://{address}/") })
    }

    pub(crate) fn external(url: String, variable: &'static str) -> Self {
        Self { host: Host::External { server: SERVER, variable }, url }
    }

    /// `redis://127.0.0.1:port/`.
    pub fn url(&self) -> String {
        self.url.clone()
    }
}
