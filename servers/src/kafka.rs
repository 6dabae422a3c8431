//! Apache Kafka: one node that is broker and controller, without ZooKeeper.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::folder::Folder;
use crate::process::{self, Host, Plan, Process, require};
use crate::{Certificates, ServerError, jars, net, process_methods};

const SERVER: &str = "kafka";
const DEADLINE: Duration = Duration::from_secs(90);
const ANSWER: Duration = Duration::from_secs(10);

// Keys and versions of the protocol: old ones, which need no tagged fields and which every broker of today speaks.
const METADATA: (i16, i16) = (3, 4);
const CREATE_TOPICS: (i16, i16) = (19, 2);

/// A Kafka broker with transactions. Topics are not created by their use; retention is looked at every second.
pub struct Kafka {
    host: Host,
    address: String,
    /// Other ways to it, and their ports.
    secure: Vec<(&'static str, u16)>,
}

process_methods!(Kafka);

impl Kafka {
    /// Starts a broker; the first on a machine fetches Kafka's jars.
    pub fn start() -> Result<Self, ServerError> {
        let jars = jars::fetch()?;
        let class_archive = jars::archive(&jars).map(|archive| format!("-XX:SharedArchiveFile={}", archive.display()));
        Self::start_from(&jars, class_archive.as_slice(), None)
    }

    /// The same with more ways to it: see [`Kafka::secure`].
    pub fn start_secure(certificates: &Certificates) -> Result<Self, ServerError> {
        Self::start_from(&jars::fetch()?, &[], Some(certificates))
    }

    pub(crate) fn external(address: String, variable: &'static str) -> Self {
        Self { host: Host::External { server: SERVER, variable }, address, secure: Vec::new() }
    }

    /// `bootstrap.servers` for a client: `127.0.0.1:port`.
    pub fn brokers(&self) -> String {
        self.address.clone()
    }

    /// `bootstrap.servers` of a way that [`Kafka::start_secure`] has: `TLS` wants a certificate of ours, `SCRAM` takes TLS and
    /// SCRAM-SHA-512 with the user [`Kafka::USER`], `EXPIRED` shows a certificate that has expired.
    pub fn secure(&self, way: &str) -> Option<String> {
        self.secure.iter().find(|(name, _)| *name == way).map(|(_, port)| format!("127.0.0.1:{port}"))
    }

    /// User and password of the way `SCRAM`.
    pub const USER: (&str, &str) = ("marea", "hush-hush");

    /// Creates a topic with its settings (`retention.ms` and the like).
    pub fn create_topic(&self, name: &str, partitions: u32, settings: &[(&str, &str)]) -> Result<(), ServerError> {
        let failed =
            |message: String| ServerError::Failed { server: SERVER, what: format!("creating topic {name}"), message };
        let answer = create_topic(&self.address, name, partitions, settings).map_err(|e| failed(e.to_string()))?;
        match answer {
            (0, _) => Ok(()),
            (code, message) => Err(failed(format!("error {code} {message}"))),
        }
    }

