//! What an account may do, in words: each reason with its limit and what was measured, and the size step by step.

use super::words::{Page, Recommendation, clock, plain, round};
use super::{AccountFacts, Facts};
use marea_model::time::{MILLI, parse_rfc3339};
use serde::Deserialize;
use std::fmt::Write;

#[derive(Deserialize)]
pub(super) struct Verdict {
    account: String,
    intent: String,
    side: i8,
    allow: bool,
    reasons: Vec<String>,
    details: Vec<String>,
    lots: Option<f64>,
    entry: Option<f64>,
    stop_loss: Option<f64>,
    take_profit: Option<f64>,
    cancel_pending: bool,
    valid_until: Option<String>,
    blocked_until: Option<String>,
    as_of: String,
}

impl Page {
    pub(super) fn verdict(&mut self, v: &Verdict, r: &Recommendation, facts: Option<&Facts>) {
        let side = match v.side {
            1 => self.t(" long", " largo"),
            -1 => self.t(" short", " corto"),
            _ => "",
        };
        let intent = match v.intent.as_str() {
            "enter" => self.t("enter", "entrar"),
            "increase" => self.t("increase", "aumentar"),
            "exit" => self.t("exit", "salir"),
            _ => self.t("nothing to do", "nada que hacer"),
        };
        self.line("");
        self.line(format!(
            "{} {}: {} — {intent}{side} ({} {} UTC)",
            self.t("Verdict for", "Veredicto para"),
            v.account,
            if v.allow { self.t("ALLOW", "PERMITIDO") } else { self.t("BLOCK", "BLOQUEADO") },
            self.t("as of", "a las"),
            clock(&v.as_of)
        ));
        if let Some(facts) = facts {
            self.line(format!("  {} {} UTC:", self.t("measured at", "medido a las"), clock(&facts.now)));
        }
        for reason in &v.reasons {
            let why = self.reason(reason, v, r, facts);
            self.line(format!("  {reason}: {why}"));
        }
        for detail in &v.details {
            self.line(format!("    {detail}"));
        }
        if v.cancel_pending {
            self.line(self.t("  pending orders are to be cancelled", "  las órdenes pendientes deben cancelarse"));
        }
        self.lots(v, facts);
        if let (Some(stop), true) = (v.stop_loss, v.allow) {
            let target = v.take_profit.map_or("–".to_owned(), |t| t.to_string());
            self.line(format!("  stop {stop}, {} {target}", self.t("target", "objetivo")));
        }
        match &v.valid_until {
            Some(until) => self.line(format!(
                "  {} {} UTC; {}",
                self.t("valid until", "válido hasta"),
                clock(until),
                self.t("past that, block", "después, bloquear")
            )),
            None => self.line(self.t("  valid until something changes", "  válido hasta que algo cambie")),
        }
    }

