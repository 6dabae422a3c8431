//! Faults: of the server, of the network, of etcd itself.

use super::PATIENT;
use super::view::{Ctl, LONG, Watching, delete, put};
use marea_model::ConfigUpdate;
use marea_servers::{Etcd, wait_until};
use marea_sources::Stop;
use marea_sources::etcd::{EtcdConfig, Timing, load};
use std::time::{Duration, Instant};

fn own() -> (Etcd, Ctl) {
    let etcd = Etcd::start().unwrap();
    let ctl = Ctl::new(&etcd.endpoint());
    (etcd, ctl)
}

/// etcd-io/etcd#18089: a watch that begins at a deletion up to which the history was compacted is neither told of the
/// deletion nor that the history is gone.
#[test]
fn a_deletion_that_etcd_never_tells_is_found() {
    let (_etcd, ctl) = own();
    ctl.put("/echo/policy/M1/enabled", "false");
    ctl.put("/echo/policy/M2/enabled", "false");
    let from = load(&ctl.config(), &Stop::new()).unwrap();
    let deleted = ctl.txn(&[("/echo/policy/M1/enabled", None)]);
    ctl.compact(deleted);
    // The server's fault, without any source of ours. It compacts in the background: a watch that comes first hears.
    let mut heard = Some(1);
    let begun = Instant::now();
    while heard == Some(1) && begun.elapsed() < Duration::from_secs(8) {
        heard = ctl.bare_watch("/echo/", from.revision + 1, Duration::from_millis(500));
    }
    let version = ctl.run(&["version"]);
    println!("a bare watch heard {heard:?} events of 1; {}", version.replace('\n', ", "));
    // A server that has been mended cancels the watch.
    assert!(heard == Some(0) || !version.contains("3.4.23"), "3.4.23 loses it, as far as is known");
    let heard = heard.unwrap_or(1);
    // Nor do we hear of it by the watch alone.
    let never = Timing { ping: Duration::from_secs(60), stale_after: Duration::from_secs(60), ..PATIENT };
    let mut deaf = Watching::from(&ctl.config(), never, from.clone());

    // By the count: two pings after the watch.
    let mut counting =
        Watching::from(&ctl.config(), Timing { ping: Duration::from_millis(200), ..PATIENT }, from.clone());
    // By the read that comes anyway.
    let timing = Timing { ping: Duration::from_secs(60), recheck: Duration::from_secs(1), ..PATIENT };
    let mut reading =
        Watching::from(&ctl.config(), Timing { stale_after: Duration::from_secs(60), ..timing }, from.clone());
    for (how, watching) in [("by the count", &mut counting), ("by the read", &mut reading)] {
        let begun = Instant::now();
        assert_eq!(watching.next(), [delete("/echo/policy/M1/enabled", deleted)], "{how}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{how}: {:?}", begun.elapsed());
        assert!(!watching.view.stale);
    }
    assert_eq!(deaf.received().len(), heard);
    // And the watch goes on.
    let next = ctl.txn(&[("/echo/policy/M3/enabled", Some("true"))]);
    for mut watching in [counting, reading] {
        assert_eq!(watching.next(), [put("/echo/policy/M3/enabled", "true", next)]);
        watching.stop();
    }
}

#[test]
fn a_compacted_revision_is_read_again() {
    let (_etcd, ctl) = own();
    ctl.put("/echo/a", "1");
    let from = load(&ctl.config(), &Stop::new()).unwrap();
    for n in 0..20 {
        ctl.txn(&[("/echo/a", Some(&n.to_string())), ("/echo/b", (n % 2 == 0).then_some("x"))]);
    }
    ctl.compact(from.revision + 15);
    let mut watching = Watching::from(&ctl.config(), PATIENT, from.clone());
    // One difference, and not what is left of the steps.
    assert_eq!(watching.next(), [put("/echo/a", "19", from.revision + 20)]);
    ctl.put("/echo/c", "1");
    assert_eq!(watching.next(), [put("/echo/c", "1", from.revision + 21)]);
    watching.stop();
}

#[test]
fn a_killed_server_that_comes_back_has_lost_nothing() {
    let (etcd, ctl) = own();
    let mut watching = Watching::start(&ctl.config(), PATIENT);
    for n in 0..3 {
        ctl.txn(&[("/echo/n", Some(&n.to_string()))]);
        watching.settle("before", &ctl);
        etcd.kill().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        etcd.restart().unwrap();
        wait_until(Duration::from_secs(10), "a write", || ctl.try_txn(&[("/marea/n", Some(&n.to_string()))]).is_ok());
        let took = watching.settle("after", &ctl);
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    assert!(!watching.view.stale);
    watching.stop();
}

#[test]
fn a_server_that_hangs_is_stale_within_five_seconds_and_current_before_it_is_not() {
    let (etcd, ctl) = own();
    ctl.txn(&[("/echo/a", Some("1")), ("/echo/b", Some("1"))]);
    let mut watching = Watching::start(&ctl.config(), PATIENT);
    std::thread::sleep(Duration::from_millis(1_200));
    // Written while the server hangs: a client that waits for its answer.
    etcd.pause().unwrap();
    let paused = Instant::now();
    let waiting = std::thread::spawn({
        let endpoint = etcd.endpoint();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut client = etcd_client::Client::connect([endpoint], None).await.unwrap();
                client.put("/echo/a", "2", None).await.unwrap();
                client.delete("/echo/b", None).await.unwrap();
            });
        }
    });
    assert_eq!(watching.next(), [ConfigUpdate::Stale(true)]);
    let took = paused.elapsed();
    assert!(took >= Duration::from_secs(3) && took <= Duration::from_millis(5_500), "{took:?}");
    let frozen = watching.answered.sent();
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(watching.answered.sent(), frozen);
    assert!(watching.received().is_empty());

    etcd.resume().unwrap();
    let resumed = Instant::now();
    let updates = watching.next();
    assert_eq!(updates.last(), Some(&ConfigUpdate::Stale(false)), "{updates:?}");
    println!("stale {took:?} after SIGSTOP, current {:?} after SIGCONT", resumed.elapsed());
    assert!(resumed.elapsed() < Duration::from_secs(4), "{:?}", resumed.elapsed());
    assert!(watching.answered.sent() > frozen);
    waiting.join().unwrap();
    watching.settle("after", &ctl);
    assert_eq!(watching.view.tree.get("/echo/a").map(String::as_str), Some("2"));
    watching.stop();
}

