//! Whatever happens to Redis: it converges to what the store has, and the store does not notice.

use crate::desk::{Desk, SYMBOLS};
use redis::{Commands, Connection};
use std::time::Duration;

/// A small generator, the same everywhere (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }
}

fn run(redis: &mut Connection, command: &[&str]) {
    let mut built = redis::cmd(command[0]);
    built.arg(&command[1..]);
    built.query::<redis::Value>(redis).unwrap_or_else(|error| panic!("{command:?}: {error}"));
}

const KINDS: usize = 20;

/// Does one thing to Redis, and says what.
async fn disturb(desk: &mut Desk, dice: &mut Dice, kind: usize, n: u64) -> String {
    let mut redis = desk.redis().unwrap();
    let symbol = SYMBOLS[dice.roll(3)];
    let latest = [
        format!("recommendation:{symbol}:latest"),
        format!("verdict:M1:{symbol}:latest"),
        format!("verdict:S%3A2:{symbol}:latest"),
        format!("market_data:{symbol}:1m:latest"),
    ];
    let latest = &latest[dice.roll(4)];
    let stream =
        if dice.roll(2) == 0 { format!("recommendation:{symbol}:stream") } else { "verdict:M1:stream".to_owned() };
    let foreign =
        |epoch: u64, generation: u64| format!(r#"{{"seq":1,"epoch":{epoch},"generation":{generation},"x":1}}"#);
    let generation = desk.store.standing().generation;
    let what = match kind {
        0 => {
            run(&mut redis, &["FLUSHALL"]);
            "FLUSHALL".to_owned()
        }
        1 => {
            desk.server.kill().unwrap();
            desk.trade(n + 1).await;
            desk.server.restart().unwrap();
            "kill -9".to_owned()
        }
        2 => {
            run(&mut redis, &["SAVE"]);
            desk.trade(n + 1).await;
            desk.trade(n + 2).await;
            desk.converges("between").await;
            desk.server.kill().unwrap();
            desk.server.restart().unwrap();
            "an old RDB".to_owned()
        }
        3 => {
            run(&mut redis, &["DEL", latest]);
            format!("DEL {latest}")
        }
        4 => {
            run(&mut redis, &["DEL", latest]);
            run(&mut redis, &["LPUSH", latest, "x"]);
            format!("a list at {latest}")
        }
        5 => {
            run(&mut redis, &["SET", latest, &foreign(desk.epoch + 1_000_000, generation)]);
            format!("a future epoch at {latest}")
        }
        6 => {
            run(&mut redis, &["SET", latest, &foreign(1, generation + 7)]);
            format!("a future generation at {latest}")
        }
        7 => {
            run(&mut redis, &["SET", latest, "garbage"]);
            format!("garbage at {latest}")
        }
        8 => {
            run(&mut redis, &["DEL", "marea:sentinel"]);
            "no sentinel".to_owned()
        }
        9 => {
            run(&mut redis, &["SET", "marea:sentinel", &foreign(desk.epoch + 5, generation + 1)]);
            "a future sentinel".to_owned()
        }
        10 => {
            run(&mut redis, &["DEL", "marea:sentinel"]);
            run(&mut redis, &["LPUSH", "marea:sentinel", "x"]);
            "a list for a sentinel".to_owned()
        }
        11 => {
            run(&mut redis, &["DEL", &stream]);
            format!("DEL {stream}")
        }
        12 => {
            run(&mut redis, &["XADD", &stream, "99999999-0", "body", "{}"]);
            format!("a future entry in {stream}")
        }
        13 => {
            run(&mut redis, &["DEL", &stream]);
            run(&mut redis, &["SET", &stream, "x"]);
            format!("a string at {stream}")
        }
        14 => {
            run(&mut redis, &["DEL", "marea:index"]);
            run(&mut redis, &["SET", "marea:index", "x"]);
            run(&mut redis, &["DEL", "marea:sentinel"]);
            "a string for an index, and no sentinel".to_owned()
        }
        15 => {
            run(&mut redis, &["CONFIG", "SET", "maxmemory", "1"]);
            desk.trade(n + 1).await;
            desk.wait_for("OOM", |desk| desk.metric("marea_redis_up ") == 0.0).await;
            run(&mut redis, &["CONFIG", "SET", "maxmemory", "0"]);
            "OOM".to_owned()
        }
        16 => {
            run(&mut redis, &["REPLICAOF", "127.0.0.1", "1"]);
            desk.trade(n + 1).await;
            desk.wait_for("READONLY", |desk| desk.metric("marea_redis_up ") == 0.0).await;
            run(&mut redis, &["REPLICAOF", "NO", "ONE"]);
            "READONLY".to_owned()
        }
        17 => {
            desk.server.pause().unwrap();
            desk.trade(n + 1).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            desk.server.resume().unwrap();
            "SIGSTOP".to_owned()
        }
        18 => {
            run(&mut redis, &["SCRIPT", "FLUSH"]);
            "SCRIPT FLUSH".to_owned()
        }
        _ => {
            run(&mut redis, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            "connections killed".to_owned()
        }
    };
    format!("{n}: {what}")
}

/// 30 disturbances in a seeded order; each kind once at least. What is committed was published before, now and then.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_it_converges_to_the_store() {
    let mut desk = Desk::new().await;
    let mut dice = Dice(0x5eed);
    let mut kinds: Vec<usize> = (0..KINDS).collect();
    while kinds.len() < 30 {
        kinds.push(dice.roll(KINDS));
    }
    for i in (1..kinds.len()).rev() {
        kinds.swap(i, dice.roll(i + 1));
    }
    desk.trade(0).await;
    desk.converges("the first").await;
    let mut longest = (Duration::ZERO, String::new());
    for (i, kind) in kinds.into_iter().enumerate() {
        let n = i as u64 * 10;
        desk.early = dice.roll(3) > 0;
        let what = disturb(&mut desk, &mut dice, kind, n).await;
        if dice.roll(2) == 0 {
            desk.trade(n + 5).await;
        }
        let took = desk.converges(&what).await;
        longest = longest.max((took, what));
    }
    println!("the longest took {:?} ({})", longest.0, longest.1);
    assert!(!desk.task.is_finished());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_stands_still_delays_no_commit() {
    let mut desk = Desk::new().await;
    desk.trade(0).await;
    desk.converges("the first").await;
    desk.server.pause().unwrap();
    // If one waited for Redis, this would never end.
    for n in 1..=200 {
        desk.trade(n).await;
    }
    assert_eq!(desk.store.standing().upper, desk.epoch + 1);
    desk.wait_for("it shows", |desk| desk.metric("marea_redis_up ") == 0.0).await;
    assert!(desk.metric("marea_redis_lag_seconds ") > 0.0);
    desk.server.resume().unwrap();
    desk.converges("resumed").await;
    desk.wait_for("up", |desk| desk.metric("marea_redis_up ") == 1.0).await;
    assert!(desk.metric("marea_redis_errors_total{kind=\"timeout\"} ") > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_is_counted_by_kind() {
    let mut desk = Desk::new().await;
    desk.trade(0).await;
    desk.converges("the first").await;
    let mut redis = desk.redis().unwrap();
    let count = |desk: &Desk, kind: &str| desk.metric(&format!("marea_redis_errors_total{{kind=\"{kind}\"}} "));
    for (kind, begin, end) in [
        ("oom", ["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
        ("readonly", ["REPLICAOF", "127.0.0.1", "1", ""], ["REPLICAOF", "NO", "ONE", ""]),
    ] {
        let words = |command: [&'static str; 4]| command.into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>();
        run(&mut redis, &words(begin));
        desk.trade(1).await;
        desk.wait_for(kind, |desk| count(desk, kind) > 0.0).await;
        // Nobody acts on what may be old.
        run(&mut redis, &words(end));
        desk.converges(kind).await;
    }
    redis.del::<_, ()>("verdict:M1:IBM:latest").unwrap();
    redis.lpush::<_, _, ()>("verdict:M1:IBM:latest", "x").unwrap();
    desk.wait_for("wrongtype", |desk| count(desk, "wrongtype") > 0.0).await;
    desk.converges("wrongtype").await;
    let rebuilds = desk.metric("marea_redis_rebuilds_total ");
    run(&mut redis, &["FLUSHALL"]);
    desk.converges("FLUSHALL").await;
    assert!(desk.metric("marea_redis_rebuilds_total ") > rebuilds);
    drop(desk);
}
