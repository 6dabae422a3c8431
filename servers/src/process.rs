//! One server's process: started, watched until it is ready, signalled, and gone at the end.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::ServerError;
use crate::folder::Folder;

const POLL: Duration = Duration::from_millis(15);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const TAIL_LINES: usize = 25;
const TAIL_BYTES: u64 = 16 * 1024;

/// A server: a child of this process, or one that an environment variable names.
pub(crate) enum Host {
    Child(Box<Process>),
    External { server: &'static str, variable: &'static str },
}

impl Host {
    pub(crate) fn process(&self) -> Result<&Process, ServerError> {
        match self {
            Self::Child(process) => Ok(process),
            Self::External { server, variable } => Err(ServerError::External { server, variable }),
        }
    }
}

/// How a server is started, known to be ready, and stopped.
pub(crate) struct Plan {
    pub(crate) server: &'static str,
    /// The program, its arguments and its environment, made anew for every start.
    pub(crate) command: Box<dyn Fn() -> Command + Send + Sync>,
    /// Whether it answers; asked often, so it must not wait for long.
    pub(crate) ready: Box<dyn Fn() -> bool + Send + Sync>,
    pub(crate) stop: Signal,
    pub(crate) deadline: Duration,
}

pub(crate) struct Process {
    plan: Plan,
    log: PathBuf,
    child: Mutex<Option<Child>>,
    // Removed after the server has ended, which `drop` sees to.
    _folder: Folder,
}

impl Process {
    /// Starts the server and waits until it is ready.
    pub(crate) fn start(plan: Plan, folder: Folder) -> Result<Self, ServerError> {
        let process = Self::launch(plan, folder)?;
        process.wait_ready()?;
        Ok(process)
    }

