//! The names of keys and channels.
//!
//! | key | is | lives |
//! |---|---|---|
//! | `recommendation:{symbol}:latest` | the body of `/api/v1/recommendations/{symbol}/latest` | 1 h, refreshed; never past its expiry |
//! | `recommendation:{symbol}:stream`, channel `recommendation:{symbol}` | each change, id `{seq}-0` | the last [`RECOMMENDATIONS`] |
//! | `verdict:{account}:{symbol}:latest` | the same of a verdict | while it stands |
//! | `verdict:{account}:stream`, channel `verdict:{account}` | each change | the last [`VERDICTS`] |
//! | `market_data:{symbol}:{timeframe}:latest` | the last bar, open or closed | 15 min after its last change |
//! | `strategy_rankings:{symbol}` | sorted set: strategies by the Sharpe ratio of 30 days | while they stand |
//! | `recommendations:ranking` | sorted set: symbols by the confidence of their active recommendation | while they stand |
//! | `backtest:{strategy}:result` | all metrics of a strategy | 7 d after its last change |
//! | `marea:heartbeat`, also a channel | until when all of this may be acted on | until then |
//! | `marea:sentinel` | generation, seq and epoch that were written last | |
//! | `marea:index` | hash of every key that was written, to be able to withdraw it | |
//!
//! With `hash_tags` the braces are written: what one script touches is in one slot of a Cluster. A `:` in an account's
//! name is written `%3A`, so that no two verdicts share a key.

use crate::store::AuditKey;
use marea_model::{AccountId, StrategyId, Symbol, Timeframe};

/// Entries that a symbol's stream of recommendations keeps, about.
pub(super) const RECOMMENDATIONS: u64 = 1_000;
/// Entries that an account's stream of verdicts keeps, about.
pub(super) const VERDICTS: u64 = 10_000;

pub(super) const HEARTBEAT: &str = "marea:heartbeat";
pub(super) const SENTINEL: &str = "marea:sentinel";
pub(super) const INDEX: &str = "marea:index";
pub(super) const RANKING: &str = "recommendations:ranking";

/// How keys are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub(super) hash_tags: bool,
}

impl Names {
    fn tag(self, text: &str) -> String {
        if self.hash_tags { format!("{{{text}}}") } else { text.to_owned() }
    }

    fn account(self, account: AccountId) -> String {
        self.tag(&account.as_str().replace(':', "%3A"))
    }

    pub(super) fn latest(self, key: AuditKey) -> String {
        match key {
            AuditKey::Recommendation(symbol) => format!("recommendation:{}:latest", self.tag(symbol.as_str())),
            AuditKey::Verdict(account, symbol) => {
                format!("verdict:{}:{}:latest", self.account(account), self.tag(symbol.as_str()))
            }
        }
    }

    pub(super) fn stream(self, key: AuditKey) -> String {
        self.channel(key) + ":stream"
    }

    pub(super) fn channel(self, key: AuditKey) -> String {
        match key {
            AuditKey::Recommendation(symbol) => format!("recommendation:{}", self.tag(symbol.as_str())),
            AuditKey::Verdict(account, _) => format!("verdict:{}", self.account(account)),
        }
    }

    pub(super) fn market_data(self, symbol: Symbol, timeframe: Timeframe) -> String {
        format!("market_data:{}:{}:latest", self.tag(symbol.as_str()), self.tag(&timeframe.to_string()))
    }

    pub(super) fn strategies(self, symbol: Symbol) -> String {
        format!("strategy_rankings:{}", self.tag(symbol.as_str()))
    }

    pub(super) fn backtest(self, strategy: StrategyId) -> String {
        format!("backtest:{}:result", self.tag(strategy.as_str()))
    }

    /// The key that has the generation and epoch of a sorted set, in the slot of that set.
    pub(super) fn version(self, sorted_set: &str) -> String {
        match self.hash_tags && !sorted_set.contains('{') {
            true => format!("{{{sorted_set}}}:version"),
            false => format!("{sorted_set}:version"),
        }
    }
}

/// Entries that the stream of a key keeps.
pub(super) fn trim(key: AuditKey) -> u64 {
    match key {
        AuditKey::Recommendation(_) => RECOMMENDATIONS,
        AuditKey::Verdict(..) => VERDICTS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{account, symbol};

    #[test]
    fn names_are_those_of_the_wire() {
        let (plain, tagged) = (Names { hash_tags: false }, Names { hash_tags: true });
        let recommendation = AuditKey::Recommendation(symbol("EUR/USD"));
        let verdict = AuditKey::Verdict(account("M1"), symbol("X:IBM"));
        let strategy = StrategyId::new("ema-fast").unwrap();
        for (names, expected) in [
            (
                plain,
                "recommendation:EUR/USD:latest recommendation:EUR/USD:stream recommendation:EUR/USD verdict:M1:X:IBM:latest \
                     verdict:M1:stream verdict:M1 market_data:EUR/USD:5m:latest strategy_rankings:EUR/USD \
                     strategy_rankings:EUR/USD:version backtest:ema-fast:result recommendations:ranking:version",
            ),
            (
                tagged,
                "recommendation:{EUR/USD}:latest recommendation:{EUR/USD}:stream recommendation:{EUR/USD} \
                      verdict:{M1}:{X:IBM}:latest verdict:{M1}:stream verdict:{M1} market_data:{EUR/USD}:{5m}:latest \
                      strategy_rankings:{EUR/USD} strategy_rankings:{EUR/USD}:version backtest:{ema-fast}:result \
                      {recommendations:ranking}:version",
            ),
        ] {
            let strategies = names.strategies(symbol("EUR/USD"));
            let found = [
                names.latest(recommendation),
                names.stream(recommendation),
                names.channel(recommendation),
                names.latest(verdict),
                names.stream(verdict),
                names.channel(verdict),
                names.market_data(symbol("EUR/USD"), Timeframe::M5),
                strategies.clone(),
                names.version(&strategies),
                names.backtest(strategy),
                names.version(RANKING),
            ];
            assert_eq!(found.join(" "), expected);
        }
    }

    #[test]
    fn no_two_verdicts_share_a_key() {
        let names = Names { hash_tags: false };
        let key = |who, of| names.latest(AuditKey::Verdict(account(who), symbol(of)));
        assert_ne!(key("A:B", "C"), key("A", "B:C"));
    }
}
