//! Interned names: [`Symbol`], [`AccountId`], [`StrategyId`] and [`Partition`].
//!
//! A name is a pointer to an entry that lives as long as the process: 8 bytes, `Copy`, equal iff the pointers are.
//! It orders by its text, so that everything done "in id order" is the same on every machine and worker, and hashes
//! by a fixed hash of its text, so that it reaches the same worker in every run.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::{LazyLock, RwLock};

struct Entry {
    text: Box<str>,
    hash: u64,
}

static ENTRIES: LazyLock<RwLock<HashMap<&'static str, &'static Entry>>> = LazyLock::new(Default::default);

/// FNV-1a with a final mix: fixed for all time, since it routes names to workers.
fn stable_hash(text: &str) -> u64 {
    let fnv = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    (fnv ^ (fnv >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn intern(text: &str) -> &'static Entry {
    if let Some(entry) = ENTRIES.read().unwrap_or_else(|e| e.into_inner()).get(text) {
        return entry;
    }
    let mut entries = ENTRIES.write().unwrap_or_else(|e| e.into_inner());
    if let Some(entry) = entries.get(text) {
        return entry;
    }
    let entry: &'static Entry = Box::leak(Box::new(Entry { text: text.into(), hash: stable_hash(text) }));
    entries.insert(&entry.text, entry);
    entry
}

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} must be 1 to {max} of {allowed}")]
pub struct NameError {
    kind: &'static str,
    text: String,
    max: usize,
    allowed: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:literal, $allowed:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $name(&'static Entry);

        impl $name {
            /// The name, if `text` is one.
            pub fn new(text: &str) -> Result<Self, NameError> {
                let valid: fn(u8) -> bool = $valid;
                if text.is_empty() || text.len() > $max || !text.bytes().all(valid) {
                    let text = text.chars().take(64).collect();
                    return Err(NameError { kind: $kind, text, max: $max, allowed: $allowed });
                }
                Ok($name(intern(text)))
            }

            /// Its text.
            pub fn as_str(self) -> &'static str {
                &self.0.text
            }

            /// A hash of the text, the same in every process.
            pub fn stable_hash(self) -> u64 {
                self.0.hash
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                std::ptr::eq(self.0, other.0)
            }
        }
        impl Eq for $name {}
        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                if self == other { Ordering::Equal } else { self.0.text.cmp(&other.0.text) }
            }
        }
        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                state.write_u64(self.0.hash);
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                $name::new(text)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                $name::new(&String::deserialize(d)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// An instrument's symbol in its canonical form (upper case). [`Symbol::canonical`] accepts lower case too.
    Symbol, "symbol", 32, "A-Z, 0-9, . _ / - :",
    |b| b.is_ascii_uppercase() || b.is_ascii_digit() || b"._/-:".contains(&b)
);
name!(
    /// An account's name.
    AccountId, "account", 64, "letters, digits, . _ - @ :",
    |b| b.is_ascii_alphanumeric() || b"._-@:".contains(&b)
);
name!(
    /// A strategy's name.
    StrategyId, "strategy id", 64, "letters, digits, . _ - :",
    |b| b.is_ascii_alphanumeric() || b"._-:".contains(&b)
);
name!(
    /// Where a source reads: a file, a topic's partition, the synthetic market.
    Partition, "partition", 512, "printable characters",
    |b| b >= b' ' && b != 0x7f
);

impl Symbol {
    /// The symbol that `text` names, lower case made upper.
    pub fn canonical(text: &str) -> Result<Self, NameError> {
        if text.bytes().any(|b| b.is_ascii_lowercase()) && text.len() <= 32 {
            return Symbol::new(&text.to_ascii_uppercase());
        }
        Symbol::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_pointer_and_orders_by_text() {
        let (b, a) = (Symbol::new("B").unwrap(), Symbol::new("A").unwrap());
        assert!(a < b);
        assert_eq!(Symbol::canonical("eurusd").unwrap(), Symbol::new("EURUSD").unwrap());
        assert_eq!(size_of::<Option<Symbol>>(), 8);
    }

    #[test]
    fn bad_symbols_are_named() {
        for text in ["", "a", "A B", "A\0", "A\u{e9}", &"A".repeat(33), &"A".repeat(257)] {
            assert!(Symbol::new(text).is_err(), "{text:?}");
        }
        let error = Symbol::new("A B").unwrap_err().to_string();
        assert_eq!(error, "symbol \"A B\" must be 1 to 32 of A-Z, 0-9, . _ / - :");
    }
}