    fn start_from(
        jars: &Path,
        java_flags: &[String],
        certificates: Option<&Certificates>,
    ) -> Result<Self, ServerError> {
        let java = java()?;
        let folder = Folder::new(SERVER)?;
        let [port, controller, tls, scram, expired] = net::free_ports()?;
        let mut secure = Vec::new();
        if certificates.is_some() {
            secure.extend([("TLS", tls), ("SCRAM", scram), ("EXPIRED", expired)]);
        }
        let address = format!("127.0.0.1:{port}");
        let mut properties = properties(&address, controller, &folder.join("data"), &secure);
        if let Some(certificates) = certificates {
            properties += &security(certificates);
        }
        let properties = folder.write(SERVER, "server.properties", &properties)?;

        let jvm = {
            let (jars, flags) = (jars.to_path_buf(), java_flags.to_vec());
            move || jvm(&java, &jars, &flags)
        };
        let mut format = jvm();
        format.args(["kafka.tools.StorageTool", "format", "--cluster-id", &cluster_id(), "--config"]).arg(&properties);
        if certificates.is_some() {
            format.args(["--add-scram", &format!("SCRAM-SHA-512=[name={},password={}]", Self::USER.0, Self::USER.1)]);
        }
        process::run(SERVER, "formatting its folder", format)?;

        let ready = address.clone();
        let plan = Plan {
            server: SERVER,
            command: Box::new(move || {
                let mut command = jvm();
                command.arg("kafka.Kafka").arg(&properties);
                command
            }),
            ready: Box::new(move || has_broker(&ready).unwrap_or(false)),
            stop: Signal::TERM,
            deadline: DEADLINE,
        };
        let process = Process::start(plan, folder)?;
        Ok(Self { host: Host::Child(Box::new(process)), address, secure })
    }
}

/// Starts and stops Kafka once, with an archive of the classes that it loads as the result.
pub(crate) fn record_classes(jars: &Path, archive: &Path) -> Result<(), ServerError> {
    let kafka = Kafka::start_from(jars, &[format!("-XX:ArchiveClassesAtExit={}", archive.display())], None)?;
    kafka.create_topic("classes", 1, &[])?;
    kafka.stop()
}

fn java() -> Result<PathBuf, ServerError> {
    let home = std::env::var("JAVA_HOME").map(|home| format!("{home}/bin")).unwrap_or_default();
    require(
        SERVER,
        "java",
        "default-jre-headless",
        &[&home, "/opt/homebrew/opt/openjdk/bin", "/usr/local/opt/openjdk/bin"],
    )
}

fn jvm(java: &Path, jars: &Path, flags: &[String]) -> Command {
    let mut command = process::command(java);
    // Started often and for a short time: the quick compiler alone, and few threads.
    command.args(["-Xms64m", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"]);
    command.args(["-Xshare:auto", "-Xlog:disable", "-Dorg.slf4j.simpleLogger.showDateTime=true"]);
    command.args(flags).env("CLASSPATH", jars.join("*"));
    command
}

/// 16 random bytes in Kafka's notation. The last character carries two bits, hence the fixed one.
fn cluster_id() -> String {
    format!("{:016x}{:05x}A", net::random(), net::random() & 0xf_ffff)
}

/// After SIGKILL the controller lets the broker in again only when the old one's session has ended: hence the short one.
fn properties(address: &str, controller: u16, data: &Path, secure: &[(&str, u16)]) -> String {
    let ways: String = secure.iter().map(|(name, port)| format!(",{name}://127.0.0.1:{port}")).collect();
    format!(
        "\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://{address},CONTROLLER://127.0.0.1:{controller}{ways}
advertised.listeners=PLAINTEXT://{address}{ways}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,SCRAM:SASL_SSL,EXPIRED:SSL
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
default.replication.factor=1
min.insync.replicas=1
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
log.initial.task.delay.ms=0
log.retention.check.interval.ms=1000
log.segment.delete.delay.ms=100
log.cleaner.dedupe.buffer.size=4194304
message.max.bytes=20971520
replica.fetch.max.bytes=20971520
num.network.threads=2
num.io.threads=4
",
        data = data.display()
    )
}

/// What the secure ways need.
fn security(certificates: &Certificates) -> String {
    let of = |way: &str, certificate: &str| {
        let (key, ca) = (certificates.path(&format!("{certificate}.both.pem")), certificates.path("ca.pem"));
        format!(
            "\
listener.name.{way}.ssl.keystore.type=PEM
listener.name.{way}.ssl.keystore.location={key}
listener.name.{way}.ssl.truststore.type=PEM
listener.name.{way}.ssl.truststore.location={ca}
",
            key = key.display(),
            ca = ca.display()
        )
    };
    let ways = [of("tls", "server"), of("scram", "server"), of("expired", "expired")].concat();
    format!(
        "\
{ways}listener.name.tls.ssl.client.auth=required
listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.scram.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
"
    )
}

/// Whether the cluster knows a broker that takes requests.
fn has_broker(address: &str) -> io::Result<bool> {
    let mut request = Request::new(METADATA);
    // No topics are asked for, and none may be created.
    request.int32(0).int8(0);
    let mut answer = request.send(address, Duration::from_secs(1))?;
    let _throttle_ms = answer.int32()?;
    Ok(answer.int32()? > 0)
}

/// Error code and message.
fn create_topic(address: &str, name: &str, partitions: u32, settings: &[(&str, &str)]) -> io::Result<(i16, String)> {
    let mut request = Request::new(CREATE_TOPICS);
    let partitions = i32::try_from(partitions).map_err(io::Error::other)?;
    request.int32(1).string(name)?.int32(partitions).int16(1).int32(0);
    request.int32(i32::try_from(settings.len()).map_err(io::Error::other)?);
    for (key, value) in settings {
        request.string(key)?.string(value)?;
    }
    request.int32(5_000).int8(0);
    let mut answer = request.send(address, ANSWER)?;
    let _throttle_ms = answer.int32()?;
    let _topics = answer.int32()?;
    let _name = answer.string()?;
    Ok((answer.int16()?, answer.string()?))
}

/// A request in Kafka's binary protocol: big-endian numbers, strings and lists after their length.
struct Request(Vec<u8>);

impl Request {
    fn new((key, version): (i16, i16)) -> Self {
        let mut request = Self(Vec::new());
        let (correlation_id, no_client_id) = (1, -1);
        request.int16(key).int16(version).int32(correlation_id).int16(no_client_id);
        request
    }

    fn int8(&mut self, value: i8) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn int16(&mut self, value: i16) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn int32(&mut self, value: i32) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn string(&mut self, value: &str) -> io::Result<&mut Self> {
        self.int16(i16::try_from(value.len()).map_err(io::Error::other)?);
        self.0.extend(value.as_bytes());
        Ok(self)
    }

    fn send(&self, address: &str, wait: Duration) -> io::Result<Answer> {
        let mut stream = net::connect(address, wait)?;
        let length = u32::try_from(self.0.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &self.0].concat())?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut answer = Vec::new();
        stream.take(u64::from(u32::from_be_bytes(length))).read_to_end(&mut answer)?;
        let mut answer = Answer(io::Cursor::new(answer));
        let _correlation_id = answer.int32()?;
        Ok(answer)
    }
}

struct Answer(io::Cursor<Vec<u8>>);

impl Answer {
    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn int16(&mut self) -> io::Result<i16> {
        self.bytes().map(i16::from_be_bytes)
    }

    fn int32(&mut self) -> io::Result<i32> {
        self.bytes().map(i32::from_be_bytes)
    }

    /// A null string reads as an empty one.
    fn string(&mut self) -> io::Result<String> {
        let length = usize::try_from(self.int16()?).unwrap_or(0);
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
