//! The live configuration: one tree of keys and text values, written by a TOML file or by etcd, read by operators.

/// One change of the tree.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ConfigUpdate {
    /// The key has this value now.
    Put {
        /// `/echo/policy/M1/max_spread`
        key: String,
        /// `20`
        value: String,
        /// Of the source.
        revision: u64,
    },
    /// The key is gone.
    Delete {
        /// The key.
        key: String,
        /// Of the source.
        revision: u64,
    },
    /// Whether the source has stopped answering (or its file cannot be read): entries are blocked, POLICY_STALE.
    Stale(bool),
}

/// The tree, parsed. A value that cannot be read is kept as what it blocks.
#[derive(Clone, Debug, Default)]
pub struct LiveConfig {}
