//! Tables and laws of the configuration.

use super::*;

fn load_with(
    toml: &str,
    env: &[(&str, &str)],
    flags: &[(&'static str, &'static str, &str, &str)],
) -> Result<Loaded, ConfigErrors> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("marea.toml");
    std::fs::write(&path, toml).unwrap();
    let env: Vec<_> = env.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let flags: Vec<_> = flags
        .iter()
        .map(|(section, key, value, name)| Flag {
            section,
            key,
            values: vec![value.to_string()],
            name: name.to_string(),
        })
        .collect();
    let name = folder.path().display().to_string() + "/";
    load(&Sources { file: Some(&path), env: &env, flags: &flags, cores: 2 })
        .map_err(|e| ConfigErrors(e.0.into_iter().map(|line| line.replace(&name, "")).collect()))
}

fn errors(toml: &str, env: &[(&str, &str)], flags: &[(&'static str, &'static str, &str, &str)]) -> Vec<String> {
    load_with(toml, env, flags).unwrap_err().0
}

#[test]
fn every_error_has_its_place_its_key_its_value_and_what_it_must_be() {
    let cases: &[(&str, &str)] = &[
        ("[pipeline]\nworker = 2", "marea.toml:2: pipeline.worker: unknown key; did you mean \"workers\"?"),
        ("[pipelin]\nworkers = 2", "marea.toml:1: pipelin: unknown section; did you mean \"pipeline\"?"),
        ("[kafak]\nbrokers = 'x'", "marea.toml:1: kafak: unknown section; did you mean \"kafka\"?"),
        ("[pipeline]\nzzzzzzzzzz = 2", "marea.toml:2: pipeline.zzzzzzzzzz: unknown key"),
        ("pipeline = 3", "marea.toml:1: pipeline: must be a section, [pipeline]"),
        ("[pipeline]\nworkers = 0", "marea.toml:2: pipeline.workers: \"0\" must be a whole number from 1 to 256"),
        ("[pipeline]\nworkers = -1", "marea.toml:2: pipeline.workers: \"-1\" must be a whole number from 1 to 256"),
        ("[pipeline]\nworkers = 1.5", "marea.toml:2: pipeline.workers: \"1.5\" must be a whole number from 1 to 256"),
        ("[pipeline]\nworkers = {}", "marea.toml:2: pipeline.workers: must be a plain value or a list, not a table"),
        (
            "[pipeline]\nmax_ticks = 0",
            "marea.toml:2: pipeline.max_ticks: \"0\" must be a whole number from 1 to 1000000",
        ),
        (
            "[pipeline]\nclock = 'wal'",
            "marea.toml:2: pipeline.clock: \"wal\" must be wall or event; did you mean \"wall\"?",
        ),
        (
            "[pipeline]\nlateness = 600",
            "marea.toml:2: pipeline.lateness: \"600\" must be a length of time such as 250ms, 30s, 10m, 4h or 2d",
        ),
        (
            "[pipeline]\nlateness = '-1s'",
            "marea.toml:2: pipeline.lateness: \"-1s\" must be a length of time such as 250ms, 30s, 10m, 4h or 2d",
        ),
        (
            "[pipeline]\nlateness = '99999999999999999999s'",
            "marea.toml:2: pipeline.lateness: \"99999999999999999999s\" must be a length of time such as 250ms, 30s, 10m, 4h or 2d",
        ),
        ("[pipeline]\ntimeframes = []", "marea.toml:2: pipeline.timeframes: \"\" must name at least one timeframe"),
        (
            "[pipeline]\ntimeframes = ['7m']",
            "marea.toml:2: pipeline.timeframes: \"7m\" timeframe \"7m\" is not a length such as 10ms, 1s, 5m, 1h or 1d that divides a day",
        ),
        (
            "[pipeline]\ntimeframes = ['5m', '1m']",
            "marea.toml:2: pipeline.timeframes: \"5m, 1m\" must rise, the base first",
        ),
        (
            "[pipeline]\ntimeframes = ['2m', '5m']",
            "marea.toml:2: pipeline.timeframes: \"2m, 5m\" must be multiples of the first: 5m is none of 2m",
        ),
        (
            "[indicators]\ntimeframes = ['4h']",
            "marea.toml:2: indicators.timeframes: \"4h\" must be of pipeline.timeframes (1s, 1m, 5m, 1h); \"4h\" is not",
        ),
        (
            "[source]\nkind = 'kafak'",
            "marea.toml:2: source.kind: \"kafak\" must be synthetic, file, kafka or rabbitmq; did you mean \"kafka\"?",
        ),
        ("[source]\nkind = 'file'", "default: source.paths: source.kind is \"file\", so at least one must be named"),
        (
            "[source]\nkind = 'file'\npaths = ['/nowhere/a.csv']",
            "marea.toml:3: source.paths: \"/nowhere/a.csv\" is not there",
        ),
        ("[source]\nkind = 'file'\npaths = ['/']", "marea.toml:3: source.paths: \"/\" is a folder, not a file"),
        (
            "[source]\nspeed = '0x'",
            "marea.toml:2: source.speed: \"0x\" must be full, or a multiple of real time such as 1x or 60x",
        ),
        (
            "[source]\nspeed = 'nanx'",
            "marea.toml:2: source.speed: \"nanx\" must be full, or a multiple of real time such as 1x or 60x",
        ),
        (
            "[source]\nseed = 'x'",
            "marea.toml:2: source.seed: \"x\" must be a whole number from 0 to 18446744073709551615",
        ),
        ("[source]\nrate = 0", "marea.toml:2: source.rate: \"0\" must be ticks a second, from 0.01 to 10000000"),
        ("[source]\nrate = nan", "marea.toml:2: source.rate: \"nan\" must be ticks a second, from 0.01 to 10000000"),
        ("[live]\nfile = '/nowhere/live.toml'", "marea.toml:2: live.file: \"/nowhere/live.toml\" is not there"),
        ("[store]\npath = ''", "marea.toml:2: store.path: \"\" must name a file"),
        (
            "[store]\npath = '/nowhere/marea.db'",
            "marea.toml:2: store.path: \"/nowhere/marea.db\" must be in a folder that exists: /nowhere does not",
        ),
        (
            "[feed]\nlisten = 'http://127.0.0.1:8000'",
            "marea.toml:2: feed.listen: \"http://127.0.0.1:8000\" must be an address and a port, such as 127.0.0.1:8000",
        ),
        (
            "[feed]\nlisten = '127.0.0.1:65536'",
            "marea.toml:2: feed.listen: \"127.0.0.1:65536\" must be an address and a port, such as 127.0.0.1:8000",
        ),
        (
            "[log]\nlevel = 'inof'",
            "marea.toml:2: log.level: \"inof\" must be error, warn, info, debug or trace; did you mean \"info\"?",
        ),
        ("[log]\nformat = 'xml'", "marea.toml:2: log.format: \"xml\" must be text or json"),
    ];
    for (toml, expected) in cases {
        assert_eq!(errors(toml, &[], &[]), [*expected], "{toml}");
    }
}

