//! What a person sees while marea runs: one line that is rewritten on a terminal, a line now and then elsewhere, a
//! progress bar for files, and log lines that do not break into either.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use marea_model::time::{MILLI, format_rfc3339};
use marea_sinks::view::Status;
use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

/// How often the line is written where it cannot be rewritten.
const EVERY: Duration = Duration::from_secs(10);

/// Everything that is drawn goes through this, so that a log line can push it aside.
static SCREEN: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Standard error, for the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        SCREEN.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for LogWriter {
    type Writer = LogWriter;
    fn make_writer(&self) -> LogWriter {
        LogWriter
    }
}

/// `1,234,567`
pub fn thousands(n: i64) -> String {
    let digits = n.unsigned_abs().to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if n < 0 {
        text.push('-');
    }
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The live line of a running pipeline.
#[derive(Debug)]
pub struct StatusLine {
    bar: Option<ProgressBar>,
    written: Option<Instant>,
    json: bool,
}

impl StatusLine {
    /// On standard error: rewritten on a terminal; else every 10 s, as JSON if so asked.
    pub fn new(json: bool) -> Self {
        let bar = (io::stderr().is_terminal() && !json).then(|| {
            let bar = SCREEN.add(ProgressBar::new_spinner());
            bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").expect("a valid template"));
            bar
        });
        StatusLine { bar, written: None, json }
    }

    /// Shows how it is going.
    pub fn show(&mut self, status: &Status) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(line(status));
                bar.tick();
            }
            None if self.written.is_none_or(|at| at.elapsed() >= EVERY) => {
                self.written = Some(Instant::now());
                let text = if self.json { serde_json::to_string(status).unwrap_or_default() } else { line(status) };
                // Nobody reading standard error is no reason to stop.
                let _ = writeln!(io::stderr(), "{text}");
            }
            None => {}
        }
    }

    /// Takes the line away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn line(status: &Status) -> String {
    let now = status.now_ms.map_or("–".to_owned(), |ms| {
        let text = format_rfc3339(ms.saturating_mul(MILLI));
        text.get(11..19).unwrap_or_default().to_owned()
    });
    let lag = status.lag_seconds.map_or("–".to_owned(), |lag| format!("{:.0} ms", lag * 1000.0));
    let t = &status.totals;
    format!(
        "now {now} UTC · {:.0} ticks/s · lag {lag} · {} symbols · in {} = accepted {} + duplicate {} + dead {} + held {}",
        status.tick_rate,
        status.symbols,
        thousands(t.records_in),
        thousands(t.accepted),
        thousands(t.duplicate),
        thousands(t.dead),
        thousands(t.held),
    )
}

/// The progress of reading files; hidden where standard error is no terminal.
pub fn progress_bar(visible: bool) -> ProgressBar {
    let bar = SCREEN.add(ProgressBar::new(1000));
    if !visible {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %  {msg}  {eta} left").expect("a valid template");
    bar.set_style(style);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (-1_234_567, "-1,234,567"), (12_345, "12,345")] {
            assert_eq!(thousands(n), text);
        }
    }
}