    /// One reason: the limit against what is.
    fn reason(&self, code: &str, v: &Verdict, r: &Recommendation, facts: Option<&Facts>) -> String {
        let account = facts.and_then(|f| f.account.as_ref());
        let policy = account.and_then(|a| a.policy.as_ref());
        let quote = facts.and_then(|f| f.quote.as_ref());
        let tick = facts.map(|f| f.instrument.tick_size).filter(|t| *t > 0.0);
        let points = self.t("points", "puntos");
        let unknown = || {
            self.t(
                "(no figures here: ask the running feed, or replay)",
                "(sin cifras aquí: consulte el servicio en marcha o repita la sesión)",
            )
            .to_owned()
        };
        // The measurement may be later than the verdict, and a reason may have passed since.
        let is = |holds: bool, sign: &'static str, not: &'static str| match holds {
            true => (sign, ""),
            false => (not, self.t(" (when measured, no longer)", " (al medirlo, ya no)")),
        };
        match code {
            "KILL_SWITCH" => self
                .t("trading_enabled is not true: nobody enters", "trading_enabled no es true: nadie entra")
                .to_owned(),
            "NO_POLICY" => self.t("the account has no policy", "la cuenta no tiene política").to_owned(),
            "POLICY_INVALID" => self
                .t(
                    "a key of the policy, or of a window, cannot be read:",
                    "una clave de la política o de una ventana no se puede leer:",
                )
                .to_owned(),
            "POLICY_STALE" => {
                self.t("the live configuration does not answer", "la configuración viva no responde").to_owned()
            }
            "ACCOUNT_DISABLED" => {
                self.t("enabled is false in its policy", "enabled es false en su política").to_owned()
            }
            "NO_TRADE_WINDOW" => {
                let until = v.blocked_until.as_ref();
                let until = until
                    .map_or(self.t("until its cause is removed", "hasta que se retire su causa").to_owned(), |t| {
                        format!("{} {} UTC", self.t("until", "hasta"), clock(t))
                    });
                let now = facts.and_then(|f| parse_rfc3339(&f.now).ok());
                let inside = account.into_iter().flat_map(|a| &a.windows).filter(|(from, to)| {
                    let (from, to) = (parse_rfc3339(from).ok(), parse_rfc3339(to).ok());
                    now.is_some() && from <= now && now < to
                });
                let inside: Vec<String> =
                    inside.map(|(from, to)| format!("[{}, {})", clock(from), clock(to))).collect();
                let inside = if inside.is_empty() { String::new() } else { format!(": {}", inside.join(", ")) };
                format!(
                    "{} {until}{inside}",
                    self.t("inside a no-trade window", "dentro de una ventana sin operaciones")
                )
            }
            "NO_SIGNAL" => self.no_signal(r, account),
            "EXPIRED" => format!(
                "{} {} UTC",
                self.t("the recommendation expired at", "la recomendación venció a las"),
                clock(&r.expires_at)
            ),
            "NO_QUOTE" => self.t("no quote was ever seen", "nunca se ha visto una cotización").to_owned(),
            "QUOTE_STALE" => match (quote, policy) {
                (Some(q), Some(p)) => {
                    let (sign, note) = is(q.age_ms > p.max_quote_age_ms, ">", "≤");
                    format!(
                        "{} {} UTC: {} ms {sign} max_quote_age_ms {} ms{note}",
                        self.t("the last quote is of", "la última cotización es de"),
                        clock(&q.event_time),
                        q.age_ms,
                        p.max_quote_age_ms
                    )
                }
                _ => unknown(),
            },
            "QUOTE_CROSSED" => quote.map_or_else(unknown, |q| {
                let (sign, note) = is(q.bid > q.ask, ">", "≤");
                format!("bid {} {sign} ask {}{note}", q.bid, q.ask)
            }),
            "SPREAD_ABOVE_MAX" => match (quote, policy, tick) {
                (Some(q), Some(p), Some(tick)) => {
                    let (sign, note) = is(q.spread_points > p.max_spread, ">", "≤");
                    format!(
                        "({} − {}) ÷ {tick} = {} {points} {sign} max_spread {} {points}{note}",
                        q.ask,
                        q.bid,
                        plain(q.spread_points),
                        plain(p.max_spread)
                    )
                }
                _ => unknown(),
            },
            "PRICE_MOVED" => match (quote, policy.and_then(|p| p.max_slippage), tick) {
                (Some(q), Some(limit), Some(tick)) => {
                    let (name, price) = if v.side < 0 { ("bid", q.bid) } else { ("ask", q.ask) };
                    let moved = round((price - r.close).abs() / tick, 6);
                    let (sign, note) = is(moved > limit, ">", "≤");
                    format!(
                        "|{name} {price} − {}| ÷ {tick} = {} {points} {sign} max_slippage {} {points}{note}",
                        r.close,
                        plain(moved),
                        plain(limit)
                    )
                }
                _ => unknown(),
            },
            "DELAY_ABOVE_MAX" => {
                let now = facts.and_then(|f| parse_rfc3339(&f.now).ok());
                match (now, parse_rfc3339(&r.bar_close_time).ok(), policy.and_then(|p| p.max_delay_ms)) {
                    (Some(now), Some(close), Some(limit)) => {
                        let delay = now.saturating_sub(close) / MILLI;
                        let (sign, note) = is(delay > limit, ">", "≤");
                        format!(
                            "{} {} UTC: {delay} ms {sign} max_delay_ms {limit} ms{note}",
                            self.t("its bar closed at", "su barra cerró a las"),
                            clock(&r.bar_close_time),
                        )
                    }
                    _ => unknown(),
                }
            }
            "DRAWDOWN_LIMIT" => {
                match account.map(|a| (a.equity, a.peak, a.policy.as_ref().and_then(|p| p.max_drawdown_pct))) {
                    Some((Some(equity), Some(peak), Some(limit))) => {
                        let drawdown = round((peak - equity) / peak * 100.0, 6);
                        let (sign, note) = is(drawdown >= limit, "≥", "<");
                        format!(
                            "({} − {}) ÷ {} = {} % {sign} max_drawdown_pct {} %{note}",
                            plain(peak),
                            plain(equity),
                            plain(peak),
                            plain(drawdown),
                            plain(limit)
                        )
                    }
                    _ => unknown(),
                }
            }
            "NO_EQUITY" => match account.and_then(|a| a.equity) {
                Some(equity) => {
                    let (sign, note) = is(equity <= 0.0, "≤", ">");
                    format!("{} {} {sign} 0{note}", self.t("equity", "patrimonio"), plain(equity))
                }
                None => self
                    .t(
                        "no snapshot of the account was ever seen, or its equity is not positive",
                        "nunca se ha visto el estado de la cuenta, o su patrimonio no es positivo",
                    )
                    .to_owned(),
            },
            "CURRENCY_MISMATCH" => {
                let currencies =
                    (account.and_then(|a| a.currency.as_ref()), facts.and_then(|f| f.instrument.currency.as_ref()));
                let (Some(own), Some(its)) = currencies else {
                    let general = self.t(
                        "the account's currency is not the instrument's",
                        "la moneda de la cuenta no es la del instrumento",
                    );
                    return general.to_owned();
                };
                format!(
                    "{} {own}, {} {its}",
                    self.t("the account is in", "la cuenta está en"),
                    self.t("the instrument in", "el instrumento en"),
                )
            }
            "STOP_TOO_CLOSE" => match (v.entry, v.stop_loss, tick, facts) {
                (Some(entry), Some(stop), Some(tick), Some(facts)) => {
                    let (distance, least) = (round((entry - stop).abs() / tick, 6), facts.instrument.min_stop_distance);
                    let (sign, note) = is(distance < least, "<", "≥");
                    format!(
                        "|{entry} − {stop}| ÷ {tick} = {} {points} {sign} min_stop_distance {} {points}{note}",
                        plain(distance),
                        plain(least)
                    )
                }
                (_, None, ..) => {
                    self.t("there is no stop to size by", "no hay stop para calcular el tamaño").to_owned()
                }
                _ => unknown(),
            },
            "LOT_TOO_SMALL" => match facts {
                Some(facts) => format!(
                    "{} min_lot {}",
                    self.t("the size below is under", "el tamaño de abajo es menor que"),
                    plain(facts.instrument.min_lot)
                ),
                None => unknown(),
            },
            _ => String::new(),
        }
    }

