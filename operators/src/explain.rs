//! Recommendations in words, English and Spanish: every number that went in, and how they add up.
//!
//! Pure functions of a recommendation and its bar, so that equal recommendations read alike. Both languages write a
//! decimal point, as the exchanges do. Weights and sums carry three decimals, other figures six significant digits.

use marea_model::recommendation::{Action, Contribution, DecisionBar, Explanation, Status, Text, Vote};
use marea_model::strategy::Kind;
use marea_model::time::{SECOND, format_rfc3339};
use marea_model::{Nanos, Recommendation};

use crate::recommend::{AGREEING, EXPIRES_AFTER_BARS, PROVEN_TRADES, THRESHOLDS, reached};

/// The volume change that is worth a note, either way.
pub const NOTED_VOLUME_CHANGE: f64 = 0.2;
/// The move over five bars that is worth a note, either way.
pub const NOTED_MOVE: f64 = 0.03;

fn text(en: impl Into<String>, es: impl Into<String>) -> Text {
    Text { en: en.into(), es: es.into() }
}

/// A text under construction.
struct Words {
    en: String,
    es: String,
}

impl From<(&str, &str)> for Words {
    fn from((en, es): (&str, &str)) -> Self {
        Words { en: en.to_owned(), es: es.to_owned() }
    }
}

impl Words {
    fn push(&mut self, en: impl AsRef<str>, es: impl AsRef<str>) {
        self.en.push_str(en.as_ref());
        self.es.push_str(es.as_ref());
    }

    fn finish(self) -> Text {
        Text { en: self.en, es: self.es }
    }
}

