use super::*;
use proptest::prelude::*;

fn key(name: &str, value: &str, revision: i64) -> Change {
    Change { key: name.into(), value: Some(value.into()), revision }
}

fn gone(name: &str, revision: i64) -> Change {
    Change { key: name.into(), value: None, revision }
}

fn range(revision: i64, keys: &[Change]) -> Range {
    Range { cluster: 1, revision, keys: keys.to_vec() }
}

fn deleted(name: &str, revision: u64) -> ConfigUpdate {
    ConfigUpdate::Delete { key: name.into(), revision }
}

/// Knows a=1 and b=1 as of revision 10.
fn known() -> State {
    State::new(range(10, &[key("a", "1", 4), key("b", "1", 9)]))
}

#[test]
fn a_range_says_what_differs() {
    let mut state = known();
    let floor = state.seen();
    assert_eq!(state.range(range(10, &[key("a", "1", 4), key("b", "1", 9)]), floor), []);
    let updates = state.range(range(13, &[key("a", "2", 12), key("c", "1", 13)]), floor);
    assert_eq!(updates, [put("a", "2", 12), deleted("b", 13), put("c", "1", 13)]);
    assert_eq!((state.next(), state.standing()), (14, 2));
    // Written again with the same text: the revision is what an error names.
    assert_eq!(state.range(range(15, &[key("a", "2", 15), key("c", "1", 13)]), floor), [put("a", "2", 15)]);
}

#[test]
fn a_range_that_is_behind_the_watch_changes_nothing_that_is_newer() {
    for (event, left) in [(key("a", "2", 12), 2), (gone("a", 12), 1), (key("new", "1", 12), 3)] {
        let mut state = known();
        let floor = state.seen();
        assert_eq!(state.events(vec![event.clone()]).len(), 1);
        let before = state.clone();
        // Asked for at 10, made at 11, arrived after the event.
        assert_eq!(state.range(range(11, &[key("a", "1", 4), key("b", "1", 9)]), floor), [], "{event:?}");
        assert_eq!((&state.keys, state.standing()), (&before.keys, left));
    }
}

#[test]
fn an_event_counts_once_and_only_after_the_range() {
    for (event, said) in [
        (key("a", "0", 3), vec![]),
        (key("a", "2", 10), vec![]),
        (gone("b", 10), vec![]),
        (key("a", "2", 11), vec![vec![put("a", "2", 11)]]),
        (gone("b", 11), vec![vec![deleted("b", 11)]]),
        (gone("unknown", 11), vec![]),
    ] {
        let mut state = known();
        assert_eq!(state.events(vec![event.clone()]), said, "{event:?}");
        assert_eq!(state.events(vec![event.clone()]), Vec::<Vec<ConfigUpdate>>::new(), "twice: {event:?}");
    }
    let mut state = known();
    state.events(vec![gone("a", 12)]);
    assert!(state.events(vec![key("a", "1", 11)]).is_empty(), "a watch that begins anew before the deletion");
}

#[test]
fn the_events_of_a_revision_stay_together() {
    let mut state = known();
    let events = vec![key("a", "2", 11), gone("b", 11), key("c", "1", 12), key("a", "3", 13), key("c", "2", 13)];
    let expected = vec![
        vec![put("a", "2", 11), deleted("b", 11)],
        vec![put("c", "1", 12)],
        vec![put("a", "3", 13), put("c", "2", 13)],
    ];
    assert_eq!(state.events(events), expected);
    // The rest of a revision that came in two answers is not lost.
    assert_eq!(state.events(vec![key("d", "1", 13)]), vec![vec![put("d", "1", 13)]]);
    assert_eq!(state.standing(), 3);
}

#[test]
fn another_history_replaces_everything() {
    let newer = key("a", "9", 50);
    for (what, cluster, at) in [("another cluster", 2, 60), ("a lower revision", 1, 7)] {
        let mut state = known();
        state.events(vec![newer.clone()]);
        let floor = state.seen();
        assert!(!state.continues(cluster, at, floor), "{what}");
        let new = Range { cluster, revision: at, keys: vec![key("b", "2", 6)] };
        assert_eq!(state.range(new, floor), [deleted("a", at as u64), put("b", "2", 6)], "{what}");
        // Events of the new history count, though their numbers are lower than those of the old one.
        assert_eq!(state.events(vec![key("b", "3", at + 1)]), vec![vec![put("b", "3", at + 1)]], "{what}");
        let floor = state.seen();
        assert!(state.continues(cluster, at + 1, floor), "{what}");
    }
}

