//! Kafka's jars: fetched once from Maven Central by `mvn`, into a cache outside of the repository.
//!
//! A folder appears in the cache only when it is complete, and a locked file lets one process at a time make it. With
//! the jars goes an archive of loaded classes, which halves the time that Kafka takes to start; it is made by starting
//! Kafka once, and is not needed: another Java just ignores it.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::kafka::record_classes;
use crate::process::require;
use crate::{ServerError, process};

/// The Kafka that is started.
pub const KAFKA_VERSION: &str = "4.1.1";

const SERVER: &str = "kafka";
const ARCHIVE: &str = "classes.jsa";
const COPY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";

/// Where Kafka's jars are; fetches them if they are not there yet, and says so on standard error.
pub fn fetch() -> Result<PathBuf, ServerError> {
    let cache = cache()?;
    let folder = cache.join(format!("kafka-{KAFKA_VERSION}"));
    if archive(&folder).is_some() {
        return Ok(folder);
    }
    let file_error = |path: &Path| {
        let path = path.to_path_buf();
        move |source| ServerError::File { server: SERVER, path, source }
    };
    fs::create_dir_all(&cache).map_err(file_error(&cache))?;
    let lock_path = cache.join(format!("kafka-{KAFKA_VERSION}.lock"));
    let lock: File =
        OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(file_error(&lock_path))?;
    lock.lock().map_err(file_error(&lock_path))?;
    if !folder.is_dir() {
        eprintln!("==> fetching Kafka {KAFKA_VERSION} from Maven Central, once, into {}", folder.display());
        let part = cache.join(format!("kafka-{KAFKA_VERSION}.part"));
        if part.exists() {
            fs::remove_dir_all(&part).map_err(file_error(&part))?;
        }
        fs::create_dir_all(&part).map_err(file_error(&part))?;
        copy_jars(&part)?;
        fs::rename(&part, &folder).map_err(file_error(&folder))?;
    }
    if archive(&folder).is_none() {
        eprintln!("==> recording Kafka's classes, once, so that it starts faster");
        let part = folder.join("classes.part");
        let recorded = record_classes(&folder, &part);
        // An empty archive says that it was tried: Java ignores it, and the next start does not try again.
        if recorded.is_err() || !part.is_file() {
            File::create(&part).map_err(file_error(&part))?;
        }
        let done = folder.join(ARCHIVE);
        fs::rename(&part, &done).map_err(file_error(&done))?;
    }
    Ok(folder)
}

/// The archive of loaded classes, if it has been made.
pub(crate) fn archive(folder: &Path) -> Option<PathBuf> {
    Some(folder.join(ARCHIVE)).filter(|archive| archive.is_file())
}

fn copy_jars(folder: &Path) -> Result<(), ServerError> {
    let mvn = require(SERVER, "mvn", "maven", &[])?;
    let pom = folder.join("pom.xml");
    let written = fs::write(&pom, pom_xml());
    written.map_err(|source| ServerError::File { server: SERVER, path: pom.clone(), source })?;
    // Not with a clean environment: it may say how to reach Maven Central from here.
    let mut command = Command::new(mvn);
    command.args(["--batch-mode", "--strict-checksums", "--no-transfer-progress", "--quiet", "--file"]).arg(&pom);
    command.arg(COPY).arg("-DincludeScope=runtime");
    command.arg(format!("-DoutputDirectory={}", folder.display())).stdin(Stdio::null());
    process::run(SERVER, "mvn, which fetches its jars from Maven Central", command).map(drop)
}

fn pom_xml() -> String {
    let dependency = |group: &str, name: &str, version: &str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version></dependency>"
        )
    };
    // Kafka's jars alone log nowhere: slf4j-simple writes to standard error.
    let kafka = dependency("org.apache.kafka", "kafka_2.13", KAFKA_VERSION);
    let log = dependency("org.slf4j", "slf4j-simple", "1.7.36");
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion><groupId>marea</groupId>\
         <artifactId>servers</artifactId><version>1</version><packaging>pom</packaging>\
         <dependencies>{kafka}{log}</dependencies></project>"
    )
}

fn cache() -> Result<PathBuf, ServerError> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    let base = base.ok_or_else(|| ServerError::Failed {
        server: SERVER,
        what: "the cache for its jars".into(),
        message: "neither XDG_CACHE_HOME nor HOME is set".into(),
    })?;
    Ok(base.join("marea"))
}
