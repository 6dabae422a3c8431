//! A case in words, English or Spanish.

use super::{AccountFacts, BarLine, Case, CaseError, Facts, Track};
use crate::cli::Lang;
use marea_model::Timeframe;
use marea_model::time::{MILLI, parse_rfc3339};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;

#[derive(Deserialize)]
struct Recommendation {
    symbol: String,
    timeframe: Timeframe,
    bar_open_time: String,
    bar_close_time: String,
    action: String,
    bias: i8,
    status: String,
    strength: f64,
    confidence: f64,
    agreeing: u32,
    close: f64,
    atr: Option<f64>,
    entry_low: Option<f64>,
    entry_high: Option<f64>,
    stop_loss: Option<f64>,
    take_profit: Option<f64>,
    expires_at: String,
    votes: Vec<Vote>,
    explanation: Explanation,
}

#[derive(Deserialize)]
struct Vote {
    strategy: String,
    side: i8,
    confidence: f64,
    track: f64,
    unproven: bool,
    weight: f64,
    values: Vec<(String, f64)>,
    reason: Text,
}

#[derive(Deserialize)]
struct Text {
    en: String,
    es: String,
}

#[derive(Deserialize)]
struct Explanation {
    title: Text,
    summary: Text,
    notes: Vec<Text>,
    invalidation: Text,
    next_review: Text,
}

#[derive(Deserialize)]
struct Verdict {
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

/// The explanation in words.
pub(super) fn explain(case: &Case, lang: Lang) -> Result<String, CaseError> {
    let recommendation = Recommendation::deserialize(&case.recommendation)
        .map_err(|cause| CaseError { what: "the recommendation", cause })?;
    let verdict = case.verdict.as_ref().map(Verdict::deserialize).transpose();
    let verdict = verdict.map_err(|cause| CaseError { what: "the verdict", cause })?;
    let mut page = Page { lang, out: String::new() };
    page.recommendation(&recommendation, &case.tracks);
    page.bars(&recommendation, &case.bars);
    if let Some(verdict) = &verdict {
        page.verdict(verdict, &recommendation, case.facts.as_ref());
    }
    Ok(page.out)
}

/// Rounded to `digits` after the point.
fn round(value: f64, digits: i32) -> f64 {
    let unit = 10_f64.powi(digits);
    let rounded = (value * unit).round() / unit;
    // Not the minus zero of a small negative number.
    if rounded == 0.0 { 0.0 } else { rounded }
}

/// At most six digits after the point, and no zeros at the end.
fn plain(value: f64) -> String {
    format!("{}", round(value, 6))
}

/// So many digits that say something.
fn significant(value: f64, digits: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return plain(value);
    }
    let magnitude = value.abs().log10().floor() as i32 + 1;
    format!("{}", round(value, (digits - magnitude).clamp(0, 15)))
}

/// `2013-10-07 13:30:00` of RFC 3339, with a fraction only where there is one.
fn clock(rfc3339: &str) -> String {
    let text = rfc3339.trim_end_matches('Z').replacen('T', " ", 1);
    match text.split_once('.') {
        Some((whole, fraction)) => match fraction.trim_end_matches('0') {
            "" => whole.to_owned(),
            fraction => format!("{whole}.{fraction}"),
        },
        None => text,
    }
}

struct Page {
    lang: Lang,
    out: String,
}

impl Page {
    fn t<'a>(&self, en: &'a str, es: &'a str) -> &'a str {
        match self.lang {
            Lang::En => en,
            Lang::Es => es,
        }
    }

