//! A long random history with faults in between. `MAREA_REVISIONS=10000` for a longer one, `MAREA_SEED=7` for another.

use super::PATIENT;
use super::view::{Ctl, Watching};
use marea_servers::{Etcd, wait_until};
use marea_sources::etcd::Timing;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A generator that needs no crate: the same seed, the same history.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn key(random: &mut Random) -> String {
    match random.below(4) {
        0 => format!("/echo/windows/M{}/IBM/active", random.below(5)),
        1 => format!("/marea/strategies/s{}", random.below(20)),
        2 => format!("/kubernetes/{}", random.below(5)),
        _ => format!(
            "/echo/policy/M{}/{}",
            random.below(5),
            ["enabled", "max_spread", "risk_fixed"][random.below(3) as usize]
        ),
    }
}

#[test]
fn after_any_history_the_view_is_what_etcdctl_shows() {
    let (revisions, seed) = (number("MAREA_REVISIONS", 1_500), number("MAREA_SEED", 1));
    let etcd = Etcd::start().unwrap();
    let ctl = Ctl::new(&etcd.endpoint());
    let timing = Timing { recheck: Duration::from_secs(2), ..PATIENT };
    let mut watching = Watching::start(&ctl.config(), timing);
    let mut random = Random(seed);
    let (begun, mut written, mut revision) = (Instant::now(), 0, 0);
    let (mut settled, mut slowest, mut said) = (0, Duration::ZERO, 0);
    let mut faults = [0; 6];
    while written < revisions {
        for _ in 0..20 + random.below(60) {
            let keys: BTreeSet<String> = (0..=random.below(4)).map(|_| key(&mut random)).collect();
            let value = random.below(1_000).to_string();
            let changes: Vec<(&str, Option<&str>)> =
                keys.iter().map(|k| (k.as_str(), (random.below(3) > 0).then_some(value.as_str()))).collect();
            let at = ctl.txn(&changes);
            written += u64::from(at > revision);
            revision = at;
            said += watching.received().len();
        }
        let fault = random.below(6);
        faults[fault as usize] += 1;
        match fault {
            // Compacted up to now: what the watch has not read yet is gone.
            0 => ctl.compact(revision),
            1 => ctl.compact(revision.saturating_sub(random.below(20))),
            2 => {
                etcd.pause().unwrap();
                std::thread::sleep(Duration::from_millis(random.below(300)));
                etcd.resume().unwrap();
            }
            3 => {
                etcd.kill().unwrap();
                etcd.restart().unwrap();
                wait_until(Duration::from_secs(10), "a read", || ctl.try_txn(&[("/kubernetes/x", None)]).is_ok());
            }
            // The process is killed, and before the watch is back the history has gone on and been compacted.
            4 => {
                etcd.kill().unwrap();
                etcd.restart().unwrap();
                let name = key(&mut random);
                wait_until(Duration::from_secs(10), "a write", || ctl.try_txn(&[(&name, None)]).is_ok());
                ctl.compact(ctl.txn(&[(&key(&mut random), None), ("/echo/after", Some("x"))]));
            }
            _ => (),
        }
        slowest =
            slowest.max(watching.settle(&format!("after {written} revisions and fault {fault}, seed {seed}"), &ctl));
        settled += 1;
    }
    println!(
        "{written} revisions in {:?}, {said} changes said as they came, {settled} settlings of which the slowest took \
         {slowest:?}; compacted {} + {}, paused {}, killed {} + {}",
        begun.elapsed(),
        faults[0],
        faults[1],
        faults[2],
        faults[3],
        faults[4]
    );
    assert!(!watching.view.stale);
    watching.stop();
}
