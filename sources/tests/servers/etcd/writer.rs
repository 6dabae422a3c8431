//! The writer's side.

use super::alone;
use marea_sources::etcd::{Client, EtcdError, Guard, Write};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn write(puts: &[(&str, &str)], deletes: &[&str], guard: Guard) -> Write {
    Write {
        puts: puts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>(),
        deletes: deletes.iter().map(|k| (*k).to_owned()).collect::<BTreeSet<_>>(),
        ttl: None,
        guard,
    }
}

#[test]
fn what_is_written_stands_at_one_revision_if_nothing_has_changed() {
    let (_guard, ctl) = alone();
    let client = Client::connect(&ctl.config()).unwrap();
    let folder = ["/echo/policy/M1/".to_owned()];
    let empty = client.read().unwrap();
    assert_eq!(empty.revision_of(&folder), 0);
    let first = client.write(&write(
        &[("/echo/policy/M1/max_spread", "1"), ("/echo/policy/M1/enabled", "true")],
        &[],
        Guard::new(&empty, &folder),
    ));
    let first = first.unwrap();
    let tree = client.read().unwrap();
    assert_eq!((tree.revision, tree.revision_of(&folder)), (first, first));
    assert_eq!(tree.below("/echo/policy/M1/").count(), 2);

    // A key more, a key changed, a key gone: each is a conflict, and then nothing is written.
    for (change, back) in [
        (["put", "/echo/policy/M1/max_delay_ms", "5"], ["del", "/echo/policy/M1/max_delay_ms", ""]),
        (["put", "/echo/policy/M1/enabled", "false"], ["put", "/echo/policy/M1/enabled", "true"]),
        (["del", "/echo/policy/M1/enabled", ""], ["put", "/echo/policy/M1/enabled", "true"]),
    ] {
        let tree = client.read().unwrap();
        let arguments = |change: [&'static str; 3]| change.into_iter().filter(|a| !a.is_empty()).collect::<Vec<_>>();
        ctl.run(&arguments(change));
        let late = write(&[("/echo/policy/M1/max_spread", "9")], &["/echo/policy/M1/x"], Guard::new(&tree, &folder));
        assert_eq!(client.write(&late), Err(EtcdError::Conflict), "{change:?}");
        ctl.run(&arguments(back));
    }
    // Another account's change is none of this guard's business.
    let tree = client.read().unwrap();
    ctl.put("/echo/policy/M2/enabled", "false");
    let good = write(&[("/echo/policy/M1/max_spread", "3")], &["/echo/policy/M1/enabled"], Guard::new(&tree, &folder));
    client.write(&good).unwrap();
    let expected = [("/echo/policy/M1/max_spread", "3"), ("/echo/policy/M2/enabled", "false")];
    assert_eq!(ctl.tree(), expected.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
}

#[test]
fn a_lease_ends_what_it_was_written_with_and_a_conflict_leaves_none() {
    let (_guard, ctl) = alone();
    let client = Client::connect(&ctl.config()).unwrap();
    let tree = client.read().unwrap();
    let folder = ["/echo/windows/M1/IBM/".to_owned()];
    let guard = Guard::new(&tree, &folder);
    let leased = Write {
        ttl: Some(Duration::from_secs(2)),
        ..write(&[("/echo/windows/M1/IBM/active", "true")], &[], guard.clone())
    };
    client.write(&leased).unwrap();
    let stored = client.read().unwrap().keys["/echo/windows/M1/IBM/active"].clone();
    assert!(stored.lease != 0);
    assert!(client.left(stored.lease).unwrap().is_some_and(|left| left <= Duration::from_secs(2)));
    assert_eq!(client.write(&leased), Err(EtcdError::Conflict));
    assert_eq!(ctl.run(&["lease", "list"]).lines().count(), 2, "one lease and a headline");
    marea_servers::wait_until(Duration::from_secs(10), "the lease ends", || ctl.tree().is_empty());
    assert_eq!(client.left(stored.lease).unwrap(), None);
}

#[test]
fn the_first_endpoint_that_answers_is_asked() {
    let (_guard, ctl) = alone();
    let mut config = ctl.config();
    config.endpoints.insert(0, "http://127.0.0.1:1".to_owned());
    assert!(Client::connect(&config).unwrap().read().is_ok());
    config.endpoints.truncate(1);
    let error = Client::connect(&config).unwrap_err().to_string();
    assert!(error.starts_with("no endpoint of etcd answers: etcd http://127.0.0.1:1: "), "{error}");
}