    fn no_signal(&self, r: &Recommendation, account: Option<&AccountFacts>) -> String {
        if r.status != "active" {
            return self.t("the recommendation no longer stands", "la recomendación ya no está vigente").to_owned();
        }
        let recommended = if r.action.ends_with("BUY") {
            1
        } else if r.action.ends_with("SELL") {
            -1
        } else {
            0
        };
        if recommended == 0 {
            return format!("{}: {}", self.t("the recommendation is", "la recomendación es"), r.action);
        }
        match account.map(|a| a.position_side) {
            Some(held) if held == recommended && r.confidence < 80.0 => format!(
                "{}: {} {} < 80",
                self.t(
                    "already in the market on this side, and an increase needs 80",
                    "ya en el mercado de este lado, y aumentar exige 80"
                ),
                self.t("confidence", "confianza"),
                round(r.confidence, 4)
            ),
            Some(0) if recommended < 0 => {
                format!(
                    "{}: allow_short = false",
                    self.t("flat, and shorts are not allowed", "sin posición, y los cortos no se permiten")
                )
            }
            _ => format!(
                "{} {} {}",
                self.t("the recommendation is", "la recomendación es"),
                r.action,
                self.t(
                    "and asks nothing of an account with this position",
                    "y no pide nada a una cuenta con esta posición"
                )
            ),
        }
    }