#[test]
fn a_pause_that_is_short_is_not_said() {
    let (etcd, ctl) = own();
    let mut watching = Watching::start(&ctl.config(), PATIENT);
    for _ in 0..2 {
        etcd.pause().unwrap();
        std::thread::sleep(Duration::from_millis(2_000));
        etcd.resume().unwrap();
        std::thread::sleep(Duration::from_millis(2_000));
    }
    assert!(watching.received().is_empty());
    ctl.put("/echo/a", "1");
    assert!(watching.settle("after", &ctl) < Duration::from_secs(2));
    watching.stop();
}

/// Entries are blocked only after five seconds without an answer: an election that is shorter blocks nothing.
#[test]
fn an_election_blocks_nothing() {
    let nodes = Etcd::cluster(3).unwrap();
    let led = |node: &Etcd| node.is_leader().unwrap_or(false);
    for round in 0..4 {
        wait_until(LONG, "a leader", || nodes.iter().any(led));
        let leader = nodes.iter().position(led).unwrap();
        // Either the leader is watched, or another one.
        let mut endpoints: Vec<String> = nodes.iter().map(Etcd::endpoint).collect();
        endpoints.swap(0, if round % 2 == 0 { leader } else { (leader + 1) % 3 });
        let config = EtcdConfig { endpoints, ..EtcdConfig::default() };
        let ctl = Ctl::new(&nodes[(leader + 1) % 3].endpoint());
        ctl.txn(&[("/echo/a", Some("before"))]);
        let mut watching = Watching::start(&config, PATIENT);
        let killed = Instant::now();
        nodes[leader].kill().unwrap();
        // A killed leader is a leader no more: nobody answers for it.
        wait_until(LONG, "another leader", || nodes.iter().any(led));
        let election = killed.elapsed();
        let value = round.to_string();
        wait_until(LONG, "a write", || ctl.try_txn(&[("/echo/a", Some(&value))]).is_ok());
        let mut stale = false;
        while watching.view.tree.get("/echo/a") != Some(&value) {
            stale |= watching.next().contains(&ConfigUpdate::Stale(true));
        }
        println!("a leader after {election:?}, a write heard of after {:?}, blocked: {stale}", killed.elapsed());
        // The last read may have been sent a second before the kill.
        assert!(!stale || election >= Duration::from_millis(3_500), "{election:?}");
        watching.stop();
        nodes[leader].restart().unwrap();
    }
}

#[test]
fn a_cluster_that_loses_its_leader_loses_nothing() {
    let mut nodes = Etcd::cluster(3).unwrap();
    let config = EtcdConfig { endpoints: nodes.iter().map(Etcd::endpoint).collect(), ..EtcdConfig::default() };
    // The first endpoint is the leader: the one that will be lost is the one that is watched.
    wait_until(Duration::from_secs(20), "a leader", || nodes.iter().any(|node| node.is_leader().unwrap_or(false)));
    let leader = nodes.iter().position(|node| node.is_leader().unwrap_or(false)).unwrap();
    nodes.swap(0, leader);
    let config = EtcdConfig { endpoints: nodes.iter().map(Etcd::endpoint).collect(), ..config };
    let ctl = Ctl::new(&nodes[1].endpoint());
    let mut watching = Watching::start(&config, PATIENT);
    let mut written = 0;
    for n in 0..60 {
        if n == 20 {
            nodes[0].kill().unwrap();
        }
        let (name, value) = (format!("/echo/k{}", n % 7), n.to_string());
        // Without a leader nobody writes.
        wait_until(Duration::from_secs(20), "a write", || ctl.try_txn(&[(&name, Some(&value))]).is_ok());
        written += 1;
    }
    let took = watching.settle("after the election", &ctl);
    println!("{written} revisions; the view was right {took:?} after the last");
    assert_eq!(watching.view.tree["/echo/k3"], "59");
    // A member that is cut off from the others answers, but not to this.
    nodes[2].pause().unwrap();
    watching.until("no quorum", |view| view.stale);
    nodes[2].resume().unwrap();
    watching.until("a quorum", |view| !view.stale);
    ctl.put("/echo/last", "1");
    watching.settle("with two of three", &ctl);
    nodes[0].restart().unwrap();
    ctl.put("/echo/last", "2");
    watching.settle("with three", &ctl);
    watching.stop();
}
