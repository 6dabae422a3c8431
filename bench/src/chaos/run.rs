//! One run: the disturbed process, the undisturbed one, and what differs.

use super::blow::{Blow, Moment, moments};
use super::child::{Marea, Running, binary, environment};
use super::input::{FALLEN, IDLE, Input, Random};
use super::report::Outcome;
use super::store::{Standing, Watch};
use super::topic::Topic;
use super::{Options, Place, StoreKind, live};
use anyhow::{Context, bail, ensure};
use marea_model::time::format_rfc3339;
use marea_servers::relay::{Cut, Relay};
use marea_servers::{Kafka, Postgres};
use marea_sinks::dump::Table;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Who commits nothing for so long will never.
const STUCK: Duration = Duration::from_secs(120);
/// How often the store is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// A failpoint that was not met by the end of what there is to commit is given up after this.
const LINGER: Duration = Duration::from_secs(2);
/// Small epochs: many commits.
const MAX_TICKS: &str = "500";
/// What the log says where a restart computed something otherwise.
const ALARM: &str = "recomputed otherwise";

struct Chaos<'a> {
    options: &'a Options,
    marea: Marea,
    input: Input,
    topic: Topic,
    watch: Watch,
    random: Random,
    postgres: Option<&'a Postgres>,
    relay: Option<Relay>,
    child: Option<Running>,
    /// Where the store stood when it was looked at last.
    standing: Standing,
    blows: BTreeMap<String, usize>,
    restarts: Vec<Duration>,
    edits: usize,
}

/// Runs it all. The broker is not touched but for two new topics; PostgreSQL is started here, since it may be killed.
///
/// # Errors
///
/// What keeps it from coming to an end. Differences are no errors: they are in the outcome.
pub fn run(options: &Options, kafka: &Kafka) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let binary = binary(options.marea.as_deref())?;
    let folder = tempfile::tempdir()?;
    let at = folder.path().to_owned();
    let input = Input::new(options.seed, options.ticks)?;
    let records = input.records.len();
    let mut random = Random(options.seed ^ 0x000b_1005);
    let moments = moments(options, records, &mut random);
    let name = format!("chaos.{}.{:?}", options.seed, options.store).to_lowercase();
    let topic = Topic::new(&kafka.brokers(), &name, options.seed)?;
    let postgres = match options.store {
        StoreKind::Sqlite => None,
        StoreKind::Postgres => Some(Postgres::start()?),
    };
    ensure!(
        postgres.is_some() || options.pg_restarts + options.cut_commits == 0,
        "--pg-restarts and --cut-commits need --store postgres"
    );
    let place = |name: &str| match &postgres {
        Some(postgres) => Place::Postgres(postgres.database(name)),
        None => Place::Sqlite(at.join(format!("{name}.db"))),
    };
    let (disturbed, undisturbed) = (place("disturbed"), place("undisturbed"));
    let relay = (options.cut_commits > 0).then(|| relay(&disturbed)).transpose()?;
    let through = match (&disturbed, &relay) {
        (Place::Postgres(url), Some(relay)) => Place::Postgres(through(url, relay)),
        _ => disturbed.clone(),
    };
    let env = |place: &Place| {
        let mut env = environment(place, &kafka.brokers(), &topic.ticks, Some(&topic.accounts));
        env.push(("MAREA__PIPELINE__MAX_TICKS".to_owned(), MAX_TICKS.to_owned()));
        env
    };
    let until = format_rfc3339(input.until);
    let marea = Marea { binary, folder: at.clone(), env: env(&through), until };
    let reference =
        Marea { binary: marea.binary.clone(), folder: at.clone(), env: env(&undisturbed), until: marea.until.clone() };
    let mut chaos = Chaos {
        options,
        marea,
        input,
        topic,
        watch: Watch::new(disturbed)?,
        random,
        postgres: postgres.as_ref(),
        relay,
        child: None,
        standing: Standing::default(),
        blows: BTreeMap::new(),
        restarts: Vec::new(),
        edits: 0,
    };
    for (i, moment) in moments.iter().enumerate() {
        // Near the end everything is there, and processes try to come to it.
        let to_the_end = i * 10 >= moments.len() * 9;
        chaos.strike(i, *moment, to_the_end).with_context(|| format!("{}, {}", moment.blow, chaos.last_words()))?;
    }
    let mut problems = chaos.finish()?;
    chaos.say(format_args!("undisturbed"));
    reference.start(Some("expected"), &[])?.wait()?;
    let mut whole = Watch::new(undisturbed)?;
    problems.extend(chaos.compare(&mut whole)?);
    if options.failpoints > 0 && !chaos.blows.keys().any(|blow| blow.starts_with("commit.")) {
        problems.push("no failpoint was met: is this a debug build of marea?".to_owned());
    }
    let outcome = Outcome {
        store: options.store,
        records: chaos.input.counts(),
        blows: std::mem::take(&mut chaos.blows),
        restarts: std::mem::take(&mut chaos.restarts),
        edits: chaos.edits,
        audit: chaos.standing.last_seq,
        generations: chaos.standing.generation,
        took: began.elapsed(),
        problems,
    };
    drop(chaos);
    if !outcome.problems.is_empty() {
        eprintln!("logs, dumps and stores are kept: {}", folder.keep().display());
    }
    Ok(outcome)
}

