//! How a connection to Kafka is secured: what a source and a publisher have in common.

use std::fmt;
use std::path::PathBuf;

/// How the connection is secured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protocol {
    /// Not at all.
    #[default]
    Plaintext,
    /// TLS.
    Ssl,
    /// A user and password, in clear.
    SaslPlaintext,
    /// A user and password, over TLS.
    SaslSsl,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Protocol; 4] = [Protocol::Plaintext, Protocol::Ssl, Protocol::SaslPlaintext, Protocol::SaslSsl];

    /// Its name in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Plaintext => "plaintext",
            Protocol::Ssl => "ssl",
            Protocol::SaslPlaintext => "sasl_plaintext",
            Protocol::SaslSsl => "sasl_ssl",
        }
    }

    /// Whether it needs certificates.
    pub fn has_tls(self) -> bool {
        matches!(self, Protocol::Ssl | Protocol::SaslSsl)
    }

    /// Whether it needs a user.
    pub fn has_user(self) -> bool {
        matches!(self, Protocol::SaslPlaintext | Protocol::SaslSsl)
    }
}

/// How brokers are trusted, and how they trust us. Its `Debug` shows no passwords.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Security {
    /// TLS, a user, both, or neither.
    pub protocol: Protocol,
    /// The certificates (PEM) that are trusted; the system's without.
    pub ca: Option<PathBuf>,
    /// Our own certificate (PEM).
    pub certificate: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
    /// What opens the key.
    pub key_password: Option<String>,
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: Option<String>,
    /// The user.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<String>,
}

impl Security {
    /// As librdkafka's settings, those that are set.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        let settings = [
            ("security.protocol", Some(self.protocol.as_str().to_owned())),
            ("ssl.ca.location", path(&self.ca)),
            ("ssl.certificate.location", path(&self.certificate)),
            ("ssl.key.location", path(&self.key)),
            ("ssl.key.password", self.key_password.clone()),
            ("sasl.mechanisms", self.mechanism.clone()),
            ("sasl.username", self.username.clone()),
            ("sasl.password", self.password.clone()),
        ];
        settings.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |secret: &Option<String>| secret.as_ref().map(|_| "…");
        f.debug_struct("Security")
            .field("protocol", &self.protocol)
            .field("ca", &self.ca)
            .field("certificate", &self.certificate)
            .field("key", &self.key)
            .field("key_password", &hidden(&self.key_password))
            .field("mechanism", &self.mechanism)
            .field("username", &self.username)
            .field("password", &hidden(&self.password))
            .finish()
    }
}
