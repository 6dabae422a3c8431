//! RabbitMQ with streams and the management interface, and its own port mapper.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use rustix::process::Signal;

use crate::folder::Folder;
use crate::process::{self, Host, Plan, Process, require};
use crate::{Certificates, ServerError, net, process_methods};

const SERVER: &str = "rabbitmq";
const EPMD: &str = "rabbitmq's epmd";
const PACKAGE: &str = "rabbitmq-server";
const DEADLINE: Duration = Duration::from_secs(180);
const USER: &str = "test";

/// A RabbitMQ node. User and password are `test`.
pub struct RabbitMq {
    host: Host,
    url: String,
    management: String,
    login: (String, String),
    /// The port for TLS.
    tls: Option<u16>,
    // Erlang nodes find each other by a daemon, which would otherwise be started by the first node and stay.
    _epmd: Option<Process>,
}

process_methods!(RabbitMq);

impl RabbitMq {
    /// Starts a node.
    pub fn start() -> Result<Self, ServerError> {
        Self::launch(None)
    }

    /// Starts a node that has TLS as well, and wants a certificate of its clients: see [`RabbitMq::secure`].
    pub fn start_secure(certificates: &Certificates) -> Result<Self, ServerError> {
        Self::launch(Some(certificates))
    }

    fn launch(certificates: Option<&Certificates>) -> Result<Self, ServerError> {
        // Debian's script of this name on the path changes the user; this one does not.
        let program = require(SERVER, "rabbitmq-server", PACKAGE, &["/usr/lib/rabbitmq/bin"])?;
        let epmd_program = require(SERVER, "epmd", PACKAGE, &[])?;
        let folder = Folder::new(SERVER)?;
        let [amqp, management, streams, distribution, epmd_port, tls] = net::free_ports()?;
        let address = format!("127.0.0.1:{amqp}");
        let ui = format!("127.0.0.1:{management}");

        folder.write(SERVER, "enabled_plugins", "[rabbitmq_management,rabbitmq_stream].\n")?;
        let mut configuration = configuration(amqp, management, streams);
        if let Some(certificates) = certificates {
            configuration += &security(tls, certificates);
        }
        folder.write(SERVER, "rabbitmq.conf", &configuration)?;
        write_cookie(&folder)?;

        let epmd_plan = Plan {
            server: EPMD,
            command: Box::new(move || {
                let mut command = process::command(&epmd_program);
                command.arg("-port").arg(epmd_port.to_string()).args(["-address", "127.0.0.1"]);
                command
            }),
            ready: Box::new(move || net::connect(&format!("127.0.0.1:{epmd_port}"), Duration::from_secs(1)).is_ok()),
            stop: Signal::TERM,
            deadline: Duration::from_secs(30),
        };
        let epmd = Process::start(epmd_plan, Folder::new("epmd")?)?;

        let home = folder.path().to_path_buf();
        let (ready_amqp, ready_ui) = (address.clone(), ui.clone());
        let plan = Plan {
            server: SERVER,
            command: Box::new(move || {
                let mut command = process::command(&program);
                let within = |name: &str| home.join(name);
                command.env("HOME", &home).env("RABBITMQ_BASE", &home);
                command.env("ERL_EPMD_PORT", epmd_port.to_string()).env("ERL_EPMD_ADDRESS", "127.0.0.1");
                command.env("RABBITMQ_NODENAME", format!("marea{amqp}@localhost"));
                command.env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1").env("RABBITMQ_NODE_PORT", amqp.to_string());
                command.env("RABBITMQ_DIST_PORT", distribution.to_string());
                command.env("RABBITMQ_MNESIA_BASE", within("mnesia"));
                command.env("RABBITMQ_LOG_BASE", within("log")).env("RABBITMQ_LOGS", "-");
                command.env("RABBITMQ_CONFIG_FILE", within("rabbitmq.conf"));
                command.env("RABBITMQ_ADVANCED_CONFIG_FILE", within("advanced.config"));
                command.env("RABBITMQ_GENERATED_CONFIG_DIR", within("config"));
                command.env("RABBITMQ_ENABLED_PLUGINS_FILE", within("enabled_plugins"));
                command.env("RABBITMQ_CONF_ENV_FILE", "/dev/null").env("RABBITMQ_PID_FILE", within("pid"));
                // The script then becomes the server instead of waiting for it.
                command.env("RUNNING_UNDER_SYSTEMD", "1");
                command.env(
                    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                    "-noinput -kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
                );
                command
            }),
            ready: Box::new(move || {
                net::greet(&ready_amqp, b"AMQP\0\0\x09\x01").is_ok_and(|answer| !answer.is_empty())
                    && net::http(&ready_ui, "GET", "/api/vhosts", Some((USER, USER)), "")
                        .is_ok_and(|(status, _)| status == 200)
            }),
            stop: Signal::TERM,
            deadline: DEADLINE,
        };
        let process = Process::start(plan, folder)?;
        Ok(Self {
            host: Host::Child(Box::new(process)),
            url: format!("amqp://{USER}:{USER}@{address}/%2f"),
            management: format!("http://{ui}"),
            login: (USER.into(), USER.into()),
            tls: certificates.is_some().then_some(tls),
            _epmd: Some(epmd),
        })
    }

