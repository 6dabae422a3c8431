use super::reading::with_dictionaries;
use super::*;
use marea_model::codec::{arrow, json};
use marea_model::cursor::Reason;
use marea_model::time::{MILLI, SECOND};
use marea_model::{AccountId, Amount, Event, Instruments, Price, Record, Size, Symbol, Tick, Timeframe};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

const T0: Nanos = 1_381_152_600 * SECOND;

fn decoder() -> Decoder {
    Decoder { instruments: Arc::new(Instruments::default()), base_timeframe: Timeframe::S1, max_ahead: Some(0) }
}

fn tick(symbol: &str, ms: i64, seq: u64) -> Tick {
    let event = Event::Trade { price: Price(4_918_000_000 + seq as i64), size: Size(100_000_000) };
    Tick { symbol: Symbol::new(symbol).unwrap(), event_time: T0 + ms * MILLI, seq, event }
}

fn ticks(symbol: &str, n: u64) -> Vec<Tick> {
    (0..n).map(|i| tick(symbol, i as i64 * 10, i)).collect()
}

fn snapshot(ms: i64, seq: u64) -> AccountSnapshot {
    AccountSnapshot {
        account: AccountId::new("M1").unwrap(),
        event_time: T0 + ms * MILLI,
        seq,
        equity: Amount::whole(1000),
        balance: Amount::whole(1000),
        currency: *b"USD",
        positions: vec![],
    }
}

