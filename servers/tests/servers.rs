//! The servers start, answer their own clients, keep what they promised over SIGKILL, and leave nothing behind.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use marea_servers::{Etcd, Kafka, Postgres, Prometheus, RabbitMq, Redis, ServerError, shared, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// Runs a client, with a limit in time; gives its output, or none if it failed.
fn client(program: &str, args: &[&str], input: &str) -> Option<String> {
    let mut command = Command::new("timeout");
    command.arg("20").arg(program).args(args).env("ETCDCTL_API", "3");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

fn is_silent(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new("timeout");
    command.arg("1").arg(program).args(args).env("ETCDCTL_API", "3").stdin(Stdio::null());
    !command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// Start-up time and memory, for who runs the tests with `--nocapture`.
fn measured<T>(name: &str, start: impl FnOnce() -> Result<T, ServerError>, pid: impl Fn(&T) -> Option<u32>) -> T {
    let began = Instant::now();
    let server = start().unwrap_or_else(|error| panic!("{error}"));
    let seconds = began.elapsed().as_secs_f64();
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid(&server).unwrap())).unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default().trim();
    println!("{name}: ready after {seconds:.2} s, {memory}");
    server
}

fn restarted(name: &str, restart: impl FnOnce() -> Result<(), ServerError>) {
    let began = Instant::now();
    restart().unwrap_or_else(|error| panic!("{error}"));
    println!("{name}: ready again after {:.2} s", began.elapsed().as_secs_f64());
}

#[test]
fn kafka() {
    let kafka = measured("kafka", Kafka::start, Kafka::pid);
    let brokers = kafka.brokers();
    kafka.create_topic("ticks", 2, &[("retention.ms", "60000")]).unwrap();
    let again = kafka.create_topic("ticks", 2, &[]).unwrap_err().to_string();
    assert!(again.contains("already exists"), "{again}");

    let topics = client("kcat", &["-b", &brokers, "-L"], "").unwrap();
    assert!(topics.contains("\"ticks\" with 2 partitions"), "{topics}");
    let produce = ["-b", &brokers, "-P", "-t", "ticks", "-p", "0", "-X", "acks=all"];
    let consume = ["-b", &brokers, "-C", "-t", "ticks", "-p", "0", "-e", "-q"];
    client("kcat", &produce, "one\ntwo\n").unwrap();
    let nowhere = ["-b", &brokers, "-P", "-t", "nowhere", "-X", "message.timeout.ms=1000"];
    assert!(client("kcat", &nowhere, "lost\n").is_none(), "topics are not created by their use");

    kafka.kill().unwrap();
    assert!(kafka.pid().is_none() && matches!(kafka.pause(), Err(ServerError::NotRunning { .. })));
    restarted("kafka", || kafka.restart());
    assert!(matches!(kafka.restart(), Err(ServerError::Running { .. })));
    assert_eq!(client("kcat", &consume, "").unwrap(), "one\ntwo\n");

    kafka.pause().unwrap();
    assert!(is_silent("kcat", &consume));
    kafka.resume().unwrap();
    wait_until(SOON, "kafka answers again", || client("kcat", &produce, "three\n").is_some());
    assert!(client("kcat", &consume, "").unwrap().ends_with("three\n"));

    kafka.stop().unwrap();
    restarted("kafka, stopped", || kafka.restart());
    assert!(client("kcat", &consume, "").unwrap().starts_with("one\ntwo\n"));
    let (pid, log) = (kafka.pid().unwrap(), kafka.log().unwrap().to_path_buf());
    drop(kafka);
    assert!(is_gone(pid) && !log.parent().unwrap().exists());
}

#[test]
fn kafka_removes_what_is_older_than_retention() {
    let kafka = shared::kafka();
    kafka.create_topic("short", 1, &[("retention.ms", "100"), ("segment.ms", "100")]).unwrap();
    let brokers = kafka.brokers();
    let produce = ["-b", &brokers, "-P", "-t", "short", "-X", "acks=all"];
    client("kcat", &produce, "old\n").unwrap();
    wait_until(SOON, "retention removes the message", || {
        let low = client("kcat", &["-b", &brokers, "-C", "-t", "short", "-o", "beginning", "-e", "-q"], "");
        low.is_some_and(|messages| messages.is_empty())
    });
}

