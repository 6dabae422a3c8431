//! Where Redis is: behind Sentinels, or in the parts of a Cluster; and as a user who may not do everything.

use crate::desk::Desk;
use crate::early::{blocked, reads, until_direct};
use marea_model::BlockReason;
use marea_servers::Redis as Server;

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_lead_to_the_next_master_when_one_is_gone() {
    let master = Server::start().unwrap();
    let replica = master.replica().unwrap();
    let sentinel = master.sentinel(1).unwrap();
    let mut desk = Desk::at(master, sentinel.url(), false).await;
    desk.trade(0).await;
    desk.converges("the first").await;
    until_direct(&mut desk).await;
    desk.others = vec![replica];
    desk.wait_for("a replica that has it", |desk| desk.sizes()[1] > 10).await;
    desk.server.kill().unwrap();
    desk.server = desk.others.remove(0);
    for n in 1..=20 {
        desk.trade(n).await;
    }
    let took = desk.converges("the failover").await;
    println!("{took:?} after the last commit");
    until_direct(&mut desk).await;
    desk.converges("the new master").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_of_a_cluster_have_together_what_the_store_has() {
    let mut nodes = Server::cluster(3).unwrap();
    let first = nodes.remove(0);
    let url = first.url().replace("redis://", "redis+cluster://");
    let mut desk = Desk::at(first, url, true).await;
    desk.others = nodes;
    desk.trade(0).await;
    desk.converges("the first").await;
    let epoch = desk.close(blocked(BlockReason::NoEquity));
    desk.sink.early(&epoch);
    desk.wait_for("an early value", |desk| reads(desk, &epoch)).await;
    desk.commit_all(&[epoch]).await;
    desk.early = true;
    for n in 1..10 {
        desk.trade(n).await;
    }
    desk.converges("a Cluster").await;
    let sizes = desk.sizes();
    assert!(sizes.iter().all(|size| *size > 0), "every node has a part: {sizes:?}");
    assert_eq!(desk.metric("marea_redis_rebuilds_total "), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_turn_answers_off_gets_early_values_too() {
    let server = Server::start().unwrap();
    let mut admin = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let rules = ["SETUSER", "desk", "on", ">sesame", "~*", "&*", "+@all", "-client|reply"];
    redis::cmd("ACL").arg(&rules).exec(&mut admin).unwrap();
    let url = server.url().replace("redis://", "redis://desk:sesame@");
    let mut desk = Desk::at(server, url, false).await;
    desk.trade(0).await;
    desk.converges("the first").await;
    let refused = |desk: &Desk| desk.metric("marea_redis_errors_total{kind=\"auth\"} ");
    for reason in [BlockReason::NoEquity, BlockReason::NoQuote] {
        let epoch = desk.close(blocked(reason));
        desk.sink.early(&epoch);
        desk.wait_for("an early value", |desk| reads(desk, &epoch)).await;
        desk.commit_all(&[epoch]).await;
        desk.wait_for("a refusal", |desk| refused(desk) > 0.0).await;
    }
    desk.converges("it").await;
    assert_eq!((desk.metric("marea_redis_early_values_total{way=\"direct\"} "), refused(&desk)), (0.0, 1.0));
}
