//! Temporary folders that go with their owner, also if that is killed.
//!
//! A process cannot clean up after SIGKILL, nor are statics dropped at its end. So a shell waits at the end of a pipe:
//! when the pipe closes, for whatever reason, it removes the folders that were named through it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

use crate::ServerError;

// Folders arrive as `path/`, one a line; servers die at the same moment, hence the second try.
const JANITOR: &str = r#"
set --
while IFS= read -r folder; do set -- "$@" "$folder"; done
for pause in 0.1 0.5 2; do
    sleep "$pause"
    rm -rf -- "$@" && exit 0
done
"#;

static JANITOR_INPUT: Mutex<Option<ChildStdin>> = Mutex::new(None);

/// A server's folder; dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new(server: &'static str) -> Result<Self, ServerError> {
        let made = tempfile::Builder::new().prefix(&format!("marea-servers-{server}-")).tempdir();
        let file_error = |path: &Path| {
            let path = path.to_path_buf();
            move |source| ServerError::File { server, path, source }
        };
        let folder = made.map_err(file_error(&std::env::temp_dir()))?;
        // Servers that run as another user must get through.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).map_err(file_error(folder.path()))?;
        entrust(folder.path()).map_err(file_error(folder.path()))?;
        Ok(Self(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, server: &'static str, name: &str, content: &str) -> Result<PathBuf, ServerError> {
        let path = self.join(name);
        match fs::write(&path, content) {
            Ok(()) => Ok(path),
            Err(source) => Err(ServerError::File { server, path, source }),
        }
    }
}

fn entrust(folder: &Path) -> io::Result<()> {
    let mut input = JANITOR_INPUT.lock().unwrap_or_else(PoisonError::into_inner);
    if input.is_none() {
        // In a group of its own, an interrupt from the keyboard does not reach it.
        let mut janitor = Command::new("/bin/sh")
            .args(["-c", JANITOR])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        *input = janitor.stdin.take();
    }
    match input.as_mut() {
        Some(input) => writeln!(input, "{}", folder.display()),
        None => Ok(()),
    }
}