#[test]
fn all_errors_are_listed_and_the_environment_and_flags_are_named() {
    let found = errors(
        "[pipeline]\nworkers = 'many'\nworker = 1\n[log]\nlevel = 7",
        &[
            ("MAREA__FEED__LISTEN", "8000"),
            ("MAREA__FEED__LISTN", "x"),
            ("MAREA__FED__LISTEN", "x"),
            ("MAREA__FEED", "x"),
            ("MAREA_UNRELATED", "x"),
        ],
        &[("pipeline", "lateness", "soon", "--lateness")],
    );
    assert_eq!(
        found,
        [
            "marea.toml:3: pipeline.worker: unknown key; did you mean \"workers\"?",
            "MAREA__FED__LISTEN: fed: unknown section; did you mean \"feed\"?",
            "MAREA__FEED: must be MAREA__SECTION__KEY",
            "MAREA__FEED__LISTN: feed.listn: unknown key; did you mean \"listen\"?",
            "--lateness: pipeline.lateness: \"soon\" must be a length of time such as 250ms, 30s, 10m, 4h or 2d",
            "marea.toml:2: pipeline.workers: \"many\" must be a whole number from 1 to 256",
            "MAREA__FEED__LISTEN: feed.listen: \"8000\" must be an address and a port, such as 127.0.0.1:8000",
            "marea.toml:5: log.level: \"7\" must be error, warn, info, debug or trace",
        ]
    );
}

