//! A case in words, English or Spanish.

use super::verdict::Verdict;
use super::{BarLine, Case, CaseError, Track};
use crate::cli::Lang;
use marea_model::Timeframe;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;

#[derive(Deserialize)]
pub(super) struct Recommendation {
    symbol: String,
    timeframe: Timeframe,
    bar_open_time: String,
    pub(super) bar_close_time: String,
    pub(super) action: String,
    bias: i8,
    pub(super) status: String,
    strength: f64,
    pub(super) confidence: f64,
    agreeing: u32,
    pub(super) close: f64,
    atr: Option<f64>,
    entry_low: Option<f64>,
    entry_high: Option<f64>,
    stop_loss: Option<f64>,
    take_profit: Option<f64>,
    pub(super) expires_at: String,
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
pub(super) fn round(value: f64, digits: i32) -> f64 {
    let unit = 10_f64.powi(digits);
    let rounded = (value * unit).round() / unit;
    // Not the minus zero of a small negative number.
    if rounded == 0.0 { 0.0 } else { rounded }
}

/// At most six digits after the point, and no zeros at the end.
pub(super) fn plain(value: f64) -> String {
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
pub(super) fn clock(rfc3339: &str) -> String {
    let text = rfc3339.trim_end_matches('Z').replacen('T', " ", 1);
    match text.split_once('.') {
        Some((whole, fraction)) => match fraction.trim_end_matches('0') {
            "" => whole.to_owned(),
            fraction => format!("{whole}.{fraction}"),
        },
        None => text,
    }
}

pub(super) struct Page {
    lang: Lang,
    out: String,
}

impl Page {
    pub(super) fn t<'a>(&self, en: &'a str, es: &'a str) -> &'a str {
        match self.lang {
            Lang::En => en,
            Lang::Es => es,
        }
    }

    fn of<'a>(&self, text: &'a Text) -> &'a str {
        self.t(&text.en, &text.es)
    }

    pub(super) fn line(&mut self, text: impl AsRef<str>) {
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
        let mut shown = 0.0;
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
            shown = confidence;
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
        self.action(r, shown);
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

    /// `confidence` is as it was added up above; the thresholds were judged by the unrounded one.
    fn action(&mut self, r: &Recommendation, confidence: f64) {
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
}
