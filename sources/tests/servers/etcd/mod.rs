//! The etcd source against Debian's etcd: whatever happens to server, network or history, the view becomes what
//! `etcdctl get --prefix` shows.

mod faults;
mod history;
mod secure;
mod view;
mod writer;

use marea_servers::shared;
use marea_sources::Stop;
use marea_sources::etcd::{Answered, EtcdError, Timing, load, watch};
use std::time::{Duration, Instant};
use view::{Ctl, View, Watching, config, put};

/// As configured, but what takes 30 s takes longer than any test.
const PATIENT: Timing = Timing {
    answer: Duration::from_millis(1_500),
    range: Duration::from_secs(4),
    ping: Duration::from_secs(1),
    stale_after: Duration::from_secs(5),
    recheck: Duration::from_secs(3_600),
};

/// The shared server is written to by one test at a time.
static SHARED: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> (std::sync::MutexGuard<'static, ()>, Ctl) {
    let guard = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let ctl = Ctl::new(&shared::etcd().endpoint());
    for folder in ["/echo/", "/marea/", "/other/", "/kind/"] {
        ctl.run(&["del", "--prefix", folder]);
    }
    (guard, ctl)
}

#[test]
fn the_tree_is_loaded_and_every_revision_follows_whole() {
    let (_guard, ctl) = alone();
    ctl.put("/echo/core/master_accounts", "M1");
    ctl.put("/echo/policy/M1/max_spread", "20");
    ctl.put("/other/key", "x");
    ctl.put("/kind/of/between", "x");
    let loaded = load(&ctl.config(), &Stop::new()).unwrap();
    assert_eq!(loaded.tree.len(), 2);
    assert_eq!(loaded.tree["/echo/policy/M1/max_spread"], "20");
    let updates = loaded.updates();
    let revision = loaded.revision;
    // Two keys were written after the last of ours.
    assert_eq!(updates[1], put("/echo/policy/M1/max_spread", "20", revision - 2));

    let mut watching = Watching::start(&ctl.config(), PATIENT);
    let written = ctl.txn(&[("/echo/windows/M1/IBM/start_utc", Some("a")), ("/marea/strategies/x", Some("b"))]);
    let next = watching.next();
    let expected = [put("/echo/windows/M1/IBM/start_utc", "a", written), put("/marea/strategies/x", "b", written)];
    assert_eq!(next, expected, "both folders at one revision");
    ctl.put("/kind/of/between", "y");
    ctl.run(&["del", "/echo/policy/M1/max_spread"]);
    assert_eq!(watching.next(), [view::delete("/echo/policy/M1/max_spread", written + 2)]);
    let big = "x".repeat(1_400_000);
    ctl.client_put("/marea/strategies/big", big.as_bytes());
    ctl.client_put("/echo/policy/M1/max_spread", b"2\xff0");
    assert_eq!(watching.next()[0], put("/marea/strategies/big", &big, written + 3));
    assert_eq!(watching.next(), [put("/echo/policy/M1/max_spread", "[not UTF-8: 2\u{fffd}0", written + 4)]);
    // Above the client's own limit for an answer.
    for n in 0..4 {
        ctl.client_put(&format!("/marea/strategies/big{n}"), big.as_bytes());
    }
    assert_eq!(load(&ctl.config(), &Stop::new()).unwrap().tree.len(), 4 + 5);
    watching.stop();
}

#[test]
fn a_key_goes_with_its_lease() {
    let (_guard, ctl) = alone();
    let mut watching = Watching::start(&ctl.config(), PATIENT);
    let granted = ctl.run(&["lease", "grant", "1"]);
    let lease = granted.split_whitespace().nth(1).unwrap().to_owned();
    ctl.run(&["put", "/echo/windows/M1/IBM/active", "true", "--lease", &lease]);
    assert_eq!(watching.next().len(), 1);
    let begun = Instant::now();
    assert!(matches!(&watching.next()[..], [marea_model::ConfigUpdate::Delete { .. }]));
    assert!(begun.elapsed() < Duration::from_secs(5));
    watching.stop();
}

#[test]
fn the_heartbeat_follows_the_reads_that_are_answered() {
    let (_guard, ctl) = alone();
    let mut watching = Watching::start(&ctl.config(), PATIENT);
    let first = watching.answered.sent().unwrap();
    std::thread::sleep(Duration::from_millis(2_600));
    let later = watching.answered.sent().unwrap();
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as i64;
    // One read a second, and each counts from when it was sent.
    assert!(later - first >= 1_000_000_000 && later <= wall && wall - later < 2_500_000_000, "{first} {later} {wall}");
    assert!(watching.received().is_empty());
    watching.stop();
}

#[test]
fn nobody_there_is_tried_until_stopped_and_a_wrong_configuration_is_not() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stop = Stop::new();
    let trying = std::thread::spawn({
        let stop = stop.clone();
        move || load(&config(&format!("http://{closed}")), &stop).map(drop)
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(!trying.is_finished());
    stop.stop();
    assert_eq!(trying.join().unwrap(), Err(EtcdError::Stopped));
    let faults = vec!["etcd.endpoints: \"x\" must be http://HOST:PORT or https://HOST:PORT".to_owned()];
    assert_eq!(load(&config("x"), &Stop::new()).map(drop), Err(EtcdError::Config { faults }));
}

#[test]
fn a_watch_ends_when_nobody_listens() {
    let (_guard, ctl) = alone();
    let from = load(&ctl.config(), &Stop::new()).unwrap();
    let (out, input) = crossbeam_channel::bounded(1);
    let out = marea_sources::Sender::from(out);
    drop(input);
    ctl.put("/echo/core/trading_enabled", "true");
    assert_eq!(watch(&ctl.config(), from, &Answered::new(), &out, &Stop::new()), Ok(()));
}

#[test]
fn a_snapshot_becomes_a_view() {
    let (_guard, ctl) = alone();
    ctl.txn(&[("/echo/a", Some("1")), ("/marea/b", Some("2"))]);
    let loaded = load(&ctl.config(), &Stop::new()).unwrap();
    let mut view = View::default();
    view.read(&loaded.updates());
    assert_eq!(view.tree, loaded.tree);
    assert_eq!(view.tree, ctl.tree());
}