/// `host:port` of a database's address.
fn authority(url: &str) -> anyhow::Result<&str> {
    let authority = url.split('/').nth(2).and_then(|login| login.rsplit('@').next());
    authority.with_context(|| format!("{url} has no host"))
}

fn relay(place: &Place) -> anyhow::Result<Relay> {
    match place {
        Place::Postgres(url) => Ok(Relay::to(authority(url)?)),
        Place::Sqlite(_) => bail!("a relay goes to PostgreSQL"),
    }
}

fn through(url: &str, relay: &Relay) -> String {
    let to = format!("127.0.0.1:{}", relay.port);
    authority(url).map_or_else(|_| url.to_owned(), |from| url.replacen(from, &to, 1)) + "?sslmode=disable"
}

impl Chaos<'_> {
    fn say(&self, what: std::fmt::Arguments<'_>) {
        if !self.options.quiet {
            eprintln!("{what}");
        }
    }

    fn last_words(&self) -> String {
        self.child.as_ref().map_or_else(|| "no process".to_owned(), Running::last_words)
    }

    fn live_file(&self) -> PathBuf {
        self.marea.folder.join("live.toml")
    }

    /// A process; the one that runs, if one does.
    fn process(&mut self, dump: Option<&str>, blow: Option<Blow>) -> anyhow::Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        self.watch.leave();
        let workers = (1 + self.random.below(2)).to_string();
        let failpoint = match blow {
            Some(Blow::Failpoint(name, pass)) => format!("{name}:{pass}"),
            _ => String::new(),
        };
        let env = [("MAREA__PIPELINE__WORKERS", workers.as_str()), ("MAREA_FAILPOINT", failpoint.as_str())];
        self.child = Some(self.marea.start(dump, &env)?);
        Ok(())
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        // Nobody but the process has the database open when it dies.
        self.watch.leave();
        self.child.take().map_or(Ok(()), Running::kill)
    }

    /// One blow: the process comes so far, and then it falls.
    fn strike(&mut self, i: usize, moment: Moment, to_the_end: bool) -> anyhow::Result<()> {
        let Moment { mut blow, goal, mut ahead } = moment;
        if let Blow::Failpoint(_, pass) = &mut blow {
            // There must be something to commit, and few commits may be left.
            ahead = ahead.max(self.topic.published + self.options.ticks as usize / 50).min(self.input.records.len());
            *pass = if to_the_end { 1 } else { *pass };
        }
        if to_the_end {
            ahead = self.input.records.len();
            self.topic.publish(&self.input, ahead)?;
        }
        if matches!(blow, Blow::Failpoint(..)) && self.child.is_some() {
            self.kill()?;
        }
        if self.child.is_none() {
            live::mend(&self.live_file(), &mut self.random)?;
            self.edits += 1;
        }
        let fresh = self.child.is_none();
        self.process(to_the_end.then_some("never"), Some(blow))?;
        let before = self.standing;
        let start_up = self.start_up();
        let piece = (ahead.saturating_sub(self.topic.published) / 25).max(1);
        let cuts = self.relay.as_ref().map_or(0, Relay::cuts);
        if let (Blow::Cut(cut), Some(relay)) = (blow, &self.relay) {
            relay.arm(cut);
        }
        let (mut first, mut found, mut moved, mut edited) = (None, None, Instant::now(), false);
        let mut all_there = None::<Instant>;
        let fell = loop {
            if self.topic.published < ahead {
                self.topic.publish(&self.input, ahead.min(self.topic.published + piece))?;
            }
            let Some(child) = &mut self.child else { bail!("no process") };
            let elapsed = child.since.elapsed();
            if let Some(status) = child.ended()? {
                match (blow, status.signal()) {
                    (Blow::Failpoint(..), Some(9)) => {}
                    _ if to_the_end && status.success() => {}
                    _ => bail!("marea ended with {status}"),
                }
                self.child = None;
                break status.signal().is_some();
            }
            if let Some(standing) = self.watch.standing() {
                if standing.upper != self.standing.upper {
                    moved = Instant::now();
                    self.watch.look();
                }
                // What the process before it had committed last was not seen, maybe.
                if fresh && standing.generation > before.generation {
                    let found = *found.get_or_insert(standing.upper);
                    if standing.upper > found {
                        first.get_or_insert(elapsed);
                    }
                }
                self.standing = standing;
            }
            let committed = self.standing.records_in as usize;
            // A process does not start with a file that cannot be read.
            let started = first.is_some() || !fresh;
            if started && !edited && self.topic.published * 2 > ahead + before.records_in as usize {
                edited = true;
                live::edit(&self.live_file(), &mut self.random)?;
                self.edits += 1;
            }
            if committed >= ahead {
                all_there.get_or_insert_with(Instant::now);
            }
            let over = all_there.is_some_and(|since| since.elapsed() >= LINGER.max(start_up));
            let due = match blow {
                Blow::Kill | Blow::Server { .. } => committed >= goal,
                Blow::StartUp(share) => elapsed >= start_up.mul_f64(share),
                Blow::Failpoint(..) => over,
                Blow::Cut(_) => self.relay.as_ref().is_some_and(|relay| relay.cuts() > cuts) || over,
            };
            if due {
                break !over || committed >= goal;
            }
            ensure!(moved.elapsed() < STUCK, "nothing was committed for {} s", STUCK.as_secs());
            std::thread::sleep(LOOK);
        };
        match blow {
            Blow::Server { kill } => {
                self.watch.leave();
                let postgres = self.postgres.context("no PostgreSQL")?;
                if kill {
                    postgres.kill()?
                } else {
                    postgres.stop()?
                }
                postgres.restart()?;
            }
            Blow::Cut(_) => {
                if let Some(relay) = &self.relay {
                    relay.arm(Cut::Nowhere);
                }
            }
            Blow::Failpoint(..) if self.child.is_none() => {}
            _ => self.kill()?,
        }
        let missed = matches!(blow, Blow::Failpoint(..)) && !fell;
        let what = if missed { format!("{blow}: not met, killed") } else { blow.to_string() };
        let (at, of) = (self.standing.records_in, self.input.records.len());
        let restart =
            first.map_or(String::new(), |first| format!(", {:.2} s to the first commit", first.as_secs_f64()));
        self.say(format_args!("{:4} {what}, at {at} of {of}{restart}", i + 1));
        *self.blows.entry(what).or_default() += 1;
        // The very first process has nothing to restore.
        self.restarts.extend(first.filter(|_| before.upper > 0));
        Ok(())
    }

    /// How long a start takes.
    fn start_up(&self) -> Duration {
        let mut restarts = self.restarts.clone();
        restarts.sort_unstable();
        restarts.get(restarts.len() / 2).copied().unwrap_or(Duration::from_secs(1))
    }

    /// Comes to the end, and then once more. What is wrong with the history.
    fn finish(&mut self) -> anyhow::Result<Vec<String>> {
        if self.child.is_some() {
            self.kill()?;
        }
        self.topic.publish(&self.input, self.input.records.len())?;
        live::end(&self.live_file())?;
        for dump in ["got", "again"] {
            self.process(Some(dump), None)?;
            let child = self.child.take().context("no process")?;
            child.wait()?;
        }
        self.standing = self.watch.standing().context("the store does not answer")?;
        self.watch.laws()
    }

    /// What the disturbed run and the undisturbed one do not have in common.
    fn compare(&mut self, whole: &mut Watch) -> anyhow::Result<Vec<String>> {
        let mut problems = Vec::new();
        let folder = self.marea.folder.clone();
        for dump in ["got", "again"] {
            for table in Table::STATE {
                let file = table.file_name();
                let read = |dump: &str| std::fs::read(folder.join(dump).join(file));
                problems.extend(difference(&format!("{dump}/{file}"), &read("expected")?, &read(dump)?));
            }
        }
        problems.extend(whole.laws()?.into_iter().map(|problem| format!("undisturbed: {problem}")));
        let expected = whole.standing().context("the store of the undisturbed run does not answer")?;
        let (got, published) = (self.standing, self.input.records.len() as u64);
        // How many quotes beyond the horizon came late depends on how partitions are read against each other.
        let counts = |of: Standing| [of.records_in, of.duplicate, of.held, of.accepted + of.dead];
        if counts(expected) != counts(got) || got.records_in != published {
            problems.push(format!("{published} were published; undisturbed {expected:?}, disturbed {got:?}"));
        }
        problems.extend(self.watch.differences(whole)?);
        let (alone, disturbed) = (whole.dead()?, self.watch.dead()?);
        for letter in alone.symmetric_difference(&disturbed) {
            problems.push(format!("a dead letter of one run alone: {letter:?}"));
        }
        let log = std::fs::read_to_string(folder.join("marea.log"))?;
        let alarms: Vec<&str> = log.lines().filter(|line| line.contains(ALARM)).collect();
        problems
            .extend(alarms.first().map(|first| format!("{} alarms of a restart, the first: {first}", alarms.len())));
        problems.extend(self.reached(&folder.join("expected"))?);
        Ok(problems)
    }

    /// Whether the input had in it what it is there for.
    fn reached(&self, dump: &Path) -> anyhow::Result<Vec<String>> {
        let lines = |table: Table| std::fs::read_to_string(dump.join(table.file_name()));
        let (bars, verdicts) = (lines(Table::Bars)?, lines(Table::Verdicts)?);
        let conditions = [
            ("a bar of the idle symbol", bars.lines().any(|line| line.starts_with(IDLE))),
            (
                "a drawdown from yesterday's peak",
                verdicts.lines().any(|line| line.starts_with(FALLEN) && line.contains("DRAWDOWN_LIMIT")),
            ),
            ("a held bust", self.standing.held > 0),
            ("a duplicate", self.standing.duplicate > 0),
            ("a dead letter", self.standing.dead > 0),
        ];
        let missing = conditions.iter().filter(|(_, is_there)| !is_there);
        Ok(missing.map(|(what, _)| format!("the input has not led to {what}")).collect())
    }
}

/// Where two files differ first.
fn difference(what: &str, expected: &[u8], got: &[u8]) -> Option<String> {
    if expected == got {
        return None;
    }
    let (expected, got) = (String::from_utf8_lossy(expected), String::from_utf8_lossy(got));
    let (a, b): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), got.lines().collect());
    let first = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
    let differing = a.iter().zip(&b).filter(|(a, b)| a != b).count() + a.len().abs_diff(b.len());
    let line = |lines: &[&str]| lines.get(first).map_or_else(|| "no line".to_owned(), |line| (*line).to_owned());
    Some(format!(
        "{what}: {differing} lines differ of {} and {}, first line {first}:\n  {}\n  {}",
        a.len(),
        b.len(),
        line(&a),
        line(&b)
    ))
}