/// Six significant digits at most, without trailing zeros.
fn figure(value: f64) -> String {
    let (mut decimals, mut bound) = (5_usize, 10.0);
    while decimals > 0 && value.abs() >= bound {
        (decimals, bound) = (decimals - 1, bound * 10.0);
    }
    let mut bound = 1.0;
    while decimals < 10 && value != 0.0 && value.abs() < bound {
        (decimals, bound) = (decimals + 1, bound / 10.0);
    }
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Three decimals, with a sign.
fn signed(value: f64) -> String {
    format!("{value:+.3}")
}

/// A fraction in percent with one decimal.
fn percent(fraction: f64) -> String {
    format!("{:.1}", 100.0 * fraction)
}

/// `2013-10-07 13:35:00 UTC`; milliseconds only where there are some.
fn instant(time: Nanos) -> String {
    let digits = if time % SECOND == 0 { 19 } else { 23 };
    let text = format_rfc3339(time);
    format!("{} UTC", text.get(..digits).unwrap_or(&text).replace('T', " "))
}

/// Why a strategy takes the side that it takes, and what it adds.
pub fn reason(contribution: &Contribution, vote: &Vote) -> Text {
    let mut words = Words::from(match vote.side {
        1 => ("Long: ", "Largo: "),
        -1 => ("Short: ", "Corto: "),
        _ => ("No side: ", "Sin lado: "),
    });
    rule(contribution, &mut words);
    words.push(". ", ". ");
    weight(contribution, vote, &mut words);
    words.finish()
}

/// What the rule sees.
fn rule(contribution: &Contribution, words: &mut Words) {
    let side = contribution.side;
    let value = |i: usize| contribution.values[i].map(|v| v.0);
    let shown = |i: usize| value(i).map_or_else(String::new, figure);
    let above = |a: f64, b: f64| match a.total_cmp(&b) {
        std::cmp::Ordering::Greater => ("is above", "está por encima de"),
        std::cmp::Ordering::Less => ("is below", "está por debajo de"),
        std::cmp::Ordering::Equal => ("equals", "es igual a"),
    };
    // The rule points one way, but its position was stopped, has reached its target, or is of a side not taken.
    let idle = |words: &mut Words| {
        if side == 0 {
            words.push(
                ", but no position stands (stopped out, target reached, or a side that it does not take)",
                ", pero no hay posición en pie (saltó el stop, se alcanzó el objetivo o es un lado que no toma)",
            );
        }
    };
    let needed = match contribution.kind {
        Kind::EmaCross { .. } | Kind::MacdCross { .. } => 2,
        Kind::RsiReversion { .. } => 1,
        Kind::DonchianBreakout { .. } | Kind::TrendPullback { .. } => 3,
        Kind::BollingerReversion { .. } | Kind::Consensus { .. } => 4,
    };
    let values: Option<Vec<f64>> = (0..needed).map(value).collect();
    let Some(values) = values else {
        words.push("too few bars for its indicators yet", "aún faltan barras para sus indicadores");
        return;
    };
    let (a, b) = (shown(0), shown(1));
    match contribution.kind {
        Kind::EmaCross { fast, slow } => {
            let (en, es) = above(values[0], values[1]);
            words.push(
                format!("EMA({fast}) {a} {en} EMA({slow}) {b}"),
                format!("la EMA({fast}), {a}, {es} la EMA({slow}), {b}"),
            );
            idle(words);
        }
        Kind::MacdCross { fast, slow, signal } => {
            let (en, es) = above(values[0], values[1]);
            words.push(
                format!("MACD({fast},{slow},{signal}) {a} {en} its signal line {b}"),
                format!("el MACD({fast},{slow},{signal}), {a}, {es} su línea de señal, {b}"),
            );
            idle(words);
        }
        Kind::RsiReversion { period, oversold, overbought } => {
            let (low, high) = (figure(oversold.0), figure(overbought.0));
            match side {
                0 => words.push(
                    format!("RSI({period}) is {a}; it acts below {low} and above {high}"),
                    format!("el RSI({period}) está en {a}; actúa por debajo de {low} y por encima de {high}"),
                ),
                1 => words.push(
                    format!("RSI({period}) is {a}, after a close below {low}; it leaves at 50"),
                    format!("el RSI({period}) está en {a}, tras un cierre por debajo de {low}; sale en 50"),
                ),
                _ => words.push(
                    format!("RSI({period}) is {a}, after a close above {high}; it leaves at 50"),
                    format!("el RSI({period}) está en {a}, tras un cierre por encima de {high}; sale en 50"),
                ),
            }
        }
        Kind::BollingerReversion { period, deviations } => {
            let (middle, upper, wide) = (shown(2), shown(3), figure(deviations.0));
            match side {
                0 => words.push(
                    format!("close {a}; the Bollinger({period},{wide}) bands are {b}, {middle} and {upper}"),
                    format!("cierre en {a}; las bandas de Bollinger({period},{wide}) son {b}, {middle} y {upper}"),
                ),
                1 => words.push(
                    format!(
                        "close {a}, after a close below the lower Bollinger({period},{wide}) band, now {b}; it leaves at \
                         the middle, {middle}"
                    ),
                    format!(
                        "cierre en {a}, tras un cierre por debajo de la banda inferior de Bollinger({period},{wide}), \
                         ahora en {b}; sale en la banda media, {middle}"
                    ),
                ),
                _ => words.push(
                    format!(
                        "close {a}, after a close above the upper Bollinger({period},{wide}) band, now {upper}; it leaves \
                         at the middle, {middle}"
                    ),
                    format!(
                        "cierre en {a}, tras un cierre por encima de la banda superior de Bollinger({period},{wide}), \
                         ahora en {upper}; sale en la banda media, {middle}"
                    ),
                ),
            }
        }
        Kind::DonchianBreakout { period } => {
            let upper = shown(2);
            let (en, es) = match side {
                0 => ("no break stands", "no hay ruptura en pie"),
                1 => ("the last break was upward", "la última ruptura fue al alza"),
                _ => ("the last break was downward", "la última ruptura fue a la baja"),
            };
            words.push(
                format!("{en}; close {a}, and the {period} bars before it ranged from {b} to {upper}"),
                format!("{es}; cierre en {a}, y las {period} barras anteriores oscilaron entre {b} y {upper}"),
            );
        }
        Kind::TrendPullback { trend, period, low, high } => {
            let (en, es) = above(values[0], values[1]);
            let (rsi, low_text, high_text) = (shown(2), figure(low.0), figure(high.0));
            let between = low.0 <= values[2] && values[2] <= high.0;
            let (is, esta) = if between { ("is between", "está entre") } else { ("is not between", "no está entre") };
            words.push(
                format!("close {a} {en} EMA({trend}) {b}, and RSI({period}) {rsi} {is} {low_text} and {high_text}"),
                format!(
                    "el cierre, {a}, {es} la EMA({trend}), {b}, y el RSI({period}), {rsi}, {esta} {low_text} y {high_text}"
                ),
            );
            if between {
                idle(words);
            }
        }
        Kind::Consensus { fast, slow, period, .. } => {
            let (rsi, hist) = (shown(2), shown(3));
            let (en, es) = match side {
                0 => ("have no common side", "no tienen un lado común"),
                _ => ("agree", "coinciden"),
            };
            words.push(
                format!(
                    "EMA({fast}) {a} against EMA({slow}) {b}, RSI({period}) {rsi} and the MACD histogram {hist} {en}"
                ),
                format!(
                    "la EMA({fast}), {a}, frente a la EMA({slow}), {b}, el RSI({period}), {rsi}, y el histograma del \
                     MACD, {hist}, {es}"
                ),
            );
        }
    }
}

/// What the strategy weighs, and why.
fn weight(contribution: &Contribution, vote: &Vote, words: &mut Words) {
    let (own, track, weight) = (figure(contribution.weight.0), vote.track.0, vote.weight.0);
    words.push(
        format!("Weight {weight:.3} = {own} × track {track:.3} ("),
        format!("Peso {weight:.3} = {own} × historial {track:.3} ("),
    );
    let trades = contribution.trades;
    if vote.unproven {
        words.push(
            format!("unproven: {trades} of {PROVEN_TRADES} trades in 30 days"),
            format!("sin probar: {trades} de {PROVEN_TRADES} operaciones en 30 días"),
        );
    } else {
        words.push(format!("{trades} trades in 30 days"), format!("{trades} operaciones en 30 días"));
    }
    if let Some(trailing) = contribution.trailing_return {
        let (sign, figure) = (if trailing.0 < 0.0 { "-" } else { "+" }, percent(trailing.0.abs()));
        words.push(format!(", return {sign}{figure}%"), format!(", rendimiento {sign}{figure} %"));
    }
    if let (Some(sharpe), false) = (contribution.sharpe, vote.unproven) {
        words.push(format!(", Sharpe {:.2}", sharpe.0), format!(", Sharpe {:.2}", sharpe.0));
    }
    if let (Some(rate), false) = (contribution.win_rate, vote.unproven) {
        words.push(format!(", win rate {}%", percent(rate.0)), format!(", acierto {} %", percent(rate.0)));
    }
    if vote.side == 0 || weight <= 0.0 {
        words.push("): no vote.", "): sin voto.");
        return;
    }
    let (confidence, adds) = (figure(vote.confidence.0), signed(weight * f64::from(vote.side) * vote.confidence.0));
    words.push(
        format!("); with confidence {confidence} it adds {adds}."),
        format!("); con confianza {confidence} aporta {adds}."),
    );
}

/// The whole explanation.
pub fn explanation(r: &Recommendation, bar: &DecisionBar) -> Explanation {
    Explanation {
        title: title(r),
        summary: summary(r),
        notes: notes(bar),
        invalidation: invalidation(r, bar),
        next_review: next_review(r),
    }
}

fn title(r: &Recommendation) -> Text {
    let (en, es) = match r.action {
        Action::StrongBuy => ("STRONG BUY", "COMPRA FUERTE"),
        Action::Buy => ("BUY", "COMPRAR"),
        Action::Hold => ("HOLD", "MANTENER"),
        Action::Sell => ("SELL", "VENDER"),
        Action::StrongSell => ("STRONG SELL", "VENTA FUERTE"),
    };
    let joint = if matches!(r.action, Action::StrongBuy | Action::StrongSell) { " de" } else { "" };
    let (leaning, sesgo) = match r.bias {
        1 => (", leaning to buy", ", con sesgo comprador"),
        -1 => (", leaning to sell", ", con sesgo vendedor"),
        _ => ("", ""),
    };
    let (stands, vigencia) = match r.status {
        Status::Active => ("", ""),
        Status::Invalidated => (" (invalidated)", " (invalidada)"),
        Status::Expired => (" (expired)", " (caducada)"),
    };
    let (symbol, confidence) = (r.symbol, r.confidence.0);
    text(
        format!("{en} {symbol}{leaning}: confidence {confidence:.1} of 100{stands}"),
        format!("{es}{joint} {symbol}{sesgo}: confianza {confidence:.1} de 100{vigencia}"),
    )
}

fn summary(r: &Recommendation) -> Text {
    let (timeframe, symbol, count) = (r.timeframe, r.symbol, r.votes.len());
    if r.votes.is_empty() {
        return text(
            format!("No strategy runs on the {timeframe} bars of {symbol}."),
            format!("Ninguna estrategia opera con las barras de {timeframe} de {symbol}."),
        );
    }
    let voters: Vec<&Vote> = r.votes.iter().filter(|v| v.side != 0 && v.weight.0 > 0.0).collect();
    if voters.is_empty() {
        return text(
            format!("None of the {count} strategies on the {timeframe} bars has a vote: no side, or no weight."),
            format!("Ninguna de las {count} estrategias con barras de {timeframe} vota: sin lado o sin peso."),
        );
    }
    let (mut total, mut sum, mut agreeing) = (0.0, 0.0, 0.0);
    for vote in &voters {
        total += vote.weight.0;
        sum += vote.weight.0 * f64::from(vote.side) * vote.confidence.0;
        if f64::from(vote.side) * r.strength.0 > 0.0 {
            agreeing += vote.weight.0;
        }
    }
    let voted = voters.len();
    if r.strength.0 == 0.0 {
        return text(
            format!(
                "{voted} of {count} strategies vote, with weight {total:.3}: long and short cancel out, strength is 0. The \
                 bias is that of the voter with the better trailing return."
            ),
            format!(
                "Votan {voted} de {count} estrategias, con un peso de {total:.3}: los largos y los cortos se anulan y la \
                 fuerza es 0. El sesgo es el del voto con mejor rendimiento reciente."
            ),
        );
    }
    let (en_side, es_side) = if r.strength.0 > 0.0 { ("long", "a largo") } else { ("short", "a corto") };
    let (strength, consensus, confidence) = (r.strength.0, r.consensus.0, r.confidence.0);
    let (sum, force, size) = (signed(sum), signed(strength), strength.abs());
    let for_it = r.agreeing;
    let mut words = Words {
        en: format!(
            "{voted} of {count} strategies vote, {for_it} of them {en_side}. Strength {force} = {sum} ÷ {total:.3}; \
             consensus {consensus:.3} = {agreeing:.3} ÷ {total:.3}; confidence 100 × (0.6 × {size:.3} + 0.4 × \
             {consensus:.3}) = {confidence:.1}."
        ),
        es: format!(
            "Votan {voted} de {count} estrategias, {for_it} de ellas {es_side}. Fuerza {force} = {sum} ÷ {total:.3}; \
             consenso {consensus:.3} = {agreeing:.3} ÷ {total:.3}; confianza 100 × (0.6 × {size:.3} + 0.4 × \
             {consensus:.3}) = {confidence:.1}."
        ),
    };
    outcome(r, &mut words);
    words.finish()
}

/// What the confidence leads to, or what is missing.
fn outcome(r: &Recommendation, words: &mut Words) {
    let [_, act, _] = THRESHOLDS;
    let [few, _] = AGREEING;
    if let (Some(low), Some(high), Some(stop), Some(target)) = (r.entry_low, r.entry_high, r.stop_loss, r.take_profit) {
        let (close, atr) = (r.close, r.atr.map_or_else(String::new, |atr| figure(atr.0)));
        words.push(
            format!(
                " Entry {low} to {high} (close {close} ± ¼ ATR(14) {atr}), stop {stop} (2 ATR), target {target} (3 ATR)."
            ),
            format!(
                " Entrada de {low} a {high} (cierre {close} ± ¼ del ATR(14), {atr}), stop en {stop} (2 ATR), objetivo en \
                 {target} (3 ATR)."
            ),
        );
    } else if r.confidence.0 < act {
        words.push(format!(" Acting takes {act}."), format!(" Para actuar hace falta {act}."));
    } else if r.agreeing < few {
        words.push(
            format!(" Acting takes {few} agreeing voters."),
            format!(" Para actuar hacen falta {few} votos que coincidan."),
        );
    } else {
        words.push(
            " Without a usable ATR(14) there is no stop, and so no entry.",
            " Sin un ATR(14) utilizable no hay stop y, por tanto, tampoco entrada.",
        );
    }
}

fn notes(bar: &DecisionBar) -> Vec<Text> {
    let mut notes = Vec::new();
    if let Some(change) = bar.volume_change.map(|v| v.0).filter(|v| v.abs() > NOTED_VOLUME_CHANGE) {
        let size = percent(change.abs());
        notes.push(if change > 0.0 {
            text(
                format!("Volume is {size}% above the mean of the 20 bars before."),
                format!("El volumen supera en un {size} % la media de las 20 barras anteriores."),
            )
        } else {
            text(
                format!("Volume is {size}% below the mean of the 20 bars before."),
                format!("El volumen está un {size} % por debajo de la media de las 20 barras anteriores."),
            )
        });
    }
    if let Some(by) = bar.five_bar_move.map(|v| v.0).filter(|v| v.abs() > NOTED_MOVE) {
        let size = percent(by.abs());
        let (risen, subido) = if by > 0.0 { ("risen", "subido") } else { ("fallen", "bajado") };
        notes.push(text(
            format!("The close has {risen} {size}% in five bars."),
            format!("El cierre ha {subido} un {size} % en cinco barras."),
        ));
    }
    notes
}

fn invalidation(r: &Recommendation, bar: &DecisionBar) -> Text {
    let expiry = instant(r.expires_at);
    if r.status == Status::Expired {
        return text(
            format!("It expired at {expiry}, {EXPIRES_AFTER_BARS} bars after its bar's close."),
            format!("Caducó el {expiry}, {EXPIRES_AFTER_BARS} barras después del cierre de su barra."),
        );
    }
    let (Some(stop), Some(target)) = (r.stop_loss, r.take_profit) else {
        return text(
            format!("There is nothing to invalidate; without a new bar it expires at {expiry}."),
            format!("No hay nada que invalidar; sin una barra nueva caduca el {expiry}."),
        );
    };
    if r.status == Status::Invalidated {
        let (en, es) = match reached(r, bar) {
            (true, true) => (
                format!("the stop {stop} and the target {target}"),
                format!("el stop, {stop}, y el objetivo, {target}"),
            ),
            (true, false) => (format!("the stop {stop}"), format!("el stop, {stop}")),
            _ => (format!("the target {target}"), format!("el objetivo, {target}")),
        };
        return text(
            format!("Invalidated: since the close the price has reached {en}."),
            format!("Invalidada: desde el cierre el precio ha alcanzado {es}."),
        );
    }
    let (below, above) = if r.action.side() > 0 { (stop, target) } else { (target, stop) };
    text(
        format!(
            "A price at or below {below} or at or above {above} invalidates it at once; it expires at {expiry}, \
             {EXPIRES_AFTER_BARS} bars after its bar's close."
        ),
        format!(
            "Un precio igual o inferior a {below}, o igual o superior a {above}, la invalida al instante; caduca el \
             {expiry}, {EXPIRES_AFTER_BARS} barras después del cierre de su barra."
        ),
    )
}

fn next_review(r: &Recommendation) -> Text {
    let (timeframe, at) = (r.timeframe, instant(r.bar_close_time + r.timeframe.nanos()));
    text(
        format!("At {at}, when the next {timeframe} bar closes."),
        format!("El {at}, al cierre de la próxima barra de {timeframe}."),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_six_digits_at_most() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (181.934567, "181.935"),
            (1.1000049, "1.1"),
            (0.00012345678, "0.000123457"),
            (40123.456, "40123.5"),
            (1234567.0, "1234567"),
            (-0.5, "-0.5"),
            (1e-12, "0"),
        ] {
            assert_eq!(figure(value), text, "{value}");
        }
    }

    #[test]
    fn instants_show_no_more_than_there_is() {
        assert_eq!(instant(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(instant(SECOND / 100), "1970-01-01 00:00:00.010 UTC");
    }
}
