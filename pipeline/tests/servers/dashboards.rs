//! Every expression of the dashboards gives rows, on a live Prometheus and a live PostgreSQL that the pipeline has fed;
//! and the alerts are what Prometheus takes.

use crate::common::{Market, market};
use marea::committer::wall_now;
use marea_model::codec::{csv, json};
use marea_model::time::{MILLI, SECOND, format_rfc3339};
use marea_servers::{Exporter, Prometheus, shared};
use marea_sources::etcd::{Client, EtcdConfig, Write};
use marea_sources::live_file;
use marea_sources::synthetic::{self, Emitted, Pace, Synthetic};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(120);
/// As Grafana has it for a scrape every 15 s.
const RATE_INTERVAL: &str = "1m";

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

fn dashboards() -> BTreeMap<String, Value> {
    let files = std::fs::read_dir(deploy("grafana/dashboards")).unwrap().map(|file| file.unwrap().path());
    let read =
        |path: PathBuf| (path.display().to_string(), serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap());
    files.map(read).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[test]
fn panels_have_ids_places_units_and_descriptions() {
    let (mut uids, boards) = (BTreeSet::new(), dashboards());
    assert_eq!(boards.len(), 4);
    for (file, board) in &boards {
        assert!(text(&board["uid"]).starts_with("marea-") && uids.insert(text(&board["uid"])), "{file}: uid");
        assert!(!text(&board["description"]).is_empty(), "{file}: description");
        let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
        for panel in list(&board["panels"]) {
            let title = text(&panel["title"]);
            let what = format!("{file}: {title}");
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{what}: id");
            assert!(text(&panel["description"]).len() > 10, "{what}: description");
            let units = list(&panel["fieldConfig"]["overrides"]).iter().flat_map(|o| list(&o["properties"]));
            let has_unit =
                units.chain([&panel["fieldConfig"]["defaults"]]).any(|p| p["id"] == "unit" || !p["unit"].is_null());
            assert!(has_unit || !panel["options"]["yAxis"]["unit"].is_null() || title == "Build", "{what}: unit");
            let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{what}: too wide");
            for cell in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
                assert!(taken.insert(cell), "{what}: lies over another");
            }
            let refs: BTreeSet<&str> = list(&panel["targets"]).iter().map(|target| text(&target["refId"])).collect();
            assert!(!refs.is_empty() && refs.len() == list(&panel["targets"]).len(), "{what}: targets");
        }
    }
}