    fn of<'a>(&self, text: &'a Text) -> &'a str {
        self.t(&text.en, &text.es)
    }

    fn line(&mut self, text: impl AsRef<str>) {
        let _ = writeln!(self.out, "{}", text.as_ref().trim_end());
    }

    fn head(&mut self, en: &str, es: &str) {
        let title = self.t(en, es).to_owned();
        self.line("");
        self.line(title);
    }

    fn recommendation(&mut self, r: &Recommendation, tracks: &BTreeMap<String, Track>) {
        self.line(self.of(&r.explanation.title));
        self.line(self.of(&r.explanation.summary));
        let status = match r.status.as_str() {
            "active" => self.t("active", "activa"),
            "invalidated" => self.t(
                "invalidated: the price has crossed its stop or target",
                "invalidada: el precio ha cruzado su stop u objetivo",
            ),
            _ => self.t("expired", "vencida"),
        };
        self.line(format!(
            "{}: {} {} → {} UTC, {} {}; {}",
            self.t("Bar", "Barra"),
            r.timeframe,
            clock(&r.bar_open_time),
            clock(&r.bar_close_time),
            self.t("close", "cierre"),
            r.close,
            status
        ));
        let (voters, silent): (Vec<&Vote>, Vec<&Vote>) = r.votes.iter().partition(|v| v.side != 0 && v.weight > 0.0);
        self.head(
            "Votes: w = weight × track, each adds w × side × confidence",
            "Votos: w = peso × historial; cada uno suma w × lado × confianza",
        );
        let (mut sum_w, mut sum) = (0.0, 0.0);
        let width = r.votes.iter().map(|v| v.strategy.chars().count()).max().unwrap_or(0);
        for vote in &voters {
            let w = round(vote.weight, 6);
            let term = round(w * f64::from(vote.side) * vote.confidence, 6);
            sum_w += w;
            sum += term;
            self.line(format!(
                "  {:width$}  w = {} × {} = {w:.6}   {w:.6} × {:+} × {} = {term:+.6}",
                vote.strategy,
                plain(vote.weight / vote.track),
                plain(vote.track),
                vote.side,
                plain(vote.confidence),
            ));
            self.line(format!("      {}", self.of(&vote.reason)));
            self.behind(vote, tracks);
        }
        for vote in &silent {
            let why = if vote.side == 0 {
                self.t("no side, does not vote", "sin lado, no vota").to_owned()
            } else if vote.track == 0.0 {
                self.t("track 0, does not vote", "historial 0, no vota").to_owned()
            } else {
                self.t("weight 0, does not vote", "peso 0, no vota").to_owned()
            };
            self.line(format!("  {:width$}  {why}: {}", vote.strategy, self.of(&vote.reason)));
            if vote.side != 0 {
                self.behind(vote, tracks);
            }
        }
        let (sum_w, sum) = (round(sum_w, 6), round(sum, 6));
        self.line(format!(
            "  {:width$}  Σ w = {sum_w:.6}   Σ w × {} × {} = {sum:+.6}",
            "",
            self.t("side", "lado"),
            self.t("confidence", "confianza")
        ));

        self.head("Confidence", "Confianza");
        if voters.is_empty() {
            self.line(self.t(
                "  no voters: strength 0, consensus 0, confidence 0",
                "  sin votantes: fuerza 0, consenso 0, confianza 0",
            ));
        } else {
            let strength = round(sum / sum_w, 6);
            let side = if r.strength > 0.0 {
                1
            } else if r.strength < 0.0 {
                -1
            } else {
                0
            };
            let agreeing: f64 = voters.iter().filter(|v| v.side == side).map(|v| round(v.weight, 6)).sum();
            let consensus = round(agreeing / sum_w, 6);
            let (from_strength, from_consensus) = (round(60.0 * strength.abs(), 4), round(40.0 * consensus, 4));
            let confidence = round(from_strength + from_consensus, 4);
            self.line(format!("  {:11}= {sum:+.6} ÷ {sum_w:.6} = {strength:+.6}", self.t("strength", "fuerza")));
            self.line(format!(
                "  {:11}= {agreeing:.6} ÷ {sum_w:.6} = {consensus:.6}   ({})",
                self.t("consensus", "consenso"),
                self.t("the w on strength's side", "la w del lado de la fuerza")
            ));
            self.line(format!(
                "  {:11}= 100 × (0.6 × {:.6} + 0.4 × {consensus:.6}) = {from_strength:.4} + {from_consensus:.4} = {confidence:.4}",
                self.t("confidence", "confianza"),
                strength.abs()
            ));
        }
        self.action(r);
        self.levels(r);
        for note in &r.explanation.notes {
            self.line(format!("  {}", self.of(note)));
        }
    }

    /// The values and the track behind a vote.
    fn behind(&mut self, vote: &Vote, tracks: &BTreeMap<String, Track>) {
        let values: Vec<String> =
            vote.values.iter().map(|(name, value)| format!("{name} = {}", significant(*value, 6))).collect();
        if !values.is_empty() {
            self.line(format!("      {}", values.join(", ")));
        }
        let track = tracks.get(&vote.strategy);
        let trades = track.map_or(String::new(), |t| {
            format!(" ({}: {})", self.t("trades in 30 days", "operaciones en 30 días"), t.trades)
        });
        let text = if vote.unproven {
            format!(
                "{} 1: {}{trades}",
                self.t("track", "historial"),
                self.t("unproven, under 10 trades", "sin probar, menos de 10 operaciones")
            )
        } else if let Some(track) = track {
            let percent =
                |value: Option<f64>| value.map_or("–".to_owned(), |v| format!("{:+.4} %", round(v * 100.0, 4)));
            if vote.track == 0.0 {
                format!(
                    "{} 0: {} {}{trades}",
                    self.t("track", "historial"),
                    self.t("the trailing return is", "el rendimiento reciente es"),
                    percent(track.total_return)
                )
            } else {
                let sharpe = track.sharpe.map_or("null".to_owned(), |s| format!("{:.4}", round(s, 4)));
                let clamped = round(track.sharpe.map_or(0.1, |s| (s / 2.0).clamp(0.1, 1.0)), 6);
                let win_rate = round(track.win_rate.unwrap_or(0.0), 6);
                format!(
                    "{} = ½ × {clamped} + ½ × {win_rate} = {}: Sharpe {sharpe} ÷ 2 {} 0.1 {} 1, {} {:.4} %, {} {}{trades}",
                    self.t("track", "historial"),
                    plain(0.5 * clamped + 0.5 * win_rate),
                    self.t("within", "entre"),
                    self.t("and", "y"),
                    self.t("win rate", "aciertos"),
                    win_rate * 100.0,
                    self.t("return", "rendimiento"),
                    percent(track.total_return),
                )
            }
        } else {
            return;
        };
        self.line(format!("      {text}"));
    }

    fn action(&mut self, r: &Recommendation) {
        let confidence = round(r.confidence, 4);
        let (n, agree) = (r.agreeing, self.t("agreeing", "de acuerdo"));
        let rule = match r.action.as_str() {
            "STRONG_BUY" | "STRONG_SELL" => format!("{confidence} ≥ 85, {n} {agree} ≥ 3"),
            "BUY" | "SELL" if r.confidence >= 85.0 => {
                format!("{confidence} ≥ 85, {n} {agree} < 3; {confidence} ≥ 70, {n} ≥ 2")
            }
            "BUY" | "SELL" => format!("70 ≤ {confidence} < 85, {n} {agree} ≥ 2"),
            _ if r.confidence >= 70.0 => format!("{confidence} ≥ 70, {n} {agree} < 2"),
            _ if r.confidence >= 50.0 => format!("50 ≤ {confidence} < 70"),
            _ => format!("{confidence} < 50"),
        };
        let bias = match r.bias {
            1 => self.t(", leaning to BUY", ", se inclina a BUY"),
            -1 => self.t(", leaning to SELL", ", se inclina a SELL"),
            _ => "",
        };
        self.line(format!("  {:11}= {}{bias}: {rule}", self.t("action", "acción"), r.action));
    }

    fn levels(&mut self, r: &Recommendation) {
        self.head("Levels", "Niveles");
        match (r.atr, r.entry_low, r.entry_high) {
            (Some(atr), Some(low), Some(high)) => {
                let side = if r.action.ends_with("BUY") { ("−", "+") } else { ("+", "−") };
                let atr = significant(atr, 8);
                self.line(format!(
                    "  {:9} {low} … {high}   = {} ± ¼ × ATR(14) {atr}",
                    self.t("entry", "entrada"),
                    r.close
                ));
                if let Some(stop) = r.stop_loss {
                    self.line(format!("  {:9} {stop}   = {} {} 2 × {atr}", "stop", r.close, side.0));
                }
                if let Some(target) = r.take_profit {
                    self.line(format!(
                        "  {:9} {target}   = {} {} 3 × {atr}",
                        self.t("target", "objetivo"),
                        r.close,
                        side.1
                    ));
                }
            }
            (Some(atr), ..) => self.line(format!(
                "  {} (ATR(14) {})",
                self.t("none: nothing to enter", "ninguno: no hay entrada"),
                significant(atr, 8)
            )),
            _ => self.line(self.t("  none: ATR(14) is not yet defined", "  ninguno: ATR(14) aún no está definido")),
        }
        let expires = format!("  {:9} {} UTC", self.t("expires", "vence"), clock(&r.expires_at));
        self.line(expires);
        for text in [&r.explanation.invalidation, &r.explanation.next_review] {
            let text = self.of(text);
            if !text.is_empty() {
                self.line(format!("  {text}"));
            }
        }
    }

    fn bars(&mut self, r: &Recommendation, bars: &[BarLine]) {
        if bars.is_empty() {
            return;
        }
        let title = match self.lang {
            Lang::En => format!("The last bars of {}, {}", r.symbol, r.timeframe),
            Lang::Es => format!("Las últimas barras de {}, {}", r.symbol, r.timeframe),
        };
        self.line("");
        self.line(title);
        let names = [
            self.t("open time (UTC)", "apertura (UTC)"),
            self.t("open", "abre"),
            self.t("high", "máximo"),
            self.t("low", "mínimo"),
            self.t("close", "cierra"),
            self.t("volume", "volumen"),
        ];
        self.line(format!(
            "  {:19} {:>12} {:>12} {:>12} {:>12} {:>14}",
            names[0], names[1], names[2], names[3], names[4], names[5]
        ));
        for bar in bars {
            let prices = [bar.open, bar.high, bar.low, bar.close].map(|p| format!("{p}"));
            self.line(format!(
                "  {:19} {:>12} {:>12} {:>12} {:>12} {:>14}",
                clock(&bar.open_time),
                prices[0],
                prices[1],
                prices[2],
                prices[3],
                format!("{}", bar.volume)
            ));
        }
    }

    fn verdict(&mut self, v: &Verdict, r: &Recommendation, facts: Option<&Facts>) {
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
                    .t("no snapshot of the account was ever seen", "nunca se ha visto el estado de la cuenta")
                    .to_owned(),
            },
            "CURRENCY_MISMATCH" => {
                let of = |c: Option<&String>| c.map_or("?".to_owned(), Clone::clone);
                format!(
                    "{} {}, {} {}",
                    self.t("the account is in", "la cuenta está en"),
                    of(account.and_then(|a| a.currency.as_ref())),
                    self.t("the instrument in", "el instrumento en"),
                    of(facts.and_then(|f| f.instrument.currency.as_ref()))
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
            _ => r.action.clone(),
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
