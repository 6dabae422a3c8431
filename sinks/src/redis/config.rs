//! Which Redis: one server, one that Sentinels name, or a Cluster.

use super::link::Target;
use marea_model::cursor::excerpt;

/// Which Redis, and how keys are written.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://[user:password@]host[:port][/db]`, `redis+sentinel://host[:port][,…]/service[/db]` or
    /// `redis+cluster://host[:port][,…]`; `rediss…` for TLS.
    pub url: String,
    /// Whether keys are written with braces, `recommendation:{IBM}:latest`: a Cluster needs them.
    pub hash_tags: bool,
}

/// Without the URL: it may have a password in it.
impl std::fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisConfig").field("hash_tags", &self.hash_tags).finish_non_exhaustive()
    }
}

impl RedisConfig {
    /// Everything that is wrong with it, each line naming its key first.
    pub fn check(&self) -> Vec<String> {
        match Target::parse(&self.url) {
            Err(must) => vec![format!("url: \"***\" {must}")],
            Ok(target) if target.is_cluster() && !self.hash_tags => {
                vec!["hash_tags: \"false\" must be true on a Cluster".to_owned()]
            }
            Ok(_) => Vec::new(),
        }
    }
}

/// A URL in its parts: kind, whether with TLS, credentials, hosts, path.
pub(super) struct Parts<'a> {
    pub(super) kind: &'a str,
    pub(super) tls: bool,
    /// `user:password@`, or nothing.
    pub(super) credentials: &'a str,
    pub(super) hosts: Vec<(String, Option<u16>)>,
    pub(super) path: Vec<&'a str>,
}

impl<'a> Parts<'a> {
    pub(super) fn read(url: &'a str) -> Result<Parts<'a>, String> {
        let must = || {
            "must be redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,…/SERVICE or redis+cluster://HOST:PORT,…, \
             with rediss for TLS"
                .to_owned()
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(must)?;
        let (scheme, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        if !["redis", "rediss"].contains(&scheme) || !["", "sentinel", "cluster"].contains(&kind) {
            return Err(must());
        }
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = match place.rfind('@') {
            Some(at) => place.split_at(at + 1),
            None => ("", place),
        };
        let host = |text: &str| {
            let (host, port) = match text.rsplit_once(':') {
                Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().map_err(|_| must())?)),
                _ => (text, None),
            };
            let plain = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:[]".contains(&b));
            if plain { Ok((host.to_owned(), port)) } else { Err(must()) }
        };
        let hosts = hosts.split(',').map(host).collect::<Result<Vec<_>, String>>()?;
        let path = path.split('/').filter(|part| !part.is_empty()).collect();
        Ok(Parts { kind, tls: scheme == "rediss", credentials, hosts, path })
    }
}

/// What may be shown of an error of the client: never the URL.
pub(super) fn shown(error: &redis::RedisError) -> String {
    excerpt(&error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_and_never_shown() {
        let check = |url: &str, hash_tags| RedisConfig { url: url.to_owned(), hash_tags }.check();
        for url in [
            "redis://127.0.0.1/",
            "redis://h:6380/3",
            "rediss://u:p%40@h:1",
            "redis://[::1]:7/",
            "redis+sentinel://a,b:26380/main/2",
            "rediss+cluster://u:p@a:1,b:2",
        ] {
            assert_eq!(check(url, true), Vec::<String>::new(), "{url}");
        }
        assert_eq!(check("redis+cluster://a", false), ["hash_tags: \"false\" must be true on a Cluster"]);
        for url in [
            "",
            "127.0.0.1:6379",
            "http://h",
            "redis+x://h",
            "redis://",
            "redis://h:99999",
            "redis://h/x",
            "redis+sentinel://h",
        ] {
            let problems = check(url, true);
            assert!(problems.len() == 1 && problems[0].starts_with("url: \"***\" must "), "{url}: {problems:?}");
        }
        let config = RedisConfig { url: "redis://u:secret@h".to_owned(), hash_tags: false };
        assert!(!format!("{config:?}").contains("secret"));
    }
}
