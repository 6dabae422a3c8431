//! RabbitMQ: a stream and a queue give what the file gives (law L6).

use crate::common::{assert_same, market};

#[test]
fn a_stream_and_a_queue_give_what_the_file_gives() {
    let market = market(20_000);
    let expected = market.expected();
    for (kind, codec) in [("stream", "json"), ("stream", "arrow"), ("queue", "json")] {
        let url = marea_servers::shared::rabbitmq().vhost(&format!("l6-{kind}-{codec}"));
        let env = [
            ("MAREA__SOURCE__KIND", "rabbitmq"),
            ("MAREA__RABBITMQ__URL", &*url),
            ("MAREA__RABBITMQ__KIND", kind),
            ("MAREA__RABBITMQ__ACCOUNTS", "marea.accounts"),
            ("MAREA__FEED__LISTEN", "127.0.0.1:0"),
        ];
        let args = ["publish", "ticks.csv", "--to", "rabbitmq", "--as", codec, "--accounts", "accounts.jsonl"];
        let args = [&args[..], &["--live", "live.toml", "--format", "json"]].concat();
        let done = market.run(&args, &env);
        assert_eq!(done["ticks"], market.ticks, "{done}");
        let store = format!("{kind}-{codec}.db");
        let args = ["run", "--until", &market.until, "--dump", "got", "--clock", "event", "--live", "live.toml"];
        let args = [&args[..], &["--store", &store, "--format", "json"]].concat();
        let totals = market.run(&args, &env);
        assert_eq!(totals["dead"], 0, "{totals}");
        assert_same(&expected, &market.dump("got"), &format!("{kind}, {codec}"));
    }
}