#[test]
fn a_broken_file_is_named_with_its_line() {
    let found = errors("[pipeline]\nworkers = = 2\n[log]\nlevel = 'loud'\n", &[], &[]);
    assert!(found[0].starts_with("marea.toml:2: "), "{found:?}");
    assert!(found.iter().any(|e| e.starts_with("marea.toml:4: log.level: \"loud\"")), "{found:?}");
    let missing = load(&Sources { file: Some(Path::new("/nowhere/m.toml")), env: &[], flags: &[], cores: 2 });
    let text = missing.unwrap_err().to_string();
    assert!(text.starts_with("/nowhere/m.toml: cannot be read: "), "{text}");
}

#[test]
fn the_later_layer_wins_and_every_value_knows_its_origin() {
    let toml = "[pipeline]\nworkers = 1\nlateness = '1m'\nclock = 'event'\ntimeframes = ['1m', '5m']";
    let env = [("MAREA__PIPELINE__LATENESS", "2m"), ("MAREA__PIPELINE__CLOCK", "event")];
    let flags = [("pipeline", "clock", "wall", "--clock")];
    let loaded = load_with(toml, &env, &flags).unwrap();
    let config = &loaded.config.pipeline;
    assert_eq!((config.workers, config.lateness, config.clock), (1, 120 * SECOND, Clock::Wall));
    assert_eq!(loaded.config.indicators.timeframes, [Timeframe::M5], "the default follows the timeframes");
    let of = |key: &str| {
        let setting = loaded.settings.iter().find(|s| s.key == key).unwrap();
        let origin = setting.origin.to_string();
        (setting.value.clone(), origin.rsplit('/').next().unwrap_or_default().to_owned())
    };
    assert_eq!(of("pipeline.workers"), ("1".to_owned(), "marea.toml:2".to_owned()));
    assert_eq!(of("pipeline.lateness"), ("2m".to_owned(), "MAREA__PIPELINE__LATENESS".to_owned()));
    assert_eq!(of("pipeline.clock"), ("wall".to_owned(), "--clock".to_owned()));
    assert_eq!(of("pipeline.max_ticks"), ("10000".to_owned(), "default".to_owned()));
    assert_eq!(of("indicators.timeframes"), ("5m".to_owned(), "default".to_owned()));
    assert_eq!(loaded.settings.len(), KEYS.len());
}

#[test]
fn what_is_unwise_is_a_warning() {
    let loaded =
        load_with("", &[], &[("pipeline", "workers", "3", "--workers"), ("feed", "listen", "0.0.0.0:80", "--listen")]);
    assert_eq!(
        loaded.unwrap().warnings,
        [
            "--workers: pipeline.workers: 3 workers on 2 cores will wait for each other",
            "--listen: feed.listen: 0.0.0.0:80 is open to the network, and the feed asks nobody who they are",
        ]
    );
}

#[test]
fn lists_read_the_same_from_text_and_toml() {
    assert_eq!(split("ema(12), macd(12,26,9) ,,obv"), ["ema(12)", "macd(12,26,9)", "obv"]);
    let from_toml = load_with("[indicators]\nlist = ['ema(12)', 'macd(12,26,9)']", &[], &[]).unwrap();
    let from_env = load_with("", &[("MAREA__INDICATORS__LIST", "ema(12),macd(12,26,9)")], &[]).unwrap();
    assert_eq!(from_toml.config.indicators.list, from_env.config.indicators.list);
    let refused = errors("[indicators]\nlist = ['ema(0)']", &[], &[]);
    assert!(refused[0].starts_with("marea.toml:2: indicators.list: \"ema(0)\" ema(0): "), "{refused:?}");
}