    /// The size, step by step.
    fn lots(&mut self, v: &Verdict, facts: Option<&Facts>) {
        if v.intent == "exit" {
            if let Some(lots) = v.lots {
                self.line(format!(
                    "  {} {} {}",
                    self.t("close", "cerrar"),
                    plain(lots),
                    self.t("lots, the whole position", "lotes, toda la posición")
                ));
            }
            return;
        }
        let Some(facts) = facts else { return self.bare_lots(v) };
        let account = facts.account.as_ref();
        let policy = account.and_then(|a| a.policy.as_ref());
        let (Some(policy), Some(entry), Some(stop)) = (policy, v.entry, v.stop_loss) else { return self.bare_lots(v) };
        if v.intent == "none" {
            return;
        }
        let risk = match (policy.risk_fixed, policy.risk_per_trade, account.and_then(|a| a.equity)) {
            (Some(fixed), ..) => {
                self.line(format!("  {} = risk_fixed {}", self.t("risk", "riesgo"), plain(fixed)));
                fixed
            }
            (None, Some(percent), Some(equity)) => {
                let risk = round(equity * percent / 100.0, 6);
                self.line(format!(
                    "  {} = {} × {} % = {}",
                    self.t("risk", "riesgo"),
                    plain(equity),
                    plain(percent),
                    plain(risk)
                ));
                risk
            }
            _ => return self.bare_lots(v),
        };
        let instrument = &facts.instrument;
        let distance = round((entry - stop).abs(), 12);
        let points = round(distance / instrument.tick_size, 6);
        let per_lot = round(points * instrument.tick_value, 6);
        self.line(format!(
            "  {} = |{entry} − {stop}| ÷ {} × {} = {} {} × {} = {}",
            self.t("a lot loses", "un lote pierde"),
            instrument.tick_size,
            plain(instrument.tick_value),
            plain(points),
            self.t("points", "puntos"),
            plain(instrument.tick_value),
            plain(per_lot)
        ));
        if per_lot <= 0.0 {
            return;
        }
        let raw = risk / per_lot;
        // The quotient of two decimals may fall a hair short of a step that it really reaches.
        let stepped = round(((raw / instrument.lot_step) + 1e-9).floor() * instrument.lot_step, 8);
        let cut = stepped.min(instrument.max_lot);
        let mut text = format!(
            "  {} = {} ÷ {} = {}, {} {} → {}",
            self.t("lots", "lotes"),
            plain(risk),
            plain(per_lot),
            plain(raw),
            self.t("down to a multiple of", "hacia abajo, en múltiplos de"),
            plain(instrument.lot_step),
            plain(stepped)
        );
        if cut < stepped {
            let _ = write!(text, ", {} {}", self.t("at most max_lot", "como máximo max_lot"), plain(cut));
        }
        if cut < instrument.min_lot {
            let _ = write!(text, " < min_lot {}", plain(instrument.min_lot));
        }
        self.line(text);
        if let Some(lots) = v.lots.filter(|lots| round(*lots - cut, 8) != 0.0) {
            self.line(format!(
                "  {}: {} {}",
                self.t("the verdict stands at", "el veredicto está en"),
                plain(lots),
                self.t(
                    "lots, of the equity and levels at its time",
                    "lotes, con el patrimonio y los niveles de su momento"
                )
            ));
        }
    }

    fn bare_lots(&mut self, v: &Verdict) {
        if let Some(lots) = v.lots {
            self.line(format!("  {} {}", self.t("lots", "lotes"), plain(lots)));
        }
    }
}