#[test]
fn silence_is_said_once_and_ends_with_a_range() {
    let mut state = known();
    assert_eq!(state.silence(), [ConfigUpdate::Stale(true)]);
    assert_eq!(state.silence(), []);
    // An event is not yet the whole tree.
    assert_eq!(state.events(vec![key("a", "2", 11)]).len(), 1);
    assert!(state.is_stale());
    let floor = state.seen();
    let updates = state.range(range(12, &[key("a", "2", 11)]), floor);
    assert_eq!(updates, [deleted("b", 12), ConfigUpdate::Stale(false)]);
    assert_eq!(state.silence(), [ConfigUpdate::Stale(true)]);
}

/// A step of a random life.
#[derive(Clone, Debug)]
enum Step {
    /// A transaction: the key's number, and its new value or none.
    Write(Vec<(u8, Option<u8>)>),
    /// The next events arrive.
    Deliver(usize),
    /// The next events are lost.
    Lose(usize),
    /// Events arrive that had arrived before.
    Repeat(usize),
    /// A Range is asked for.
    Ask,
    /// The Range that was asked for has been made.
    Make,
    /// It arrives.
    Answer,
    Silence,
    /// A backup is restored: the last revisions are gone.
    Restore(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = prop::collection::vec((0u8..6, prop::option::weighted(0.7, 0u8..3)), 1..4);
    let step = prop_oneof![
        6 => write.prop_map(Step::Write),
        4 => (1usize..5).prop_map(Step::Deliver),
        1 => (1usize..3).prop_map(Step::Lose),
        1 => (1usize..5).prop_map(Step::Repeat),
        2 => Just(Step::Ask),
        2 => Just(Step::Make),
        2 => Just(Step::Answer),
        1 => Just(Step::Silence),
        1 => (1usize..4).prop_map(Step::Restore),
    ];
    prop::collection::vec(step, 1..60)
}

/// The server: revisions as transactions, from which any state follows.
#[derive(Clone, Default)]
struct Server(Vec<Vec<Change>>);

impl Server {
    fn revision(&self) -> i64 {
        self.0.len() as i64
    }

    fn write(&mut self, changes: &[(u8, Option<u8>)]) {
        let revision = self.revision() + 1;
        let unique: BTreeMap<u8, Option<u8>> = changes.iter().copied().collect();
        let standing = self.tree();
        let change = |(key, value): (u8, Option<u8>)| Change {
            key: format!("k{key}"),
            value: value.map(|v| v.to_string()),
            revision,
        };
        // The deletion of what is not there is no event.
        let changes = unique.into_iter().map(change).filter(|c| c.value.is_some() || standing.contains_key(&c.key));
        let changes: Vec<Change> = changes.collect();
        if !changes.is_empty() {
            self.0.push(changes);
        }
    }

    fn tree(&self) -> BTreeMap<String, Change> {
        let mut tree = BTreeMap::new();
        for change in self.0.iter().flatten() {
            match change.value {
                Some(_) => tree.insert(change.key.clone(), change.clone()),
                None => tree.remove(&change.key),
            };
        }
        tree
    }

    fn range(&self) -> Range {
        range(self.revision(), &self.tree().into_values().collect::<Vec<_>>())
    }
}

/// What a reader of the updates holds.
#[derive(Default)]
struct Reader {
    tree: BTreeMap<String, (String, u64)>,
    /// When each key, present or not, was last said to change.
    last: BTreeMap<String, u64>,
    /// The last Range: nothing that the watch says may be as old.
    ranged: u64,
    stale: bool,
}

impl Reader {
    fn watch(&mut self, updates: Vec<ConfigUpdate>) {
        let old = |u: &ConfigUpdate| matches!(u, ConfigUpdate::Put { revision, .. } | ConfigUpdate::Delete { revision, .. } if *revision <= self.ranged);
        assert!(!updates.iter().any(old), "a Range at {} knew better: {updates:?}", self.ranged);
        self.read(updates);
    }