#[test]
fn promtool_takes_rules_and_configuration() {
    for args in
        [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"], ["check", "config", "prometheus.yml"]]
    {
        let output = Command::new("promtool").args(args).current_dir(deploy("prometheus")).output();
        let output = output.expect("promtool comes with Prometheus: ./dev setup");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{args:?}\n{}", String::from_utf8_lossy(&said));
    }
}

/// Three hours of a market that end now, in a folder.
fn recent() -> Market {
    let market = market(1);
    let start = wall_now() / SECOND * SECOND - 3 * 3_600 * SECOND;
    let config = Synthetic { start, rate: 2.0, pace: Pace::Full, limit: Some(21_600), ..Synthetic::default() };
    let instruments = synthetic::instruments();
    let (mut ticks, mut accounts) = (Vec::new(), Vec::new());
    for (_, what) in synthetic::Market::new(&config, &instruments).unwrap() {
        match what {
            Emitted::Tick(tick) if tick.event_time < wall_now() => ticks.push(tick),
            Emitted::Account(snapshot) if snapshot.event_time < wall_now() => {
                accounts.extend(json::encode_account(&snapshot));
                accounts.push(b'\n');
            }
            _ => break,
        }
        if ticks.len() >= 21_600 {
            break;
        }
    }
    assert!(ticks.len() > 10_000, "{}", ticks.len());
    std::fs::write(market.path().join("ticks.csv"), csv::encode(&ticks, &instruments)).unwrap();
    std::fs::write(market.path().join("accounts.jsonl"), accounts).unwrap();
    market
}

/// Rows of a query, the first being the names of columns.
fn rows(url: &str, sql: &str) -> Result<Vec<String>, String> {
    let psql = Command::new("psql").args(["--csv", "-v", "ON_ERROR_STOP=1", "-c", sql, url]).output().unwrap();
    if !psql.status.success() {
        return Err(String::from_utf8_lossy(&psql.stderr).into_owned());
    }
    Ok(String::from_utf8_lossy(&psql.stdout).lines().map(str::to_owned).collect())
}

/// What Grafana makes of a query before PostgreSQL sees it.
struct Grafana {
    from: i64,
    to: i64,
    variables: BTreeMap<String, Vec<String>>,
}

impl Grafana {
    /// A range such as that from `now-6h` to now.
    fn new(from: &str) -> Grafana {
        let back = marea::config::duration(from.strip_prefix("now-").unwrap()).unwrap();
        Grafana { from: wall_now() - back, to: wall_now(), variables: BTreeMap::new() }
    }

    fn sql(&self, raw: &str) -> String {
        let quoted = |time: i64| format!("'{}'", format_rfc3339(time / MILLI * MILLI));
        let (from, to) = (quoted(self.from), quoted(self.to));
        let mut sql = raw.to_owned();
        for (name, values) in &self.variables {
            let values: Vec<String> = values.iter().map(|value| format!("'{}'", value.replace('\'', "''"))).collect();
            sql = sql.replace(&format!("${name}"), &values.join(","));
        }
        sql = sql.replace("$__timeFrom()", &from).replace("$__timeTo()", &to);
        sql = sql.replace("$__unixEpochFrom()", &(self.from / SECOND).to_string());
        sql = sql.replace("$__unixEpochTo()", &(self.to / SECOND).to_string());
        while let Some((before, rest)) = sql.split_once("$__timeFilter(") {
            // Its argument ends at the first parenthesis.
            let (column, after) = rest.split_once(')').unwrap();
            assert!(!column.contains('('), "a macro's argument must have no parentheses: {column}");
            sql = format!("{before}{column} BETWEEN {from} AND {to}{after}");
        }
        assert!(!sql.contains("$_") && !sql.contains("${"), "left unreplaced: {sql}");
        sql
    }
}

/// How many rows of a query are shown.
const SHOWN: usize = 5;

/// A panel, an annotation or a variable of type query that PostgreSQL answers: its first rows.
fn check_sql(what: &str, target: &Value, sql: &str, url: &str) -> Result<String, String> {
    let rows = rows(url, sql).map_err(|e| format!("{what}: {e}{sql}"))?;
    if rows.len() < 2 {
        return Err(format!("{what}: no rows: {sql}"));
    }
    if target["format"] == "time_series" {
        let times: Vec<&str> = rows[1..].iter().filter_map(|row| row.split(',').next()).collect();
        if rows[0] != "time,metric,value" || !times.is_sorted() {
            return Err(format!("{what}: a time series has time, metric, value, by rising time: {sql}"));
        }
    }
    Ok(format!("{}\n({} rows)", rows[..rows.len().min(SHOWN + 1)].join("\n"), rows.len() - 1))
}

fn percent(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { (b as char).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// Prometheus, at `host:port`.
struct Metrics(String);

impl Metrics {
    /// In the old protocol, whose answers come in one piece.
    fn get(&self, path: &str) -> Value {
        let mut stream = TcpStream::connect(&self.0).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1)
            .unwrap_or_else(|e| panic!("{path}: {e}: {answer}"))
    }

    /// The last values of the series that an expression gives in a range.
    fn values(&self, expression: &str) -> Result<Vec<f64>, String> {
        let now = wall_now() / SECOND;
        let query = percent(&expression.replace("$__rate_interval", RATE_INTERVAL).replace("$__interval", "15s"));
        let path = format!("/api/v1/query_range?start={}&end={now}&step=1&query={query}", now - 30);
        let body = self.get(&path);
        if body["status"] != "success" {
            return Err(format!("{expression}: {}", body["error"]));
        }
        let last = |series: &Value| text(&list(&series["values"]).last()?[1]).parse().ok();
        Ok(list(&body["data"]["result"]).iter().filter_map(last).collect())
    }
}

#[test]
fn every_expression_gives_rows() {
    let market = recent();
    let (postgres, redis, etcd) = (shared::postgres(), shared::redis(), shared::etcd());
    let url = postgres.database("dashboards");
    let env = [
        ("MAREA__SOURCE__KIND", "kafka".to_owned()),
        ("MAREA__KAFKA__BROKERS", shared::kafka().brokers()),
        ("MAREA__KAFKA__TOPIC", "dashboards".to_owned()),
        ("MAREA__KAFKA__ACCOUNTS_TOPIC", "dashboards.accounts".to_owned()),
        ("MAREA__FEED__LISTEN", "127.0.0.1:0".to_owned()),
        ("MAREA__ETCD__ENDPOINTS", etcd.endpoint()),
        ("MAREA__STORE__URL", url.clone()),
    ];
    let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (*key, value.as_str())).collect();
    // Scales are those of the very beginning.
    let client = Client::connect(&EtcdConfig { endpoints: vec![etcd.endpoint()], ..EtcdConfig::default() }).unwrap();
    let put = |puts| client.write(&Write { puts, ..Write::default() }).unwrap();
    put(live_file::parse(Path::new("demo.toml"), synthetic::LIVE_CONFIG.as_bytes()).unwrap());
    // Both topics are there before anybody reads.
    std::fs::write(market.path().join("none.csv"), "event_time,symbol,seq,kind,price,size\n").unwrap();
    std::fs::write(market.path().join("none.jsonl"), "").unwrap();
    let publish = |ticks: &str, accounts: &str| {
        let args =
            ["publish", ticks, "--to", "kafka", "--accounts", accounts, "--live", "live.toml", "--format", "json"];
        let not_etcd: Vec<_> = env.iter().copied().filter(|(key, _)| !key.contains("ETCD")).collect();
        market.run(&args, &not_etcd)
    };
    publish("none.csv", "none.jsonl");
    let migrated = market.marea(&["migrate"], &env).output().unwrap();
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let mut process = market.start("run", &["run"], &env);
    let feed = process.feed();

    let (of_redis, of_postgres) =
        (Exporter::redis(&redis.url()).unwrap(), Exporter::postgres(&postgres.url()).unwrap());
    let jobs = [
        ("marea", feed.address.clone()),
        ("etcd", etcd.endpoint().replace("http://", "")),
        ("redis", of_redis.address()),
        ("postgres", of_postgres.address()),
    ];
    let job = |(name, target): &(&str, String)| {
        format!("- {{job_name: {name}, static_configs: [{{targets: ['{target}']}}]}}\n")
    };
    let prometheus = Prometheus::start_with(&format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n{}",
        deploy("prometheus/rules.yml").canonicalize().unwrap().display(),
        jobs.iter().map(job).collect::<String>()
    ));
    let prometheus = prometheus.unwrap();
    let metrics = Metrics(prometheus.url().replace("http://", ""));
    let wait = |what: &str, is_so: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < SOON, "{what}: not within {SOON:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    // Twice, so that what happens from now on is a rate.
    wait("all are scraped", &|| {
        metrics.values("sum(count_over_time(up[1m])) >= 8 and min(up) == 1").is_ok_and(|values| !values.is_empty())
    });

    let at = |minutes_ago: i64| format_rfc3339((wall_now() / SECOND - minutes_ago * 60) * SECOND);
    let window = [("start_utc", at(60)), ("end_utc", at(50)), ("pre_buffer_sec", "60".to_owned())];
    put(window.map(|(field, value)| (format!("/echo/windows/M1/EURUSD/{field}"), value)).into());
    let noted = "SELECT 1 FROM config_events WHERE key LIKE '/echo/windows/%'";
    wait("the window", &|| rows(&url, noted).unwrap().len() > 1);
    let published = publish("ticks.csv", "accounts.jsonl");
    let count = |sql: &str| rows(&url, sql).unwrap()[1].parse::<u64>().unwrap();
    let records = published["ticks"].as_u64().unwrap() + published["accounts"].as_u64().unwrap();
    wait("all is stored", &|| {
        count("SELECT records_in FROM pipeline") >= records && count("SELECT count(*) FROM backtest_metrics") > 0
    });
    wait("all is scraped again", &|| {
        let seen = format!(
            "sum(marea_ingest_records_total) >= {records} and sum(rate(marea_end_to_end_latency_seconds_count[1m])) > 0"
        );
        metrics.values(&seen).is_ok_and(|values| !values.is_empty())
    });

    let (mut wrong, mut shown) = (Vec::new(), String::new());
    for (file, board) in dashboards() {
        shown += &format!("\n# {}\n", text(&board["title"]));
        let mut grafana = Grafana::new(text(&board["time"]["from"]));
        for variable in list(&board["templating"]["list"]) {
            let values = rows(&url, &grafana.sql(text(&variable["query"]))).unwrap();
            assert!(values.len() > 1, "{file}: ${} has no values", text(&variable["name"]));
            grafana.variables.insert(text(&variable["name"]).to_owned(), values[1..].to_vec());
        }
        let panels = list(&board["panels"]).iter().flat_map(|panel| {
            list(&panel["targets"]).iter().map(move |target| (text(&panel["title"]), &panel["datasource"], target))
        });
        let annotations = list(&board["annotations"]["list"]).iter();
        let annotations = annotations.map(|a| (text(&a["name"]), &a["datasource"], &a["target"]));
        for (title, source, target) in panels.chain(annotations) {
            let what = format!("{file}: {title}");
            let (query, result) = match text(&source["uid"]) {
                "marea-postgres" => {
                    let sql = grafana.sql(text(&target["rawSql"]));
                    let result = check_sql(&what, target, &sql, &url);
                    (sql, result)
                }
                "marea-prometheus" => {
                    let expression = text(&target["expr"]);
                    let result = match metrics.values(expression) {
                        Ok(values) if values.iter().any(|value| value.is_finite()) => Ok(format!("{values:?}")),
                        Ok(values) => Err(format!("{what}: {values:?} from {expression}")),
                        Err(error) => Err(format!("{what}: {error}")),
                    };
                    (expression.to_owned(), result)
                }
                other => (String::new(), Err(format!("{what}: no such data source: {other:?}"))),
            };
            match result {
                Ok(result) => shown += &format!("\n## {title}\n\n```\n{query}\n```\n\n```\n{result}\n```\n"),
                Err(error) => wrong.push(error),
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    // For whoever has no Grafana at hand: every panel's query and what it gave.
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("panels.md"), shown).unwrap();

    // The alerts' expressions are evaluated without an error, and none of them is about what does not exist.
    let rules = metrics.get("/api/v1/rules");
    let rules = list(&rules["data"]["groups"][0]["rules"]).to_vec();
    assert!(rules.len() >= 9 && rules.iter().all(|rule| rule["health"] == "ok"), "{rules:#?}");
    process.terminate();
}
