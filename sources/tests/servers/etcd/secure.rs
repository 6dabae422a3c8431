//! Users, certificates, and a history that is replaced: what the common server has no flags for.

use super::view::{Ctl, Watching, config, put};
use super::{PATIENT, alone};
use marea_model::ConfigUpdate;
use marea_servers::{Certificates, Etcd, wait_until};
use marea_sources::Stop;
use marea_sources::etcd::{Client, EtcdConfig, EtcdError, Timing, Write, load};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// An etcd with flags of its own, on ports of its own.
struct Own {
    child: Child,
    folder: tempfile::TempDir,
    ports: [u16; 2],
    certificates: Option<Certificates>,
}

impl Own {
    fn start(secure: bool) -> Self {
        let held: Vec<TcpListener> = (0..2).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
        let ports = [0, 1].map(|n: usize| held[n].local_addr().unwrap().port());
        drop(held);
        let folder = tempfile::tempdir().unwrap();
        let certificates = secure.then(|| Certificates::new().unwrap());
        let child = Self::spawn(folder.path(), "first", ports, certificates.as_ref());
        let own = Own { child, folder, ports, certificates };
        own.wait();
        own
    }

    fn spawn(folder: &Path, data: &str, [client, peer]: [u16; 2], certificates: Option<&Certificates>) -> Child {
        let scheme = if certificates.is_some() { "https" } else { "http" };
        let (client, peer) = (format!("{scheme}://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let path = |name: &str| folder.join(name).display().to_string();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "etcd", "--name", "n0", "--data-dir", &path(data)]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("n0={peer}"), "--logger", "zap", "--log-level", "error"]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "250"]);
        if let Some(certificates) = certificates {
            let path = |name: &str| certificates.path(name).display().to_string();
            command.args(["--client-cert-auth", "--trusted-ca-file", &path("ca.pem")]);
            command.args(["--cert-file", &path("server.pem"), "--key-file", &path("server.key")]);
        }
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn wait(&self) {
        wait_until(Duration::from_secs(20), "etcd listens", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports[0])).is_ok()
        });
    }

    /// The same address with another, empty past.
    fn wiped(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(self.folder.path(), "second", self.ports, self.certificates.as_ref());
        self.wait();
    }

    fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.certificates.is_some() { "https" } else { "http" }, self.ports[0])
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_client_with_a_certificate_is_served_and_no_other() {
    let own = Own::start(true);
    let path = |name: &str| own.certificates.as_ref().map(|certificates| certificates.path(name));
    let good =
        EtcdConfig { ca: path("ca.pem"), cert: path("client.pem"), key: path("client.key"), ..config(&own.endpoint()) };
    assert_eq!(good.check(), [""; 0]);
    let mut watching = Watching::start(&good, PATIENT);
    let client = Client::connect(&good).unwrap();
    let puts = [("/echo/a".to_owned(), "1".to_owned())].into();
    let revision = client.write(&Write { puts, ..Write::default() }).unwrap();
    assert_eq!(watching.next(), [put("/echo/a", "1", revision as u64)]);
    watching.stop();
    for (what, bad) in [
        ("no certificate", EtcdConfig { cert: None, key: None, ..good.clone() }),
        ("another authority", EtcdConfig { ca: path("other.pem"), ..good.clone() }),
        ("no TLS", EtcdConfig { ca: None, cert: None, key: None, ..config(&own.endpoint().replace("https", "http")) }),
    ] {
        let error = Client::connect(&bad).unwrap_err();
        println!("{what}: {error}");
        assert!(matches!(error, EtcdError::Nobody { .. }), "{what}: {error}");
    }
}