    fn read(&mut self, updates: Vec<ConfigUpdate>) {
        for update in updates {
            if let ConfigUpdate::Put { key, revision, .. } | ConfigUpdate::Delete { key, revision } = &update {
                let last = self.last.insert(key.clone(), *revision);
                assert!(last.is_none_or(|last| *revision > last), "{key} goes from {last:?} to {revision}");
            }
            match update {
                ConfigUpdate::Put { key, value, revision } => drop(self.tree.insert(key, (value, revision))),
                ConfigUpdate::Delete { key, .. } => assert!(self.tree.remove(&key).is_some(), "{key} was not there"),
                ConfigUpdate::Stale(stale) => self.stale = stale,
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whatever_is_lost_repeated_or_late_a_range_makes_the_view_right(steps in steps()) {
        let mut server = Server::default();
        let mut state = State::new(server.range());
        let mut reader = Reader::default();
        // The watch has sent the revisions before `sent`; `asked` and `made` are a Range on its way.
        let (mut sent, mut asked, mut made) = (0usize, None, None);
        for step in steps {
            match step {
                Step::Write(changes) => server.write(&changes),
                Step::Deliver(n) => {
                    let upto = (sent + n).min(server.0.len());
                    let events = server.0[sent..upto].concat();
                    state.events(events).into_iter().for_each(|updates| {
                        let revisions: Vec<u64> = updates.iter().map(|u| match u {
                            ConfigUpdate::Put { revision, .. } | ConfigUpdate::Delete { revision, .. } => *revision,
                            ConfigUpdate::Stale(_) => 0,
                        }).collect();
                        assert!(revisions.iter().all(|r| *r == revisions[0]));
                        reader.watch(updates);
                    });
                    sent = upto;
                }
                Step::Lose(n) => sent = (sent + n).min(server.0.len()),
                Step::Repeat(n) => {
                    let events = server.0[sent.saturating_sub(n)..sent].concat();
                    // What was lost before is new, and may come late; nothing newer is undone.
                    state.events(events).into_iter().for_each(|updates| reader.watch(updates));
                }
                Step::Ask => (asked, made) = (Some(state.seen()), None),
                Step::Make => made = asked.is_some().then(|| server.range()),
                Step::Answer => {
                    if let (Some(floor), Some(range)) = (asked.take(), made.take()) {
                        let at = range.revision as u64;
                        reader.read(state.range(range, floor));
                        reader.ranged = at;
                        prop_assert!(!reader.stale);
                    }
                }
                Step::Silence => reader.read(state.silence()),
                Step::Restore(n) => {
                    // The connection breaks: what was on its way is gone, and a Range comes first.
                    let left = server.0.len().saturating_sub(n);
                    server.0.truncate(left);
                    (asked, made) = (None, None);
                    let floor = state.seen();
                    // The numbers of the old history mean nothing in the new one.
                    reader.last.clear();
                    reader.read(state.range(server.range(), floor));
                    reader.ranged = server.0.len() as u64;
                    sent = server.0.len();
                }
            }
            prop_assert_eq!(state.standing(), reader.tree.len());
        }
        let floor = state.seen();
        reader.read(state.range(server.range(), floor));
        let expected: BTreeMap<String, (String, u64)> = server
            .tree()
            .into_iter()
            .map(|(key, c)| (key, (c.value.unwrap_or_default(), c.revision as u64)))
            .collect();
        prop_assert_eq!(reader.tree, expected);
        prop_assert!(!reader.stale);
    }

    #[test]
    fn without_losses_every_revision_is_seen_as_it_was(writes in prop::collection::vec(
        prop::collection::vec((0u8..6, prop::option::weighted(0.7, 0u8..3)), 1..4), 1..40), cut in 1usize..5) {
        let mut server = Server::default();
        for changes in &writes {
            server.write(changes);
        }
        let mut state = State::new(Server::default().range());
        let mut reader = Reader::default();
        let mut upto = Server::default();
        let batches: Vec<_> = server.0.chunks(cut).map(<[_]>::concat).collect();
        for updates in batches.into_iter().flat_map(|events| state.events(events)) {
            upto.0.push(server.0[upto.0.len()].clone());
            reader.read(updates);
            let tree: Vec<String> = upto.tree().into_keys().collect();
            prop_assert_eq!(reader.tree.keys().cloned().collect::<Vec<_>>(), tree);
        }
        prop_assert_eq!(upto.0.len(), server.0.len());
    }
}