fn parquet(ticks: &[Tick], rows_a_group: usize) -> Vec<u8> {
    let batch = arrow::encode(ticks, &Instruments::default());
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(rows_a_group)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn arrow_file(ticks: &[Tick]) -> Vec<u8> {
    let batch = arrow::encode(ticks, &Instruments::default());
    let mut writer = arrow_ipc::writer::FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    for start in (0..batch.num_rows()).step_by(1000) {
        writer.write(&batch.slice(start, 1000.min(batch.num_rows() - start))).unwrap();
    }
    writer.into_inner().unwrap()
}

fn csv(ticks: &[Tick]) -> Vec<u8> {
    csv::encode(ticks, &Instruments::default()).into_bytes()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn of(files: &[PathBuf]) -> FileConfig {
    FileConfig { files: files.to_vec(), ..FileConfig::default() }
}

/// What a run has sent.
#[derive(Default)]
struct Sent {
    records: Vec<Record>,
    accounts: Vec<(Cursor, AccountSnapshot)>,
    rejects: Vec<DeadLetter>,
    batches: Vec<(usize, u64)>,
    at_end: bool,
    finished: bool,
    result: Option<FileError>,
}

impl Sent {
    fn ticks(&self) -> Vec<Tick> {
        self.records.iter().map(|r| r.tick.clone()).collect()
    }
}

fn run(config: &FileConfig) -> Sent {
    let files = open(config, &decoder()).map_err(|e| format!("{e:?}")).unwrap();
    let (out, inputs) = crossbeam_channel::unbounded();
    let out = Sender::from(out);
    let mut sent = Sent { result: files.run(&out, &Stop::new()).err(), ..Sent::default() };
    drop(out);
    for (i, input) in inputs.into_iter().enumerate() {
        match input {
            Input::Start { partition, .. } => assert!(i == 0 && partition.as_str() == PARTITION),
            Input::Batch(batch) => {
                assert!(!sent.at_end && batch.partition.as_str() == PARTITION);
                let rows = batch.records.len() + batch.accounts.len() + batch.rejects.len();
                sent.batches.push((rows, batch.upper));
                sent.records.extend(batch.records.iter());
                sent.accounts.extend(batch.accounts);
                sent.rejects.extend(batch.rejects);
                sent.at_end = batch.at_end;
            }
            Input::Finished { .. } => sent.finished = true,
            other => panic!("files never send {other:?}"),
        }
    }
    assert_eq!(sent.finished, sent.result.is_none());
    assert_eq!(sent.finished, sent.at_end);
    sent
}

fn refused(config: &FileConfig) -> Vec<String> {
    open(config, &decoder()).err().unwrap().iter().map(ToString::to_string).collect()
}

#[test]
fn every_format_gives_the_same_records() {
    let folder = Folder::new();
    let expected = ticks("IBM", 20_000);
    let stream = arrow::encode_stream(&expected, &Instruments::default());
    let cases = [
        ("a.parquet", parquet(&expected, 3000), 0),
        ("without-extension", parquet(&expected, 100_000), 0),
        ("a.arrow", arrow_file(&expected), 0),
        ("a.arrows", stream, 0),
        // Row 0 of a CSV is its heading.
        ("a.csv", csv(&expected), 1),
    ];
    for (name, bytes, first_row) in cases {
        let path = folder.write(name, &bytes);
        let sent = run(&of(std::slice::from_ref(&path)));
        assert_eq!(sent.result, None);
        assert_eq!(sent.ticks(), expected, "{name}");
        let offsets: Vec<u64> = sent.records.iter().map(|r| r.cursor.offset).collect();
        assert!(offsets.into_iter().eq(first_row..first_row + 20_000), "{name}");
        assert!(sent.records.iter().all(|r| r.cursor.partition.as_str() == path.display().to_string()));
        assert_eq!(sent.batches, [(8192, 8192), (8192, 16_384), (3616, 20_000)]);
    }
}

#[test]
fn files_are_merged_by_event_time_and_stably() {
    let folder = Folder::new();
    // The second file has a late tick: it stays where it is, between its neighbours.
    let a = vec![tick("A", 0, 1), tick("A", 20, 2), tick("A", 20, 3)];
    let b = vec![tick("B", 10, 1), tick("B", 20, 2), tick("B", 5, 3), tick("B", 30, 4)];
    let files = [folder.write("a.csv", &csv(&a)), folder.write("b.parquet", &parquet(&b, 10))];
    let lines = [snapshot(20, 1), snapshot(25, 2)].map(|s| String::from_utf8(json::encode_account(&s)).unwrap());
    let accounts = folder.write("accounts.jsonl", format!("{}\n\n{}\nnonsense\n", lines[0], lines[1]).as_bytes());
    let sent = run(&FileConfig { accounts: Some(accounts), ..of(&files) });
    let order: Vec<(&str, u64)> = sent.records.iter().map(|r| (r.tick.symbol.as_str(), r.tick.seq)).collect();
    assert_eq!(order, [("A", 1), ("B", 1), ("A", 2), ("A", 3), ("B", 2), ("B", 3), ("B", 4)]);
    assert_eq!(sent.accounts.iter().map(|(c, s)| (c.offset, s.seq)).collect::<Vec<_>>(), [(0, 1), (2, 2)]);
    assert_eq!(sent.rejects.len(), 1);
    assert_eq!((sent.rejects[0].cursor.offset, sent.rejects[0].reason), (3, Reason::Malformed));
    assert_eq!(sent.batches, [(10, 10)]);
}

/// Each file's records with a time in milliseconds; their merge by its definition.
fn merged(files: &[Vec<i64>]) -> Vec<(usize, usize)> {
    let mut at = vec![0; files.len()];
    let mut order = Vec::new();
    while let Some((_, i)) = (0..files.len()).filter_map(|i| Some((*files[i].get(at[i])?, i))).min() {
        order.push((i, at[i]));
        at[i] += 1;
    }
    order
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_merge_is_what_its_definition_says(
        files in prop::collection::vec(prop::collection::vec(0_i64..50, 0..40), 1..5),
    ) {
        let folder = Folder::new();
        let write = |(i, times): (usize, &Vec<i64>)| {
            let ticks: Vec<Tick> = times.iter().enumerate().map(|(j, ms)| tick("A", *ms, j as u64)).collect();
            folder.write(&format!("{i}.csv"), &csv(&ticks))
        };
        let paths: Vec<PathBuf> = files.iter().enumerate().map(write).collect();
        let sent = run(&of(&paths));
        let order = sent.records.iter().map(|r| {
            let path = r.cursor.partition.as_str();
            (paths.iter().position(|p| p.display().to_string() == path).unwrap(), r.cursor.offset as usize - 1)
        });
        prop_assert_eq!(order.collect::<Vec<_>>(), merged(&files));
    }
}

#[test]
fn a_bad_row_is_a_dead_letter_and_the_file_goes_on() {
    let folder = Folder::new();
    let mut text = String::from_utf8(csv(&ticks("IBM", 3))).unwrap();
    text.insert_str(text.find('\n').unwrap() + 1, "trade,IBM\n");
    let sent = run(&of(&[folder.write("a.csv", text.as_bytes())]));
    assert_eq!(sent.ticks(), ticks("IBM", 3));
    assert_eq!(sent.rejects.len(), 1);
    assert_eq!(sent.rejects[0].cursor.offset, 1);
    assert_eq!(sent.rejects[0].original, b"trade,IBM");
    // Nothing but bad rows.
    let bad = csv(&ticks("IBM", 1)).split_inclusive(|b| *b == b'\n').next().unwrap().to_vec();
    let bad = [bad, b"x\n".repeat(20_000)].concat();
    let sent = run(&of(&[folder.write("bad.csv", &bad)]));
    assert_eq!((sent.records.len(), sent.rejects.len()), (0, 20_000));
    assert!(sent.batches.iter().all(|(rows, _)| *rows <= BATCH_ROWS));
}

/// A cursor that is cut stands for all of its file that lies before it, dead or not.
#[test]
fn a_reject_is_sent_where_it_stands_in_its_file_however_many_there_are() {
    let folder = Folder::new();
    let write = |name: &str, symbol: &str| {
        let text = String::from_utf8(csv(&ticks(symbol, 12_000))).unwrap();
        let lines = text.lines().enumerate();
        let bad = |i: usize| if i % 997 == 10 { "nonsense\n" } else { "" };
        folder.write(name, lines.map(|(i, line)| format!("{line}\n{}", bad(i))).collect::<String>().as_bytes())
    };
    let accounts: String = (0..9000)
        .map(|i| match i % 100 {
            7 => "nonsense\n".to_owned(),
            _ => String::from_utf8(json::encode_account(&snapshot(i as i64 * 13, i))).unwrap() + "\n",
        })
        .collect();
    let files = [write("a.csv", "A"), write("b.csv", "B")];
    let config = FileConfig { accounts: Some(folder.write("accounts.jsonl", accounts.as_bytes())), ..of(&files) };
    let (out, inputs) = crossbeam_channel::unbounded();
    let out = Sender::from(out);
    open(&config, &decoder()).ok().unwrap().run(&out, &Stop::new()).unwrap();
    let (mut reached, mut rejects, mut batches) = (BTreeMap::new(), 0, 0);
    for input in inputs.try_iter() {
        let Input::Batch(batch) = input else { continue };
        let of_records = batch.records.iter().map(|record| record.cursor);
        let of_rejects = batch.rejects.iter().map(|reject| reject.cursor);
        let cursors: Vec<Cursor> = of_records.chain(of_rejects).chain(batch.accounts.iter().map(|(c, _)| *c)).collect();
        for cursor in &cursors {
            let before = reached.get(&cursor.partition).copied().unwrap_or(0);
            assert!(cursor.offset >= before, "{cursor} is sent after {before}");
        }
        for cursor in cursors {
            let upper = reached.entry(cursor.partition).or_insert(0);
            *upper = (*upper).max(cursor.offset + 1);
        }
        (rejects, batches) = (rejects + batch.rejects.len(), batches + 1);
    }
    assert_eq!(rejects, 2 * 13 + 90);
    assert!(batches > 3, "{batches}");
}

#[test]
fn unknown_fields_are_counted_of_one_file_and_of_several() {
    let folder = Folder::new();
    let text = String::from_utf8(csv(&ticks("IBM", 20_000))).unwrap();
    let text: String = text.lines().map(|line| format!("{line},note\n")).collect();
    let a = folder.write("a.csv", text.as_bytes());
    let b = folder.write("b.csv", &csv(&ticks("B", 20_000)));
    for files in [vec![a.clone()], vec![a, b]] {
        let (out, inputs) = crossbeam_channel::unbounded();
        let out = Sender::from(out);
        open(&of(&files), &decoder()).ok().unwrap().run(&out, &Stop::new()).unwrap();
        let unknown = inputs.try_iter().map(|input| match input {
            Input::Batch(batch) => batch.unknown_fields,
            _ => 0,
        });
        assert_eq!(unknown.sum::<u64>(), 20_000);
    }
}

#[test]
fn a_file_alone_is_sent_as_if_it_were_merged_with_nothing() {
    let folder = Folder::new();
    let all = ticks("IBM", 30_000);
    let mut text = String::from_utf8(csv(&all)).unwrap();
    text.insert_str(text.find(",9000,").unwrap() / 60 * 60, "\n\nnonsense\n\n");
    let empty = folder.write("empty.csv", b"");
    for path in [folder.write("a.csv", text.as_bytes()), folder.write("a.parquet", &parquet(&all, 7000))] {
        let (alone, merged) = (run(&of(std::slice::from_ref(&path))), run(&of(&[path, empty.clone()])));
        assert!(alone.records == merged.records && alone.rejects == merged.rejects);
        assert_eq!((alone.batches.last(), alone.at_end), (merged.batches.last(), merged.at_end));
        assert!(alone.batches.iter().all(|(rows, _)| *rows <= BATCH_ROWS));
    }
}

#[test]
fn an_empty_file_is_finished_at_once() {
    let folder = Folder::new();
    let files = [folder.write("a.csv", b""), folder.write("b.parquet", &parquet(&[], 10))];
    let sent = run(&FileConfig { accounts: Some(folder.write("accounts", b"")), ..of(&files) });
    assert_eq!(sent.batches, [(0, 0)]);
}

/// Texts that a file has by their number are read by it: across row groups, each with a dictionary of its own.
#[test]
fn dictionaries_of_a_file_are_read_as_such() {
    let folder = Folder::new();
    let symbols = ["A", "B", "CC", "D-4"];
    let all: Vec<Tick> = (0..9000).map(|i| tick(symbols[(i / 1000) as usize % 4], i as i64, i)).collect();
    let path = folder.write("a.parquet", &parquet(&all, 700));
    let load = |path: &Path| ArrowReaderMetadata::load(&File::open(path).unwrap(), ArrowReaderOptions::new()).unwrap();
    let schema = with_dictionaries(load(&path)).schema().to_string();
    assert_eq!(schema.matches("Dictionary(Int32, Utf8)").count(), 2, "{schema}");
    assert_eq!(run(&of(&[path])).ticks(), all);
}

#[test]
fn what_cannot_be_read_is_refused_and_all_of_it_is_named() {
    let folder = Folder::new();
    let good = folder.write("good.csv", &csv(&ticks("A", 1)));
    let whole = parquet(&ticks("A", 1000), 100);
    let mut other = ArrowWriter::try_new(
        Vec::new(),
        arrow::encode(&[], &Instruments::default()).project(&[0, 1]).unwrap().schema(),
        None,
    )
    .unwrap();
    other.flush().unwrap();
    let cases: [(&str, &[u8], &str); 8] = [
        ("empty.parquet", b"", "is not a Parquet file: it does not begin with PAR1"),
        ("cut.parquet", &whole[..whole.len() - 10], "Parquet error: "),
        ("other.parquet", &other.into_inner().unwrap(), "has no column "),
        ("text.arrow", b"kind,symbol\n", "is neither an Arrow IPC file nor a stream"),
        ("cut.arrow", &arrow_file(&ticks("A", 9))[..500], "is cut off: it does not end with ARROW1"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00", "is compressed with gzip: unpack it first"),
        ("a.csv", b"a,b\n1,2\n", "not a known CSV format: \"a.csv\" begins with \"a,b\""),
        ("b.csv", b"kind,symbol,event_time,seq,seq\n", "the header has two columns seq"),
    ];
    let mut files = vec![good];
    files.extend(cases.iter().map(|(name, bytes, _)| folder.write(name, bytes)));
    files.push(folder.0.path().join("absent.csv"));
    files.push(folder.0.path().to_owned());
    let errors = refused(&FileConfig { speed: Speed::Times(0.0), ..of(&files) });
    assert_eq!(errors[0], "speed: 0 must be a positive number of times real time");
    for ((name, _, expected), error) in cases.iter().zip(&errors[1..]) {
        let expected = format!("{}: {expected}", folder.0.path().join(name).display());
        assert!(error.starts_with(&expected), "{error} should be {expected}");
    }
    assert!(errors[9].contains("absent.csv: No such file"), "{}", errors[9]);
    assert!(errors[10].ends_with("Is a directory (os error 21)"), "{}", errors[10]);
    assert_eq!(errors.len(), 11);
}

/// Overwrites the data of one column of one row group.
fn break_parquet(path: &Path, group: usize, column: usize) {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let (start, length) = builder.metadata().row_group(group).column(column).byte_range();
    let mut bytes = fs::read(path).unwrap();
    bytes[start as usize..(start + length) as usize].fill(0xff);
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_breaks_in_the_middle_is_named_after_what_was_good() {
    let folder = Folder::new();
    let all = ticks("A", 20_000);
    let path = folder.write("broken.parquet", &parquet(&all, 1000));
    break_parquet(&path, 9, 2);
    let other = folder.write("other.csv", &csv(&[tick("B", 0, 1), tick("B", 89_985, 2), tick("B", 99_995, 3)]));
    let sent = run(&of(&[path.clone(), other]));
    let (of_a, of_b): (Vec<_>, Vec<_>) = sent.ticks().into_iter().partition(|t| t.symbol.as_str() == "A");
    assert_eq!(of_a, all[..9000]);
    assert_eq!(of_b.len(), 2, "what comes after the broken row is not sent");
    let error = sent.result.unwrap().to_string();
    assert!(error.starts_with(&format!("{}: row 9000: ", path.display())), "{error}");

    let stream = arrow::encode_stream(&all[..100], &Instruments::default());
    let path = folder.write("cut.arrows", &stream[..stream.len() - 100]);
    let errors = refused(&of(std::slice::from_ref(&path)));
    assert_eq!(errors, [format!("{}: ends in the middle of a message", path.display())]);
    let mut file = arrow_file(&all);
    let middle = file.len() / 2;
    file[middle - 2000..middle + 2000].fill(0xff);
    let sent = run(&of(&[folder.write("broken.arrow", &file)]));
    let Some(FileError::Corrupt { row, .. }) = sent.result else { panic!("{:?}", sent.result) };
    assert!((9000..=10_000).contains(&row) && sent.ticks() == all[..row as usize]);
}

#[test]
fn progress_is_known_at_any_time() {
    let folder = Folder::new();
    let (a, b) = (parquet(&ticks("A", 20_000), 5000), csv(&ticks("B", 1000)));
    let sizes = (a.len() + b.len()) as u64;
    let (a, b) = (folder.write("a.parquet", &a), folder.write("b.csv", &b));
    let only = open(&of(std::slice::from_ref(&a)), &decoder()).ok().unwrap();
    assert_eq!(only.progress().rows_total(), Some(20_000));
    let both = open(&of(&[a, b]), &decoder()).ok().unwrap();
    let progress = both.progress();
    assert_eq!((progress.rows_total(), progress.bytes_total()), (None, sizes));
    assert!((0.1..0.9).contains(&progress.fraction()), "the first rows are read when it is opened");
    let (out, _inputs) = crossbeam_channel::unbounded();
    let out = Sender::from(out);
    both.run(&out, &Stop::new()).unwrap();
    assert_eq!(progress.rows_read(), 21_000);
    assert_eq!((progress.bytes_read(), progress.fraction()), (sizes, 1.0));
}

#[test]
fn paced_records_come_at_their_time_and_a_stop_is_obeyed() {
    let folder = Folder::new();
    // 0, 1, 2 seconds, a late one, and an hour; ten times faster than real time.
    let times = [0, 1000, 2000, 500, 3_600_000];
    let all: Vec<Tick> = times.iter().enumerate().map(|(i, ms)| tick("A", *ms, i as u64)).collect();
    let config = FileConfig { speed: Speed::Times(10.0), ..of(&[folder.write("a.csv", &csv(&all))]) };
    let files = open(&config, &decoder()).ok().unwrap();
    let (out, inputs) = crossbeam_channel::bounded(4);
    let out = Sender::from(out);
    let stop = Stop::new();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| files.run(&out, &stop));
        let mut came = Vec::new();
        while came.len() < 4 {
            if let Input::Batch(batch) = inputs.recv_timeout(Duration::from_secs(10)).unwrap() {
                assert!(!batch.at_end);
                came.extend(batch.records.iter().map(|r| (r.tick.seq, begun.elapsed())));
            }
        }
        for (seq, at) in [(0, 0), (1, 100), (2, 200), (3, 200)] {
            let (found, elapsed) = came[seq as usize];
            assert_eq!(found, seq);
            assert!(elapsed >= Duration::from_millis(at), "{seq} came after {elapsed:?}");
        }
        stop.stop();
        assert_eq!(running.join().unwrap(), Ok(()));
    });
    assert!(begun.elapsed() < Duration::from_secs(60), "an hour at ten times is six minutes");
    assert!(inputs.try_iter().all(|input| !matches!(input, Input::Finished { .. })));
}

#[test]
fn what_was_committed_is_read_again_without_waiting() {
    let folder = Folder::new();
    // Hours that were committed; then a late record, one 2 s after the greatest time before it, and one in hours.
    let times = [0, 3_600_000, 7_200_000, 5_000_000, 3_600_001, 7_202_000, 90_000_000];
    let all: Vec<Tick> = times.iter().enumerate().map(|(i, ms)| tick("A", *ms, i as u64)).collect();
    let path = folder.write("a.csv", &csv(&all));
    let other = folder.write("b.csv", &csv(&[tick("B", 7_200_001, 0)]));
    let partition = |path: &Path| Partition::new(&path.display().to_string()).unwrap();
    // The first row is the heading.
    let resume = [Resume { partition: partition(&path), low: 0, upper: 5, fingerprint: None }];
    let config = FileConfig { speed: Speed::Times(10.0), ..of(&[path, other]) };
    let files = open(&config, &decoder()).ok().unwrap().resumed(&resume);
    let (out, inputs) = crossbeam_channel::unbounded();
    let out = Sender::from(out);
    let (stop, begun) = (Stop::new(), Instant::now());
    std::thread::scope(|scope| {
        let running = scope.spawn(|| files.run(&out, &stop));
        let mut came = Vec::new();
        while came.len() < 7 {
            let wait = Duration::from_secs(60).saturating_sub(begun.elapsed());
            let Ok(input) = inputs.recv_timeout(wait) else {
                stop.stop();
                panic!("{came:?}: not within a minute, and maybe in hours");
            };
            if let Input::Batch(batch) = input {
                came.extend(batch.records.iter().map(|r| (r.tick.symbol.to_string(), r.tick.seq, begun.elapsed())));
            }
        }
        let order: Vec<(&str, u64)> = came.iter().map(|(symbol, seq, _)| (symbol.as_str(), *seq)).collect();
        assert_eq!(order, [("A", 0), ("A", 1), ("A", 2), ("A", 3), ("A", 4), ("B", 0), ("A", 5)]);
        assert!(came[6].2 >= Duration::from_millis(200), "{:?}: what is new keeps its pace", came[6].2);
        stop.stop();
        assert_eq!(running.join().unwrap(), Ok(()));
    });
}

#[test]
fn the_real_file_has_all_its_rows() {
    let shared = std::env::var_os("MAREA_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let path = shared.join("data/us-equities-20131007.parquet");
    if !path.exists() {
        eprintln!("SKIPPED: no real data at {}; set MAREA_SHARED to the folder that has it", path.display());
        return;
    }
    let sent = run(&of(&[path]));
    assert_eq!((sent.records.len(), sent.rejects.len()), (145_089, 0));
    let trades = |symbol: &str| {
        let is = |t: &&Record| t.tick.symbol.as_str() == symbol && t.tick.event.kind() == "trade";
        sent.records.iter().filter(is).count()
    };
    assert_eq!([trades("AIG"), trades("BAC"), trades("IBM")], [25_351, 88_172, 24_293]);
}