    /// Login and host are taken from the address; the management interface is looked for at its usual port.
    pub(crate) fn external(url: String, management: Option<String>, variable: &'static str) -> Self {
        let authority = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        let authority = authority.split('/').next().unwrap_or_default();
        let (login, host) = authority.rsplit_once('@').unwrap_or(("guest:guest", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
        Self {
            host: Host::External { server: SERVER, variable },
            management: management.unwrap_or_else(|| format!("http://{host}:15672")),
            login: (user.to_string(), password.to_string()),
            url,
            tls: None,
            _epmd: None,
        }
    }

    /// The default virtual host: `amqp://test:test@127.0.0.1:port/%2f`.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The address of a virtual host by TLS, if it was [started so](RabbitMq::start_secure).
    pub fn secure(&self, vhost: &str) -> Option<String> {
        let (user, password) = &self.login;
        Some(format!("amqps://{user}:{password}@127.0.0.1:{}/{}", self.tls?, net::percent(vhost)))
    }

    /// The management interface: `http://127.0.0.1:port`.
    pub fn management(&self) -> String {
        self.management.clone()
    }

    /// Creates a virtual host, empty: one of this name is deleted before. Gives its address.
    ///
    /// # Panics
    ///
    /// If the management interface refuses or does not answer: it is for tests.
    pub fn vhost(&self, name: &str) -> String {
        self.create_vhost(name).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Publishes a JSON text to a queue or stream by the management interface, without an id; `vhost` as in its address.
    ///
    /// # Panics
    ///
    /// If the management interface refuses, or there is no such queue: it is for tests.
    pub fn publish(&self, vhost: &str, queue: &str, json: &str) {
        let escaped = json.replace('\\', "\\\\").replace('"', "\\\"");
        let body = format!(
            "{{\"properties\":{{\"content_type\":\"application/json\",\"delivery_mode\":2}},\"routing_key\":\"{queue}\",\
             \"payload\":\"{escaped}\",\"payload_encoding\":\"string\"}}"
        );
        let answer = self.manage("POST", &format!("/api/exchanges/{}/amq.default/publish", net::percent(vhost)), &body);
        let answer = answer.unwrap_or_else(|error| panic!("{error}"));
        assert!(answer.contains("\"routed\":true"), "{queue}: {answer}");
    }

    fn create_vhost(&self, name: &str) -> Result<String, ServerError> {
        let vhost = net::percent(name);
        let user = net::percent(&self.login.0);
        let rights = r#"{"configure":".*","write":".*","read":".*"}"#;
        self.manage("DELETE", &format!("/api/vhosts/{vhost}"), "")?;
        self.manage("PUT", &format!("/api/vhosts/{vhost}"), "{}")?;
        self.manage("PUT", &format!("/api/permissions/{vhost}/{user}"), rights)?;
        let (scheme, rest) = self.url.split_once("://").unwrap_or(("amqp", &self.url));
        let authority = rest.split('/').next().unwrap_or_default();
        Ok(format!("{scheme}://{authority}/{vhost}"))
    }

    fn manage(&self, method: &str, path: &str, body: &str) -> Result<String, ServerError> {
        let failed = |message: String| ServerError::Failed {
            server: SERVER,
            what: format!("{method} {}{path}", self.management),
            message,
        };
        let address = self.management.trim_start_matches("http://");
        let login = (self.login.0.as_str(), self.login.1.as_str());
        let answer = net::http(address, method, path, Some(login), body);
        match answer.map_err(|error| failed(error.to_string()))? {
            (200..300, body) => Ok(body),
            (404, body) if method == "DELETE" => Ok(body),
            (status, body) => Err(failed(format!("HTTP {status} {body}"))),
        }
    }
}

fn configuration(amqp: u16, management: u16, streams: u16) -> String {
    format!(
        "\
listeners.tcp.1 = 127.0.0.1:{amqp}
management.tcp.ip = 127.0.0.1
management.tcp.port = {management}
stream.listeners.tcp.1 = 127.0.0.1:{streams}
log.console = true
log.file = false
vm_memory_high_watermark.absolute = 512MB
disk_free_limit.absolute = 50MB
default_user = {USER}
default_pass = {USER}
"
    )
}

fn security(port: u16, certificates: &Certificates) -> String {
    let path = |file: &str| certificates.path(file).display().to_string();
    format!(
        "\
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {ca}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
",
        ca = path("ca.pem"),
        certificate = path("server.pem"),
        key = path("server.key")
    )
}

/// Erlang refuses a cookie that others may read.
fn write_cookie(folder: &Folder) -> Result<(), ServerError> {
    let path = folder.join(".erlang.cookie");
    let file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path);
    let written = file.and_then(|mut file| write!(file, "x{:016x}", net::random()));
    written.map_err(|source| ServerError::File { server: SERVER, path, source })
}

#[cfg(test)]
mod tests {
    use super::RabbitMq;
    use crate::ServerError;

    #[test]
    fn a_named_server_is_taken_apart_and_never_killed() {
        for (url, management, login) in [
            ("amqp://a:b@host:1/%2f", "http://host:15672", ("a", "b")),
            ("amqp://host", "http://host:15672", ("guest", "guest")),
            ("amqps://a@host/x", "http://host:15672", ("a", "")),
        ] {
            let named = RabbitMq::external(url.into(), None, "MAREA_TEST_RABBITMQ");
            assert_eq!((named.url().as_str(), named.management().as_str()), (url, management));
            assert_eq!((named.login.0.as_str(), named.login.1.as_str()), login);
            assert!(matches!(named.kill(), Err(ServerError::External { variable: "MAREA_TEST_RABBITMQ", .. })));
            assert!(named.pid().is_none());
        }
    }
}
