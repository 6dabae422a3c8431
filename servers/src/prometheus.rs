//! Prometheus, scraping every second.

use std::time::Duration;

use rustix::process::Signal;

use crate::folder::Folder;
use crate::process::{self, Host, Plan, Process, require};
use crate::{ServerError, net, process_methods};

const SERVER: &str = "prometheus";

/// A Prometheus server.
pub struct Prometheus {
    host: Host,
    url: String,
}

process_methods!(Prometheus);

impl Prometheus {
    /// Starts a server that scrapes `/metrics` of each target (`host:port`).
    pub fn start(targets: &[&str]) -> Result<Self, ServerError> {
        let targets: Vec<String> = targets.iter().map(|target| format!("'{target}'")).collect();
        Self::start_with(&format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             scrape_configs: [{{job_name: marea, static_configs: [{{targets: [{}]}}]}}]\n",
            targets.join(", ")
        ))
    }

    /// Starts a server with a whole configuration file of one's own.
    pub fn start_with(configuration: &str) -> Result<Self, ServerError> {
        let program = require(SERVER, "prometheus", "prometheus", &[])?;
        let folder = Folder::new(SERVER)?;
        let [port] = net::free_ports()?;
        let address = format!("127.0.0.1:{port}");
        let file = folder.write(SERVER, "prometheus.yml", configuration)?;
        let (ready, data, listen) = (address.clone(), folder.join("data"), address.clone());
        let plan = Plan {
            server: SERVER,
            command: Box::new(move || {
                let mut command = process::command(&program);
                command.arg(format!("--config.file={}", file.display()));
                command.arg(format!("--storage.tsdb.path={}", data.display()));
                command.arg(format!("--web.listen-address={listen}")).arg("--log.level=warn");
                command
            }),
            ready: Box::new(move || net::http_says(&ready, "/-/ready", "")),
            stop: Signal::TERM,
            deadline: Duration::from_secs(60),
        };
        let process = Process::start(plan, folder)?;
        Ok(Self { host: Host::Child(Box::new(process)), url: format!("http://{address}") })
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        self.url.clone()
    }
}
