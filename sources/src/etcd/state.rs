//! What is known of the tree, and what has to be said about it: no input, no output, no clock.
//!
//! Two ways lead here, and either may be ahead of the other: Ranges (all keys at a revision) and watch events (one
//! key at a revision). A key is changed only by what is newer than what it says already:
//!
//! | arrives | changes |
//! |---|---|
//! | a Range at R | keys whose last change, a deletion too, is at R or before |
//! | an event at E | its key, if E is after the last Range and after the key's last change |
//! | a Range at R of another cluster, or before a revision that was seen before it was asked for | everything: the history is another one |

use marea_model::ConfigUpdate;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// A key as it stands, or (without a value) its deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// As text.
    pub(super) key: String,
    /// As text; none: deleted.
    pub(super) value: Option<String>,
    /// Of its last modification.
    pub(super) revision: i64,
}

/// All keys at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) cluster: u64,
    pub(super) revision: i64,
    /// Without deletions.
    pub(super) keys: Vec<Change>,
}

/// What a key says: its text, or that it is gone; and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    value: Option<String>,
    revision: i64,
}

/// The tree as far as it has been said.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct State {
    cluster: u64,
    /// Of the last Range.
    ranged: i64,
    /// The greatest revision that any answer has named.
    seen: i64,
    /// With the deletions since the last Range.
    keys: BTreeMap<String, Known>,
    /// How many of them stand.
    standing: usize,
    stale: bool,
}

impl State {
    /// What this Range says has already been said.
    pub(super) fn new(range: Range) -> Self {
        let mut state = State::default();
        let updates = state.range(range, i64::MIN);
        debug_assert!(updates.iter().all(|update| !matches!(update, ConfigUpdate::Stale(_))));
        state
    }

    /// The revision after the last Range: where a watch begins.
    pub(super) fn next(&self) -> i64 {
        self.ranged + 1
    }

    /// The greatest revision that any answer has named.
    pub(super) fn seen(&self) -> i64 {
        self.seen
    }

    /// How many keys stand.
    pub(super) fn standing(&self) -> usize {
        self.standing
    }

    /// When one of those that stand was modified last; 0 without keys.
    pub(super) fn modified(&self) -> i64 {
        let standing = self.keys.values().filter(|known| known.value.is_some());
        standing.map(|known| known.revision).max().unwrap_or(0)
    }

    pub(super) fn is_stale(&self) -> bool {
        self.stale
    }

    /// Nobody answers. What there is to say.
    pub(super) fn silence(&mut self) -> Vec<ConfigUpdate> {
        if std::mem::replace(&mut self.stale, true) { Vec::new() } else { vec![ConfigUpdate::Stale(true)] }
    }

    /// Whether an answer of this cluster at this revision belongs to the history that is known, where `floor` is what
    /// [`seen`](Self::seen) was when it was asked for.
    pub(super) fn continues(&mut self, cluster: u64, revision: i64, floor: i64) -> bool {
        let continues = cluster == self.cluster && revision >= floor;
        if continues {
            self.seen = self.seen.max(revision);
        }
        continues
    }

    /// Takes a Range in; `floor` is what [`seen`](Self::seen) was when it was asked for. What there is to say: the
    /// differences, ordered by key, and that the source answers again.
    pub(super) fn range(&mut self, range: Range, floor: i64) -> Vec<ConfigUpdate> {
        let Range { cluster, revision: at, keys } = range;
        let another = !self.continues(cluster, at, floor);
        let mut new: BTreeMap<String, Known> = BTreeMap::new();
        let mut updates = Vec::new();
        if another {
            (self.cluster, self.seen) = (cluster, at);
        } else {
            // What the watch has said since this Range was made stands.
            new.extend(self.keys.iter().filter(|(_, known)| known.revision > at).map(|(k, v)| (k.clone(), v.clone())));
        }
        for Change { key, value, revision } in keys {
            let Entry::Vacant(place) = new.entry(key) else { continue };
            if let Some(value) = &value
                && self.keys.get(place.key()).is_none_or(|k| k.value.as_ref() != Some(value) || k.revision != revision)
            {
                updates.push(put(place.key(), value, revision));
            }
            place.insert(Known { value, revision });
        }
        for (key, known) in &self.keys {
            if known.value.is_some() && !new.contains_key(key) {
                updates.push(ConfigUpdate::Delete { key: key.clone(), revision: unsigned(at) });
            }
        }
        updates.sort_by(|a, b| a.key().cmp(&b.key()));
        self.keys = new;
        self.standing = self.keys.values().filter(|known| known.value.is_some()).count();
        self.ranged = at;
        if std::mem::take(&mut self.stale) {
            updates.push(ConfigUpdate::Stale(false));
        }
        updates
    }

    /// Takes the events of one answer of the watch in, ordered by revision. What there is to say, by revision.
    pub(super) fn events(&mut self, events: Vec<Change>) -> Vec<Vec<ConfigUpdate>> {
        let mut said: Vec<Vec<ConfigUpdate>> = Vec::new();
        let mut last = None;
        for Change { key, value, revision } in events {
            self.seen = self.seen.max(revision);
            let before = self.keys.get(&key);
            if revision <= self.ranged || before.is_some_and(|known| revision <= known.revision) {
                continue;
            }
            let stood = before.is_some_and(|known| known.value.is_some());
            let update = match &value {
                Some(value) => Some(put(&key, value, revision)),
                // Of a key that was never said: written and deleted between a Range and its watch.
                None if !stood => None,
                None => Some(ConfigUpdate::Delete { key: key.clone(), revision: unsigned(revision) }),
            };
            self.standing = self.standing + usize::from(value.is_some()) - usize::from(stood);
            self.keys.insert(key, Known { value, revision });
            let Some(update) = update else { continue };
            match said.last_mut().filter(|_| last == Some(revision)) {
                Some(updates) => updates.push(update),
                None => said.push(vec![update]),
            }
            last = Some(revision);
        }
        said
    }
}

fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or_default()
}

fn put(key: &str, value: &str, revision: i64) -> ConfigUpdate {
    ConfigUpdate::Put { key: key.to_owned(), value: value.to_owned(), revision: unsigned(revision) }
}

#[cfg(test)]
mod tests;