    /// Starts the server without waiting.
    pub(crate) fn launch(plan: Plan, folder: Folder) -> Result<Self, ServerError> {
        let log = folder.join("server.log");
        let process = Self { plan, log, child: Mutex::new(None), _folder: folder };
        process.spawn()?;
        Ok(process)
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    pub(crate) fn kill(&self) -> Result<(), ServerError> {
        let mut slot = self.child();
        let child = slot.as_mut().ok_or(ServerError::NotRunning { server: self.plan.server })?;
        end(child);
        *slot = None;
        Ok(())
    }

    pub(crate) fn pause(&self) -> Result<(), ServerError> {
        self.signal_all(Signal::STOP)
    }

    pub(crate) fn resume(&self) -> Result<(), ServerError> {
        self.signal_all(Signal::CONT)
    }

    pub(crate) fn stop(&self) -> Result<(), ServerError> {
        let mut slot = self.child();
        let child = slot.as_mut().ok_or(ServerError::NotRunning { server: self.plan.server })?;
        let family = family(child.id());
        signal(&family, Signal::CONT);
        signal(&family[..1], self.plan.stop);
        let start = Instant::now();
        loop {
            match child.try_wait() {
                Ok(None) if start.elapsed() < STOP_DEADLINE => thread::sleep(POLL),
                Ok(Some(_)) => break await_end(&family[1..]),
                _ => break end(child),
            }
        }
        *slot = None;
        Ok(())
    }

    pub(crate) fn restart(&self) -> Result<(), ServerError> {
        self.spawn()?;
        self.wait_ready()
    }

    pub(crate) fn wait_ready(&self) -> Result<(), ServerError> {
        let start = Instant::now();
        loop {
            // The lock is free while the server is asked: another thread may want to kill it.
            let ended = match self.child().as_mut() {
                None => return Err(ServerError::NotRunning { server: self.plan.server }),
                Some(child) => child.try_wait(),
            };
            let ended = ended.map_err(|source| ServerError::Spawn { server: self.plan.server, source })?;
            if let Some(status) = ended {
                *self.child() = None;
                return Err(ServerError::Ended {
                    server: self.plan.server,
                    status: status.to_string(),
                    log: self.log.clone(),
                    tail: tail(&self.log),
                });
            }
            if (self.plan.ready)() {
                return Ok(());
            }
            if start.elapsed() > self.plan.deadline {
                return Err(ServerError::Late {
                    server: self.plan.server,
                    seconds: self.plan.deadline.as_secs(),
                    log: self.log.clone(),
                    tail: tail(&self.log),
                });
            }
            thread::sleep(POLL);
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal_all(&self, kind: Signal) -> Result<(), ServerError> {
        match self.child().as_ref() {
            Some(child) => {
                signal(&family(child.id()), kind);
                Ok(())
            }
            None => Err(ServerError::NotRunning { server: self.plan.server }),
        }
    }

    fn spawn(&self) -> Result<(), ServerError> {
        let mut slot = self.child();
        if slot.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
            return Err(ServerError::Running { server: self.plan.server });
        }
        *slot = None;
        let log_error = |source| ServerError::File { server: self.plan.server, path: self.log.clone(), source };
        let log = OpenOptions::new().create(true).append(true).open(&self.log).map_err(log_error)?;
        let mut command = (self.plan.command)();
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(log_error)?).stderr(log);
        // In a group of its own, an interrupt from the keyboard does not reach it before its owner.
        command.process_group(0);
        let spawned = spawn_from_lasting_thread(command);
        *slot = Some(spawned.map_err(|source| ServerError::Spawn { server: self.plan.server, source })?);
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child().take() {
            end(&mut child);
        }
    }
}

/// A command with a clean environment, whose process dies with this one.
pub(crate) fn command(program: &Path) -> Command {
    command_as(None, program)
}

/// The same, as another user, which only root can ask for.
pub(crate) fn command_as(user: Option<&str>, program: &Path) -> Command {
    static SETPRIV: OnceLock<Option<PathBuf>> = OnceLock::new();
    let mut command = match SETPRIV.get_or_init(|| find("setpriv", &[])) {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL"]);
            if let Some(user) = user {
                command.arg(format!("--reuid={user}")).arg(format!("--regid={user}")).arg("--init-groups");
            }
            command.arg("--").arg(program);
            command
        }
        None => Command::new(program),
    };
    // What configures a server through the environment of the developer must not reach a test's.
    command.env_clear().env("LANG", "C.UTF-8").current_dir("/");
    for name in ["PATH", "HOME", "TMPDIR", "JAVA_HOME"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Runs a client or a tool to its end and gives what it printed.
pub(crate) fn run(server: &'static str, what: &str, mut command: Command) -> Result<String, ServerError> {
    let failed = |message: String| ServerError::Failed { server, what: what.to_string(), message };
    let output = command.stdin(Stdio::null()).output().map_err(|e| failed(e.to_string()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(failed(format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))))
    }
}

/// Where a program is: in one of the folders, else on the path.
pub(crate) fn find(program: &str, folders: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps daemons where a user's path may not lead.
    let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/opt/homebrew/bin", "/opt/homebrew/sbin"];
    let folders = folders.iter().map(PathBuf::from).chain(std::env::split_paths(&path));
    folders.chain(usual.iter().map(PathBuf::from)).map(|folder| folder.join(program)).find(|found| found.is_file())
}

/// Where a program is, or what to install.
pub(crate) fn require(
    server: &'static str,
    program: &'static str,
    package: &'static str,
    folders: &[&str],
) -> Result<PathBuf, ServerError> {
    find(program, folders).ok_or(ServerError::Missing { server, program, package })
}

/// The parent-death signal comes when the *thread* that started the child ends: so one starts them all, and stays.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        let spawner = move || {
            for (mut command, reply) in inbox {
                // Whoever asked waits for the answer.
                let _ = reply.send(command.spawn());
            }
        };
        // If the thread cannot be started, the channel is closed, which the next line reports.
        let _ = thread::Builder::new().name("servers".into()).spawn(spawner);
        Mutex::new(orders)
    });
    let gone = || io::Error::other("the thread that starts servers is gone");
    let (reply, answer) = channel();
    spawner.lock().unwrap_or_else(PoisonError::into_inner).send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// SIGKILL to a child and its descendants; returns when they are gone.
fn end(child: &mut Child) {
    // An exited child that was not waited for keeps its id, so no other process can be hit.
    let family = family(child.id());
    signal(&family, Signal::KILL);
    let _ = child.wait();
    await_end(&family[1..]);
}

/// Descendants have other parents by now: they can only be looked at.
fn await_end(pids: &[u32]) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) && pids.iter().any(|pid| is_alive(*pid)) {
        thread::sleep(Duration::from_millis(2));
    }
}

fn signal(pids: &[u32], kind: Signal) {
    for pid in pids {
        if let Some(pid) = pid_of(*pid) {
            // The only error is that it has ended, which is no error here.
            let _ = kill_process(pid, kind);
        }
    }
}

fn pid_of(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Whether a process runs; one that is dead but not yet waited for by its parent does not.
fn is_alive(pid: u32) -> bool {
    pid_of(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
        && stat(&pid.to_string()).is_none_or(|(state, _)| state != "Z" && state != "X")
}

/// State and parent of a process, where the system has /proc.
fn stat(pid: &str) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, also parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_string(), fields.next()?.parse().ok()?))
}

/// A process and its descendants, itself first; only itself where the system has no /proc.
fn family(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((name, pid)) = name.to_str().and_then(|name| Some((name, name.parse::<u32>().ok()?))) else {
            continue;
        };
        if let Some((_, parent)) = stat(name) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut family = vec![root];
    let mut next = 0;
    while let Some(pid) = family.get(next) {
        family.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    family
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
        }
        Err(error) => format!("(cannot be read: {error})"),
    }
}