#[test]
fn a_user_reads_what_its_role_may_and_a_wrong_password_is_said_at_once() {
    let etcd = Etcd::start().unwrap();
    let ctl = Ctl::new(&etcd.endpoint());
    ctl.put("/echo/a", "1");
    for command in [
        "user add root:secret",
        "user grant-role root root",
        "role add marea",
        "role grant-permission marea readwrite /echo/ /marea0",
        "user add marea:pass",
        "user grant-role marea marea",
        "user add nobody:pass",
        "auth enable",
    ] {
        ctl.run(&command.split(' ').collect::<Vec<_>>());
    }
    let ctl = ctl.with(&["--user", "root:secret"]);
    let user = |user: &str, password: &str| EtcdConfig {
        user: Some(user.to_owned()),
        password: Some(password.to_owned()),
        ..config(&etcd.endpoint())
    };
    for (what, bad, said) in [
        ("a wrong password", user("marea", "hunter2"), "authentication failed"),
        ("an unknown user", user("who", "pass"), "authentication failed"),
        ("a user without a role", user("nobody", "pass"), "permission denied"),
        ("nobody", config(&etcd.endpoint()), "user name is empty"),
    ] {
        for error in [load(&bad, &Stop::new()).map(drop), Client::connect(&bad).map(drop)] {
            let error = error.unwrap_err();
            println!("{what}: {error}");
            assert!(matches!(error, EtcdError::Denied { .. }) && !error.is_retryable(), "{what}: {error}");
            assert!(error.to_string().contains(said) && !error.to_string().contains("hunter2"), "{what}: {error}");
        }
    }
    let mut watching = Watching::start(&user("marea", "pass"), Timing { recheck: Duration::from_secs(1), ..PATIENT });
    ctl.put("/echo/a", "2");
    assert_eq!(watching.next().len(), 1);
    // Its tokens end with this: the next request gets another one, and nothing is said.
    let change = |password: &str| {
        let line = format!(
            "printf '{password}\\n{password}\\n' | etcdctl --endpoints {} --user root:secret user passwd \
                            marea --interactive=false",
            etcd.endpoint()
        );
        let status =
            Command::new("sh").env("ETCDCTL_API", "3").args(["-c", &line]).stdout(Stdio::null()).status().unwrap();
        assert!(status.success());
    };
    change("pass");
    std::thread::sleep(Duration::from_millis(2_500));
    ctl.put("/echo/b", "1");
    assert_eq!(watching.next().len(), 1);
    assert!(watching.received().is_empty() && !watching.view.stale);
    // A user that may no longer read is as good as a server that does not answer; mended, all is read again.
    change("another");
    watching.until("denied", |view| view.stale);
    ctl.put("/echo/c", "1");
    change("pass");
    watching.settle("mended", &ctl);
    watching.stop();
}

#[test]
fn a_server_with_another_past_is_read_anew() {
    let mut own = Own::start(false);
    let ctl = Ctl::new(&own.endpoint());
    for n in 0..30 {
        ctl.txn(&[("/echo/a", Some(&n.to_string())), ("/echo/old", Some("x"))]);
    }
    let mut watching = Watching::start(&ctl.config(), PATIENT);
    // The same cluster id, since ports and names are the same; only the revision tells.
    own.wiped();
    let ctl = Ctl::new(&own.endpoint());
    wait_until(Duration::from_secs(10), "a write", || ctl.try_txn(&[("/echo/a", Some("new"))]).is_ok());
    watching.settle("with another past", &ctl);
    assert_eq!(watching.view.tree.len(), 1);
    let revision = ctl.txn(&[("/echo/b", Some("1"))]);
    assert!(revision < 10);
    let next = watching.next();
    assert_eq!(next, [put("/echo/b", "1", revision)]);
    watching.stop();
}

/// The same cluster at the same revision with as many keys: only when one was modified tells that an event is missing.
#[test]
fn a_put_that_is_never_told_is_found() {
    let mut own = Own::start(false);
    let ctl = Ctl::new(&own.endpoint());
    for (key, value) in [("/echo/a", "1"), ("/kind/x", "1"), ("/kind/x", "2")] {
        ctl.txn(&[(key, Some(value))]);
    }
    let from = load(&ctl.config(), &Stop::new()).unwrap();
    own.wiped();
    let ctl = Ctl::new(&own.endpoint());
    wait_until(Duration::from_secs(10), "a write", || ctl.try_txn(&[("/kind/x", Some("1"))]).is_ok());
    let put_at = ctl.txn(&[("/echo/a", Some("2"))]);
    while ctl.txn(&[("/kind/x", Some("2"))]) < from.revision {}
    let timing = Timing { stale_after: Duration::from_secs(60), ..PATIENT };
    let mut watching = Watching::from(&ctl.config(), timing, from);
    assert_eq!(watching.next(), [put("/echo/a", "2", put_at)]);
    watching.stop();
}

#[test]
fn a_snapshot_of_another_past_is_noticed() {
    let (_guard, ctl) = alone();
    for n in 0..30 {
        ctl.txn(&[("/echo/a", Some(&n.to_string()))]);
    }
    let from = load(&ctl.config(), &Stop::new()).unwrap();
    // The watch is opened at a revision that the other server will not have for long: it would wait without a word.
    let own = Own::start(false);
    let other = Ctl::new(&own.endpoint());
    wait_until(Duration::from_secs(10), "a write", || other.try_txn(&[("/echo/b", Some("1"))]).is_ok());
    let mut watching = Watching::from(&other.config(), PATIENT, from);
    let expected = [ConfigUpdate::Delete { key: "/echo/a".into(), revision: 2 }, put("/echo/b", "1", 2)];
    assert_eq!(watching.next(), expected);
    watching.stop();
}
