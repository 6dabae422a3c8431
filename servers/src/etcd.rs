//! etcd: one node, or a cluster of some.

use std::time::Duration;

use rustix::process::Signal;

use crate::folder::Folder;
use crate::process::{self, Host, Plan, Process, require};
use crate::{ServerError, net, process_methods};

const SERVER: &str = "etcd";
const DEADLINE: Duration = Duration::from_secs(60);

/// A node of etcd.
pub struct Etcd {
    host: Host,
    endpoint: String,
}

process_methods!(Etcd);

impl Etcd {
    /// Starts a cluster of one node.
    pub fn start() -> Result<Self, ServerError> {
        let mut nodes = Self::cluster(1)?;
        nodes.pop().ok_or(ServerError::NotRunning { server: SERVER })
    }

    /// Starts a cluster of `size` nodes; returns when all of them see a leader.
    pub fn cluster(size: usize) -> Result<Vec<Self>, ServerError> {
        let mut ports = Vec::with_capacity(size);
        while ports.len() < size {
            let pair: [u16; 2] = net::free_ports()?;
            // Nothing holds the ports of the nodes that do not run yet.
            if !ports.iter().flatten().any(|port| pair.contains(port)) {
                ports.push(pair);
            }
        }
        let peers: Vec<String> =
            ports.iter().enumerate().map(|(n, [_, peer])| format!("n{n}=http://127.0.0.1:{peer}")).collect();
        let peers = peers.join(",");
        let nodes = ports.iter().enumerate().map(|(n, ports)| Self::launch(n, *ports, &peers, size));
        let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        for node in &nodes {
            node.host.process()?.wait_ready()?;
        }
        Ok(nodes)
    }

    pub(crate) fn external(endpoint: String, variable: &'static str) -> Self {
        Self { host: Host::External { server: SERVER, variable }, endpoint }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// Whether this node leads its cluster, as it sees it itself.
    pub fn is_leader(&self) -> Result<bool, ServerError> {
        let address = self.endpoint.trim_start_matches("http://");
        let failed = |message: String| ServerError::Failed {
            server: SERVER,
            what: format!("the status of {}", self.endpoint),
            message,
        };
        let status = net::http(address, "POST", "/v3/maintenance/status", None, "{}");
        let (code, body) = status.map_err(|error| failed(error.to_string()))?;
        match (text_field(&body, "member_id"), text_field(&body, "leader")) {
            (Some(member), Some(leader)) if code == 200 => Ok(member == leader),
            _ => Err(failed(format!("HTTP {code} {body}"))),
        }
    }

    fn launch(n: usize, [client, peer]: [u16; 2], peers: &str, size: usize) -> Result<Self, ServerError> {
        let program = require(SERVER, "etcd", "etcd-server", &[])?;
        let folder = Folder::new(SERVER)?;
        let address = format!("127.0.0.1:{client}");
        let endpoint = format!("http://{address}");
        let peer = format!("http://127.0.0.1:{peer}");
        // A node alone elects itself after one timeout; several on a busy machine must not lose their leader for nothing.
        let (heartbeat_ms, election_ms) = if size == 1 { ("50", "250") } else { ("100", "1000") };
        let (data, url, peers) = (folder.join("data"), endpoint.clone(), peers.to_string());
        let plan = Plan {
            server: SERVER,
            command: Box::new(move || {
                let mut command = process::command(&program);
                command.arg("--name").arg(format!("n{n}")).arg("--data-dir").arg(&data);
                command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
                command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
                command.args(["--initial-cluster", &peers, "--logger", "zap", "--log-level", "warn"]);
                command.args(["--heartbeat-interval", heartbeat_ms, "--election-timeout", election_ms]);
                command
            }),
            ready: Box::new(move || net::http_says(&address, "/health", "true")),
            stop: Signal::TERM,
            deadline: DEADLINE,
        };
        let process = Process::launch(plan, folder)?;
        Ok(Self { host: Host::Child(Box::new(process)), endpoint })
    }
}

/// A text field of a JSON object; etcd writes its 64-bit numbers as text.
fn text_field<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = json.split_once(&format!("\"{name}\":\""))?;
    rest.split('"').next()
}
