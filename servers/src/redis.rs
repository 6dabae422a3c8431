//! Redis, as a cache: nothing on disk. One server, replicas of it and a Sentinel that watches them, or a Cluster.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::certificates::Certificates;
use crate::folder::Folder;
use crate::process::{self, Host, Plan, Process, require};
use crate::{ServerError, net, process_methods};

const SERVER: &str = "redis";
/// What a Sentinel calls the servers that it watches.
const SERVICE: &str = "desk";
const DEADLINE: Duration = Duration::from_secs(30);

/// A Redis server, or a Sentinel. It writes nothing to disk: killed or stopped, it has forgotten everything.
pub struct Redis {
    host: Host,
    port: u16,
    url: String,
}

process_methods!(Redis);

impl Redis {
    /// Starts a server.
    pub fn start() -> Result<Self, ServerError> {
        let [port] = net::free_ports()?;
        Self::launch(port, Folder::new(SERVER)?, Vec::new())
    }

    /// Starts a server that repeats another one.
    pub fn replica(&self) -> Result<Self, ServerError> {
        self.host.process()?;
        let [port] = net::free_ports()?;
        Self::launch(port, Folder::new(SERVER)?, words(&["--replicaof", "127.0.0.1", &self.port.to_string()]))
    }

    /// Starts a server that wants a password. It can also be reached by TLS: gives that URL, with the password.
    pub fn secure(certificates: &Certificates, password: &str) -> Result<(Self, String), ServerError> {
        let [port, tls] = net::free_ports()?;
        let file = |name| certificates.path(name).to_string_lossy().into_owned();
        let (cert, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
        let by_tls = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
        let who = ["--tls-port", &tls.to_string(), "--tls-auth-clients", "no", "--requirepass", password];
        let server = Self::launch(port, Folder::new(SERVER)?, words(&[&by_tls[..], &who].concat()))?;
        let url = format!("redis://:{password}@127.0.0.1:{port}/");
        Ok((Self { url, ..server }, format!("rediss://:{password}@127.0.0.1:{tls}/")))
    }

    /// Starts a Sentinel that watches this server and its replicas; returns when it knows so many. Its URL leads to whichever of
    /// them is the master.
    pub fn sentinel(&self, replicas: usize) -> Result<Self, ServerError> {
        self.host.process()?;
        let [port] = net::free_ports()?;
        let folder = Folder::new(SERVER)?;
        let master = self.port;
        let text = format!(
            "sentinel monitor {SERVICE} 127.0.0.1 {master} 1\nsentinel down-after-milliseconds {SERVICE} 2000\n\
             sentinel failover-timeout {SERVICE} 3000\n"
        );
        folder.write(SERVER, "sentinel.conf", &text)?;
        let file = folder.join("sentinel.conf").to_string_lossy().into_owned();
        let server = Self::launch(port, folder, vec![file, "--sentinel".to_owned()])?;
        let cli = require(SERVER, "redis-cli", "redis-tools", &[])?;
        wait_for("a Sentinel that knows all replicas", || {
            let mut ask = Command::new(&cli);
            ask.args(["-u", &server.url, "SENTINEL", "REPLICAS", SERVICE]);
            let known = process::run(SERVER, "SENTINEL REPLICAS", ask).unwrap_or_default();
            known.lines().filter(|line| *line == "runid").count() >= replicas
        })?;
        let url = format!("redis+sentinel://127.0.0.1:{port}/{SERVICE}");
        Ok(Self { url, ..server })
    }

    /// Starts a Cluster of `size` masters; returns when all of them say that it is well.
    pub fn cluster(size: usize) -> Result<Vec<Self>, ServerError> {
        let launch = |_| {
            let [port, bus] = net::free_ports()?;
            let bus = bus.to_string();
            Self::launch(port, Folder::new(SERVER)?, words(&["--cluster-enabled", "yes", "--cluster-port", &bus]))
        };
        let nodes = (0..size).map(launch).collect::<Result<Vec<_>, _>>()?;
        let cli = require(SERVER, "redis-cli", "redis-tools", &[])?;
        let mut create = Command::new(&cli);
        create.args(["--cluster", "create"]).args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
        create.args(["--cluster-replicas", "0", "--cluster-yes"]);
        process::run(SERVER, "making a Cluster", create)?;
        let is_well = |node: &Self| {
            let mut info = Command::new(&cli);
            info.args(["-u", &node.url, "CLUSTER", "INFO"]);
            process::run(SERVER, "CLUSTER INFO", info).is_ok_and(|info| info.contains("cluster_state:ok"))
        };
        wait_for("a Cluster whose nodes agree", || nodes.iter().all(is_well))?;
        Ok(nodes)
    }

    fn launch(port: u16, folder: Folder, arguments: Vec<String>) -> Result<Self, ServerError> {
        let program = require(SERVER, "redis-server", "redis-server", &[])?;
        let address = format!("127.0.0.1:{port}");
        let (ready, data) = (address.clone(), folder.path().to_path_buf());
        let plan = Plan {
            server: SERVER,
            command: Box::new(move || {
                let mut command = process::command(&program);
                // A configuration file comes first.
                command.args(&arguments).arg("--port").arg(port.to_string());
                command.args(["--bind", "127.0.0.1", "--dir"]).arg(&data).args(["--daemonize", "no"]);
                if !arguments.iter().any(|argument| argument == "--sentinel") {
                    command.args(["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]);
                }
                command
            }),
            ready: Box::new(move || {
                let answer = net::greet(&ready, b"PING\r\n");
                answer.is_ok_and(|answer| answer.starts_with(b"+PONG") || answer.starts_with(b"-NOAUTH"))
            }),
            stop: Signal::TERM,
            deadline: DEADLINE,
        };
        let process = Process::start(plan, folder)?;
        Ok(Self { host: Host::Child(Box::new(process)), port, url: format!("redis://{address}/") })
    }

    pub(crate) fn external(url: String, variable: &'static str) -> Self {
        Self { host: Host::External { server: SERVER, variable }, port: 0, url }
    }

    /// `redis://127.0.0.1:port/`, with the password if it wants one.
    pub fn url(&self) -> String {
        self.url.clone()
    }
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) -> Result<(), ServerError> {
    let began = Instant::now();
    while !is_so() {
        if began.elapsed() >= DEADLINE {
            let (what, message) = (what.to_owned(), format!("not after {DEADLINE:?}"));
            return Err(ServerError::Failed { server: SERVER, what, message });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
