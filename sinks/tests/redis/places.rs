//! Where Redis is: behind Sentinels, or in the parts of a Cluster.

use crate::desk::Desk;
use marea_servers::Redis as Server;

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_lead_to_the_next_master_when_one_is_gone() {
    let master = Server::start().unwrap();
    let (replica, sentinel) = (master.replica().unwrap(), master.sentinel().unwrap());
    let mut desk = Desk::at(master, sentinel.url(), false).await;
    desk.early = true;
    desk.trade(0).await;
    desk.converges("the first").await;
    desk.wait_for("a connection for early values", |desk| desk.client("marea-early").is_some()).await;
    desk.server.kill().unwrap();
    desk.server = replica;
    for n in 1..=20 {
        desk.trade(n).await;
    }
    let took = desk.converges("the failover").await;
    println!("{took:?} after the last commit");
    desk.trade(21).await;
    desk.wait_for("another connection for early values", |desk| desk.client("marea-early").is_some()).await;
    desk.trade(22).await;
    desk.converges("the new master").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_of_a_cluster_have_together_what_the_store_has() {
    let mut nodes = Server::cluster(3).unwrap();
    let first = nodes.remove(0);
    let url = first.url().replace("redis://", "redis+cluster://");
    let mut desk = Desk::at(first, url, true).await;
    desk.others = nodes;
    for n in 0..10 {
        desk.early = n % 2 == 1;
        desk.trade(n).await;
    }
    desk.converges("a Cluster").await;
    let sizes = desk.sizes();
    assert!(sizes.iter().all(|size| *size > 0), "every node has a part: {sizes:?}");
    assert_eq!(desk.metric("marea_redis_rebuilds_total "), 1.0);
    assert!(desk.metric("marea_redis_early_values_total{way=\"queued\"} ") > 0.0);
}
