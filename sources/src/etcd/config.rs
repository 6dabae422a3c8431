//! Where etcd is, and who is asking.

use super::EtcdError;
use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where etcd is, and who is asking.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct EtcdConfig {
    /// `http://host:port` or `https://host:port` of each member.
    pub endpoints: Vec<String>,
    /// PEM file with the certificates of the authorities that may have signed the servers'.
    pub ca: Option<PathBuf>,
    /// PEM file with the certificate of the client, for servers that ask for one.
    pub cert: Option<PathBuf>,
    /// PEM file with the private key of `cert`.
    pub key: Option<PathBuf>,
    /// The user, where authentication is enabled.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .field("key", &self.key)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .finish()
    }
}

impl EtcdConfig {
    /// All that is wrong with it, as far as can be told without asking anybody; each names its key.
    pub fn check(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.endpoints.is_empty() {
            faults.push("etcd.endpoints: empty; name at least one, such as http://127.0.0.1:2379".to_owned());
        }
        for endpoint in &self.endpoints {
            if let Err(why) = check_endpoint(endpoint) {
                faults.push(format!("etcd.endpoints: {endpoint:?} {why}"));
            }
        }
        let secure = self.endpoints.iter().filter(|e| e.starts_with("https://")).count();
        if secure > 0 && secure < self.endpoints.len() {
            faults.push("etcd.endpoints: either all are https or none is".to_owned());
        }
        if secure > 0 && self.ca.is_none() {
            faults.push("etcd.ca: missing; https needs the certificate of the authority".to_owned());
        }
        for (name, path, label) in
            [("ca", &self.ca, "CERTIFICATE"), ("cert", &self.cert, "CERTIFICATE"), ("key", &self.key, "PRIVATE KEY")]
        {
            let Some(path) = path else { continue };
            if secure == 0 && !self.endpoints.is_empty() {
                faults.push(format!("etcd.{name}: means nothing without https endpoints"));
            }
            match std::fs::read(path) {
                Err(e) => faults.push(format!("etcd.{name}: {:?} cannot be read: {e}", path.display().to_string())),
                Ok(pem) if !has_pem(&pem, label) => {
                    faults.push(format!("etcd.{name}: {:?} holds no PEM {label}", path.display().to_string()));
                }
                Ok(_) => (),
            }
        }
        let mut both = |a: bool, b: bool, one: &str, other: &str| {
            if a != b {
                let (missing, there) = if a { (other, one) } else { (one, other) };
                faults.push(format!("etcd.{missing}: missing, though etcd.{there} is there"));
            }
        };
        both(self.cert.is_some(), self.key.is_some(), "cert", "key");
        both(self.user.is_some(), self.password.is_some(), "user", "password");
        if self.user.as_deref() == Some("") {
            faults.push("etcd.user: empty".to_owned());
        }
        faults
    }

    /// How to connect. Files are read each time, so that a certificate may be renewed.
    pub(super) fn options(&self, connect: Duration) -> Result<ConnectOptions, EtcdError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(connect)
            // A member without a leader would serve old events for ever.
            .with_require_leader(true)
            // Servers forbid pings more often than every five seconds; requests find a dead connection sooner.
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(2))
            .with_keep_alive_while_idle(true)
            .with_auto_token_refresh(true);
        if let (Some(user), Some(password)) = (&self.user, &self.password) {
            options = options.with_user(user.as_str(), password.as_str());
        }
        if self.endpoints.iter().any(|e| e.starts_with("https://")) {
            let mut tls = TlsOptions::new();
            if let Some(ca) = &self.ca {
                tls = tls.ca_certificate(Certificate::from_pem(read("ca", ca)?));
            }
            if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
                tls = tls.identity(Identity::from_pem(read("cert", cert)?, read("key", key)?));
            }
            options = options.with_tls(tls);
        }
        Ok(options)
    }
}

fn read(name: &'static str, path: &Path) -> Result<Vec<u8>, EtcdError> {
    std::fs::read(path).map_err(|e| EtcdError::File { key: name, path: path.to_owned(), cause: e.to_string() })
}

fn has_pem(bytes: &[u8], label: &str) -> bool {
    let text = String::from_utf8_lossy(bytes);
    text.lines().any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{label}-----")))
}

fn check_endpoint(text: &str) -> Result<(), &'static str> {
    let error = Err("must be http://HOST:PORT or https://HOST:PORT");
    let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else { return error };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let Some((host, port)) = rest.rsplit_once(':') else { return error };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b);
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let good = !host.is_empty() && host.bytes().all(plain) && host.contains(':') == bracketed;
    match port.parse::<u16>() {
        Ok(port) if good && port > 0 => Ok(()),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(endpoints: &[&str]) -> EtcdConfig {
        EtcdConfig { endpoints: endpoints.iter().map(|e| (*e).to_owned()).collect(), ..EtcdConfig::default() }
    }

    #[test]
    fn everything_that_is_wrong_is_listed_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let empty = file("empty.pem", "nothing");
        let cert = file("cert.pem", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n");
        let shown = |path: &Option<PathBuf>| path.as_ref().unwrap().display().to_string();
        assert_eq!(at(&["http://127.0.0.1:2379", "http://[::1]:1", "http://a-b.c:65535/"]).check(), [""; 0]);
        assert_eq!(
            EtcdConfig::default().check(),
            ["etcd.endpoints: empty; name at least one, such as http://127.0.0.1:2379"]
        );
        for text in
            ["", "127.0.0.1:2379", "http://x", "http://x:0", "http://x:70000", "http://:1", "ftp://x:1", "http://x:1/y"]
        {
            let why = format!("etcd.endpoints: {text:?} must be http://HOST:PORT or https://HOST:PORT");
            assert_eq!(at(&[text]).check(), [why]);
        }
        let config = EtcdConfig {
            ca: Some(folder.path().join("nowhere.pem")),
            cert: cert.clone(),
            user: Some(String::new()),
            ..at(&["https://x:1", "http://y:1"])
        };
        assert_eq!(
            config.check(),
            [
                "etcd.endpoints: either all are https or none is".to_owned(),
                format!("etcd.ca: {:?} cannot be read: No such file or directory (os error 2)", shown(&config.ca)),
                "etcd.key: missing, though etcd.cert is there".to_owned(),
                "etcd.password: missing, though etcd.user is there".to_owned(),
                "etcd.user: empty".to_owned(),
            ]
        );
        let config =
            EtcdConfig { cert: empty.clone(), key: cert.clone(), password: Some("x".into()), ..at(&["https://x:1"]) };
        assert_eq!(
            config.check(),
            [
                "etcd.ca: missing; https needs the certificate of the authority".to_owned(),
                format!("etcd.cert: {:?} holds no PEM CERTIFICATE", shown(&empty)),
                format!("etcd.key: {:?} holds no PEM PRIVATE KEY", shown(&cert)),
                "etcd.user: missing, though etcd.password is there".to_owned(),
            ]
        );
        let config = EtcdConfig { ca: cert, ..at(&["http://x:1"]) };
        assert_eq!(config.check(), ["etcd.ca: means nothing without https endpoints"]);
    }

    #[test]
    fn the_password_is_never_shown() {
        let config = EtcdConfig { user: Some("marea".into()), password: Some("hunter2".into()), ..at(&["http://x:1"]) };
        let shown = format!("{config:?} {config:#?}");
        assert!(shown.contains("***") && shown.contains("marea") && !shown.contains("hunter2"), "{shown}");
    }
}