#[test]
fn rabbitmq() {
    let rabbitmq = measured("rabbitmq", RabbitMq::start, RabbitMq::pid);
    let address = rabbitmq.url().split('@').nth(1).unwrap().split('/').next().unwrap().to_string();
    let greet = || {
        let mut stream = TcpStream::connect(&address).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
        stream.write_all(b"AMQP\0\0\x09\x01").ok()?;
        let mut first = [0; 1];
        stream.read_exact(&mut first).ok()
    };
    greet().unwrap();
    let vhost = rabbitmq.vhost("a test");
    assert!(vhost.ends_with("/a%20test"), "{vhost}");
    let base = format!("{}/api", rabbitmq.management());
    let api = |method: &str, path: &str, body: &str| {
        let url = format!("{base}{path}");
        let json = "content-type: application/json";
        client("curl", &["-sf", "-m", "10", "-u", "test:test", "-X", method, "-H", json, "-d", body, &url], "")
    };
    let stream = r#"{"durable": true, "arguments": {"x-queue-type": "stream"}}"#;
    api("PUT", "/queues/a%20test/stream", stream).unwrap();
    api("PUT", "/queues/a%20test/queue", r#"{"durable": true}"#).unwrap();

    rabbitmq.pause().unwrap();
    assert!(greet().is_none());
    rabbitmq.resume().unwrap();
    wait_until(SOON, "rabbitmq answers again", || greet().is_some());

    // A queue declared less than a second before SIGKILL was seen to be lost.
    std::thread::sleep(Duration::from_secs(3));
    rabbitmq.kill().unwrap();
    assert!(greet().is_none());
    restarted("rabbitmq", || rabbitmq.restart());
    let queues = api("GET", "/queues/a%20test", "").unwrap();
    assert!(queues.contains("\"stream\",") && queues.contains("\"queue\","), "{queues}");
    let pid = rabbitmq.pid().unwrap();
    drop(rabbitmq);
    assert!(is_gone(pid));
}

#[test]
fn etcd() {
    let etcd = measured("etcd", Etcd::start, Etcd::pid);
    let endpoint = etcd.endpoint();
    let get = ["--endpoints", &endpoint, "get", "/key", "--print-value-only"];
    client("etcdctl", &["--endpoints", &endpoint, "put", "/key", "value"], "").unwrap();
    assert!(etcd.is_leader().unwrap());
    etcd.kill().unwrap();
    restarted("etcd", || etcd.restart());
    assert_eq!(client("etcdctl", &get, "").unwrap(), "value\n");
    etcd.pause().unwrap();
    assert!(is_silent("etcdctl", &get));
    etcd.resume().unwrap();
    wait_until(SOON, "etcd answers again", || client("etcdctl", &get, "").is_some());
    let pid = etcd.pid().unwrap();
    drop(etcd);
    assert!(is_gone(pid));
}

#[test]
fn an_etcd_cluster_survives_its_leader() {
    let nodes = Etcd::cluster(3).unwrap();
    let endpoints: Vec<String> = nodes.iter().map(Etcd::endpoint).collect();
    let all = endpoints.join(",");
    client("etcdctl", &["--endpoints", &all, "put", "/key", "1"], "").unwrap();
    let leader = nodes.iter().position(|node| node.is_leader().unwrap()).unwrap();
    nodes[leader].kill().unwrap();
    let rest = nodes.iter().enumerate().filter(|(n, _)| *n != leader);
    let rest: Vec<&Etcd> = rest.map(|(_, node)| node).collect();
    wait_until(SOON, "another leader", || rest.iter().any(|node| node.is_leader().unwrap_or(false)));
    wait_until(SOON, "writes", || {
        client("etcdctl", &["--endpoints", &rest[0].endpoint(), "put", "/key", "2"], "").is_some()
    });
    nodes[leader].restart().unwrap();
    let value = client("etcdctl", &["--endpoints", &endpoints[leader], "get", "/key", "--print-value-only"], "");
    assert_eq!(value.unwrap(), "2\n");
}

#[test]
fn postgres() {
    let postgres = measured("postgres", Postgres::start, Postgres::pid);
    assert_eq!(postgres.query("SELECT 1 + 1, 'a'").unwrap(), "2|a\n");
    let url = postgres.database("a \"test\"");
    client("psql", &["-d", &url, "-c", "CREATE TABLE t (n int); INSERT INTO t VALUES (7)"], "").unwrap();
    let select = ["-d", url.as_str(), "-Atc", "SELECT n FROM t"];
    postgres.kill().unwrap();
    restarted("postgres", || postgres.restart());
    assert_eq!(client("psql", &select, "").unwrap(), "7\n");

    postgres.pause().unwrap();
    assert!(is_silent("psql", &select));
    postgres.resume().unwrap();
    wait_until(SOON, "postgres answers again", || client("psql", &select, "").is_some());
    let refused = postgres.query("SELECT nothing").unwrap_err().to_string();
    assert!(refused.contains("\"nothing\" does not exist"), "{refused}");
    postgres.stop().unwrap();
    restarted("postgres, stopped", || postgres.restart());
    let pid = postgres.pid().unwrap();
    drop(postgres);
    assert!(is_gone(pid));
}

#[test]
fn redis() {
    let redis = measured("redis", Redis::start, Redis::pid);
    let url = redis.url();
    assert_eq!(client("redis-cli", &["-u", &url, "ping"], "").unwrap(), "PONG\n");
    client("redis-cli", &["-u", &url, "set", "key", "value"], "").unwrap();
    redis.pause().unwrap();
    assert!(is_silent("redis-cli", &["-u", &url, "ping"]));
    redis.resume().unwrap();
    assert_eq!(client("redis-cli", &["-u", &url, "get", "key"], "").unwrap(), "value\n");
    redis.kill().unwrap();
    restarted("redis", || redis.restart());
    assert_eq!(client("redis-cli", &["-u", &url, "get", "key"], "").unwrap(), "\n", "a cache forgets");
    let pid = redis.pid().unwrap();
    drop(redis);
    assert!(is_gone(pid));
}

#[test]
fn prometheus() {
    let prometheus = measured("prometheus", || Prometheus::start(&["127.0.0.1:1"]), Prometheus::pid);
    let targets = || client("curl", &["-sf", "-m", "5", &format!("{}/api/v1/targets", prometheus.url())], "");
    wait_until(SOON, "the target is tried", || targets().is_some_and(|json| json.contains("\"health\":\"down\"")));
    let pid = prometheus.pid().unwrap();
    prometheus.stop().unwrap();
    assert!(is_gone(pid));
}

#[test]
fn a_server_that_ends_at_once_shows_its_log() {
    let error = Prometheus::start_with("nonsense: [").map(drop).unwrap_err().to_string();
    assert!(error.contains("ended before it was ready") && error.contains("yaml"), "{error}");
}

/// Not a test by itself: the process that the next one kills.
#[test]
#[ignore = "started by servers_die_with_their_process"]
fn victim() {
    let redis = Redis::start().unwrap();
    let postgres = Postgres::start().unwrap();
    let folder = |log: Option<&Path>| log.unwrap().parent().unwrap().display().to_string();
    println!("\nvictim {} {}", redis.pid().unwrap(), folder(redis.log()));
    println!("\nvictim {} {}", postgres.pid().unwrap(), folder(postgres.log()));
    println!("\nvictim ready");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
#[cfg(target_os = "linux")]
fn servers_die_with_their_process() {
    use std::io::{BufRead, BufReader};

    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "victim", "--nocapture", "--test-threads=1"]);
    let mut victim = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines().map(Result::unwrap);
    let told = lines.filter_map(|line| line.strip_prefix("victim ").map(str::to_string));
    let told: Vec<String> = told.take_while(|told| told != "ready").collect();
    victim.kill().unwrap();
    victim.wait().unwrap();
    let servers: Vec<(u32, &Path)> = told
        .iter()
        .filter_map(|told| told.split_once(' '))
        .map(|(pid, folder)| (pid.parse().unwrap(), Path::new(folder)))
        .collect();
    assert_eq!(servers.len(), 2, "{told:?}");
    wait_until(SOON, "servers and folders are gone", || {
        servers.iter().all(|(pid, folder)| is_gone(*pid) && !folder.exists())
    });
}
