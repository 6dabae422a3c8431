// marea's page. No build step, no dependency: it reads /api/v1/ and the stream, and draws.
//
// Nothing that comes over the network is ever parsed as HTML: elements are made by h(), text is text.
//
// It fails closed. The heartbeat carries a deadline; past it every verdict is shown as blocked, and so is a verdict past
// its valid_until. The server's clock is estimated from the least delay of the last heartbeats, so that neither a wrong
// clock here nor a stream that was buffered on its way can make an old heartbeat look fresh.
"use strict";

// ---------------------------------------------------------------------------------------------- words

const WORDS = {
  en: {
    skip: "Skip to the figures", language: "Language", vitals: "How the pipeline is doing", pipelineClock: "Pipeline clock",
    tickRate: "Ticks a second", lag: "Frontier lag", ledger: "Every record accounted for", balanced: "✓ balanced", unbalanced: "✗ does not add up",
    in: "in", accepted: "accepted", duplicate: "duplicate", dead: "dead", held: "held",
    markets: "Markets", barLength: "Length of a bar", findSymbol: "Find a symbol", noSymbols: "Waiting for the first ticks …", links: "Links",
    verdicts: "What each account may do", verdictsCaption: "Verdicts by account and symbol", filter: "Show", all: "All", allowed: "Allowed", blocked: "Blocked",
    symbol: "Symbol", intent: "Asked for", verdict: "Verdict", lots: "Lots", stopTarget: "Stop / target", why: "Why", until: "Until",
    noVerdicts: "No verdicts yet. They appear once accounts are configured and a symbol has been seen.", noneMatch: "No verdict matches this filter.",
    best: "Best strategies", bestCaption: "Backtest metrics by strategy", window: "Window", noBest: "No backtests yet: they start with the first closed bars.",
    allSymbols: "All symbols", w30d: "30 days", wall: "All history", strategy: "Strategy", timeframe: "Bars",
    sharpe: "Sharpe", total_return: "Return", win_rate: "Win rate", max_drawdown: "Drawdown", profit_factor: "Profit factor", trades: "Trades",
    live: "Live", connecting: "Connecting …", reconnecting: "Reconnecting …", noHeartbeat: "No heartbeat",
    alarm: "No heartbeat from the pipeline: every verdict means block until it is back.",
    allow: "ALLOW", block: "BLOCK", nothing: "NO ACTION", of: "of", allowedCount: "allowed",
    enter: "Enter", increase: "Increase", exit: "Exit", none: "Nothing", long: "long", short: "short", flat: "flat",
    STRONG_BUY: "STRONG BUY", BUY: "BUY", HOLD: "HOLD", SELL: "SELL", STRONG_SELL: "STRONG SELL",
    invalidated: "invalidated: the price crossed its stop or target", expired: "expired", leans: "leans", confidence: "Confidence",
    noRecommendation: "No recommendation yet: too few closed bars.", close: "Bar's close", atr: "ATR(14)", strength: "Strength", entry: "Entry", stop: "Stop", target: "Target", expires: "Expires",
    votes: "Why: {n} strategies", vote1: "Why: 1 strategy", weight: "weight", track: "track", unproven: "unproven", confidenceShort: "confidence", noVote: "does not vote",
    invalidation: "What would invalidate it", review: "Next review", notes: "Also",
    cancelPending: "cancel pending orders", valid: "valid for {d}", over: "window ends in {d}", past: "past", exits: "An exit is never blocked.", clear: "Every check passed.",
    about: "generation {g} · epoch {e} · seq {s} · up {u}", chart: "{s}: last {n} bars of {t}, from {a} to {b}", noChart: "no bars yet", since: "since",
  },
  es: {
    skip: "Ir a las cifras", language: "Idioma", vitals: "Estado del sistema", pipelineClock: "Reloj del sistema",
    tickRate: "Ticks por segundo", lag: "Retraso de la frontera", ledger: "Cada registro, contado", balanced: "✓ cuadra", unbalanced: "✗ no cuadra",
    in: "recibidos", accepted: "aceptados", duplicate: "duplicados", dead: "rechazados", held: "retenidos",
    markets: "Mercados", barLength: "Duración de la barra", findSymbol: "Buscar un símbolo", noSymbols: "Esperando los primeros ticks …", links: "Enlaces",
    verdicts: "Qué puede hacer cada cuenta", verdictsCaption: "Veredictos por cuenta y símbolo", filter: "Mostrar", all: "Todos", allowed: "Permitidos", blocked: "Bloqueados",
    symbol: "Símbolo", intent: "Se pide", verdict: "Veredicto", lots: "Lotes", stopTarget: "Stop / objetivo", why: "Por qué", until: "Hasta",
    noVerdicts: "Aún no hay veredictos. Aparecen cuando hay cuentas configuradas y se ha visto un símbolo.", noneMatch: "Ningún veredicto coincide con el filtro.",
    best: "Mejores estrategias", bestCaption: "Métricas de backtest por estrategia", window: "Ventana", noBest: "Aún no hay backtests: empiezan con las primeras barras cerradas.",
    allSymbols: "Todos los símbolos", w30d: "30 días", wall: "Todo el historial", strategy: "Estrategia", timeframe: "Barras",
    sharpe: "Sharpe", total_return: "Retorno", win_rate: "Aciertos", max_drawdown: "Drawdown", profit_factor: "Factor de beneficio", trades: "Operaciones",
    live: "En vivo", connecting: "Conectando …", reconnecting: "Reconectando …", noHeartbeat: "Sin latido",
    alarm: "Sin latido del sistema: todo veredicto significa bloquear hasta que vuelva.",
    allow: "PERMITE", block: "BLOQUEA", nothing: "SIN ACCIÓN", of: "de", allowedCount: "permitidos",
    enter: "Entrar", increase: "Aumentar", exit: "Salir", none: "Nada", long: "largo", short: "corto", flat: "neutral",
    STRONG_BUY: "COMPRA FUERTE", BUY: "COMPRA", HOLD: "MANTENER", SELL: "VENTA", STRONG_SELL: "VENTA FUERTE",
    invalidated: "invalidada: el precio cruzó su stop u objetivo", expired: "caducada", leans: "se inclina a", confidence: "Confianza",
    noRecommendation: "Aún no hay recomendación: faltan barras cerradas.", close: "Cierre de la barra", atr: "ATR(14)", strength: "Fuerza", entry: "Entrada", stop: "Stop", target: "Objetivo", expires: "Caduca",
    votes: "Por qué: {n} estrategias", vote1: "Por qué: 1 estrategia", weight: "peso", track: "historial", unproven: "sin probar", confidenceShort: "confianza", noVote: "no vota",
    invalidation: "Qué la invalidaría", review: "Próxima revisión", notes: "Además",
    cancelPending: "cancelar órdenes pendientes", valid: "válido {d} más", over: "la ventana acaba en {d}", past: "vencido", exits: "Una salida nunca se bloquea.", clear: "Todas las comprobaciones pasan.",
    about: "generación {g} · época {e} · seq {s} · activo {u}", chart: "{s}: últimas {n} barras de {t}, de {a} a {b}", noChart: "aún sin barras", since: "desde",
  },
};

const REASONS = {
  KILL_SWITCH: ["Trading is switched off for everybody", "La operativa está desconectada para todos"],
  NO_POLICY: ["The account has no policy", "La cuenta no tiene política"],
  POLICY_INVALID: ["A key of the policy or of a window is invalid", "Una clave de la política o de una ventana no es válida"],
  POLICY_STALE: ["The configuration's source does not answer", "La fuente de la configuración no responde"],
  ACCOUNT_DISABLED: ["The account is disabled", "La cuenta está desactivada"],
  NO_TRADE_WINDOW: ["Inside a no-trade window", "Dentro de una ventana sin operativa"],
  NO_SIGNAL: ["Nothing to act on", "No hay nada que hacer"],
  EXPIRED: ["The recommendation has expired", "La recomendación ha caducado"],
  NO_QUOTE: ["No quote was ever seen", "Nunca se ha visto una cotización"],
  QUOTE_STALE: ["The last quote is too old", "La última cotización es demasiado antigua"],
  QUOTE_CROSSED: ["The quote is crossed: bid above ask", "Cotización cruzada: la demanda supera a la oferta"],
  SPREAD_ABOVE_MAX: ["The spread is above the policy's maximum", "El spread supera el máximo de la política"],
  PRICE_MOVED: ["The price has moved too far from the recommendation", "El precio se ha alejado demasiado de la recomendación"],
  DELAY_ABOVE_MAX: ["The recommendation's bar closed too long ago", "La barra de la recomendación cerró hace demasiado"],
  DRAWDOWN_LIMIT: ["The drawdown limit is reached", "Se ha alcanzado el límite de drawdown"],
  NO_EQUITY: ["The account's equity is unknown or not positive", "El capital de la cuenta se desconoce o no es positivo"],
  CURRENCY_MISMATCH: ["The account's currency is not the instrument's", "La divisa de la cuenta no es la del instrumento"],
  STOP_TOO_CLOSE: ["The stop is too close, or there is none to size by", "El stop está demasiado cerca, o no hay con qué calcular el tamaño"],
  LOT_TOO_SMALL: ["The size is below the smallest lot", "El tamaño es menor que el lote mínimo"],
  NO_HEARTBEAT: ["No heartbeat from the pipeline", "Sin latido del sistema"],
  PAST_VALID_UNTIL: ["This verdict is past its time", "Este veredicto ha pasado su plazo"],
};

let lang = "en";
try {
  lang = localStorage.getItem("marea.lang") || (navigator.language || "").slice(0, 2);
} catch (_) { /* storage may be forbidden: then the language is not remembered */ }
if (!WORDS[lang]) lang = "en";

const t = (key) => WORDS[lang][key] ?? key;
const fill = (text, values) => text.replace(/\{(\w)\}/g, (_, name) => values[name] ?? "");
const reasonText = (code) => (REASONS[code] ? REASONS[code][lang === "es" ? 1 : 0] : code);
const inWords = (text) => (text && (text[lang] || text.en)) || "";

// ---------------------------------------------------------------------------------------------- small tools

const $ = (id) => document.getElementById(id);

/** An element: attributes by name, `class`, listeners as `onclick`; children are elements or text, never HTML. */
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Sets text only where it differs, so that nothing is laid out anew for nothing. */
function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

const number = (value, options) => new Intl.NumberFormat(lang, options).format(value);
const whole = (value) => number(Math.round(value));
const percent = (value, digits = 2) =>
  value === null || value === undefined ? "–" : number(value, { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits });
const ratio = (value) => (value === null || value === undefined ? "–" : number(value, { minimumFractionDigits: 2, maximumFractionDigits: 2 }));

/** Milliseconds since 1970 of an RFC 3339 text with nanoseconds; NaN where there is none. */
const millis = (time) => (time ? Date.parse(time.replace(/(\.\d{3})\d+/, "$1")) : NaN);
const two = (n) => String(n).padStart(2, "0");
function hhmm(ms, seconds = true) {
  const d = new Date(ms);
  return `${two(d.getUTCHours())}:${two(d.getUTCMinutes())}${seconds ? ":" + two(d.getUTCSeconds()) : ""}`;
}
const dayTime = (ms) => new Date(ms).toISOString().slice(0, 19).replace("T", " ") + " UTC";

/** `2 min 05 s`, `3 h 20 min`, `4 d 2 h`. */
function span(ms) {
  const s = Math.max(0, Math.ceil(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** The same for narrow places: `11m 32s`. */
function brief(ms) {
  const s = Math.max(0, Math.ceil(ms / 1000));
  if (s < 3600) return s < 60 ? `${s}s` : `${Math.floor(s / 60)}m ${two(s % 60)}s`;
  return s < 86400 ? `${Math.floor(s / 3600)}h ${two(Math.floor((s % 3600) / 60))}m` : `${Math.floor(s / 86400)}d ${Math.floor((s % 86400) / 3600)}h`;
}

const decimalsOf = (value) => {
  const shown = String(value);
  if (shown.includes("e-")) return Math.min(12, Number(shown.split("e-")[1]));
  return (shown.split(".")[1] || "").length;
};

async function fetchJson(path) {
  const response = await fetch(path, { headers: { accept: "application/json" } });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

// ---------------------------------------------------------------------------------------------- state

const KEEP = 160; // bars of a series
const state = {
  symbols: new Map(), // symbol → glance
  bars: new Map(), // "symbol timeframe" → bars rising by open_time
  recommendations: new Map(), // symbol → envelope
  verdicts: new Map(), // "account symbol" → envelope
  lastId: "",
  status: null,
  heartbeat: null, // { sent, deadline }: milliseconds of the server's clock
  delays: [], // here minus there, of the last heartbeats
  link: "connecting",
  timeframe: null,
  filter: "all",
  window: "30d",
  sort: { by: "sharpe", descending: true },
  bestSymbol: "",
  best: [],
};

/** The server's clock now, as well as it can be known here. */
const serverNow = () => Date.now() - Math.min(...state.delays);

/** Whether the last heartbeat's deadline has not passed. */
const alive = () => Boolean(state.heartbeat && state.heartbeat.deadline !== null && serverNow() < state.heartbeat.deadline);

/** The clock that verdicts' times are in: with the event clock it stands still between commits. */
function pipelineNow() {
  if (!state.status || state.status.now_ms === null) return NaN;
  if (state.status.clock === "event") return state.status.now_ms;
  return state.status.now_ms + Math.max(0, serverNow() - state.heartbeat.sent);
}

/** What a verdict means at this moment: it may only ever be stricter than what it says. */
function effective(verdict) {
  if (!alive()) return { allow: false, reasons: ["NO_HEARTBEAT", ...verdict.reasons] };
  const until = millis(verdict.valid_until);
  if (!Number.isNaN(until) && !(pipelineNow() < until)) return { allow: false, reasons: ["PAST_VALID_UNTIL", ...verdict.reasons] };
  return { allow: verdict.allow === true, reasons: verdict.reasons };
}

/** Digits after the point that a symbol's prices were seen to need. It only grows, so that figures do not jump. */
const seenDecimals = new Map();
function seePrice(symbol, value) {
  if (value === null || value === undefined) return;
  const digits = Math.min(decimalsOf(value), 10);
  if (digits > (seenDecimals.get(symbol) ?? 2)) seenDecimals.set(symbol, digits);
}
const decimals = (symbol) => seenDecimals.get(symbol) ?? 2;
function price(symbol, value) {
  if (value === null || value === undefined) return "–";
  const digits = decimals(symbol);
  return number(value, { minimumFractionDigits: digits, maximumFractionDigits: digits, useGrouping: true });
}

// ---------------------------------------------------------------------------------------------- reading

function take(map, key, envelope, row) {
  const standing = map.get(key);
  if (standing && standing.seq >= envelope.seq) return false;
  // A row that went away leaves its seq behind, so that an older answer cannot bring it back.
  map.set(key, row === null ? { seq: envelope.seq, gone: true } : envelope);
  return true;
}
const takeRecommendation = (e) => {
  if (e.recommendation) seePrice(e.symbol, e.recommendation.close);
  return take(state.recommendations, e.symbol, e, e.recommendation);
};
const takeVerdict = (e) => take(state.verdicts, `${e.account} ${e.symbol}`, e, e.verdict);

function takeBar(bar) {
  seePrice(bar.symbol, bar.close);
  const key = `${bar.symbol} ${bar.timeframe}`;
  let series = state.bars.get(key);
  if (!series) state.bars.set(key, (series = []));
  let at = series.length;
  while (at > 0 && series[at - 1].open_time >= bar.open_time) at -= 1;
  if (series[at] && series[at].open_time === bar.open_time) series[at] = bar;
  else series.splice(at, 0, bar);
  if (series.length > KEEP) series.shift();
  const glance = state.symbols.get(bar.symbol);
  if (!glance) return void loadSymbolsSoon();
  if (!glance.timeframes.includes(bar.timeframe)) return void loadSymbolsSoon();
  if (bar.timeframe === glance.timeframes[0] && series[series.length - 1] === bar) {
    glance.price = bar.close;
    glance.change = glance.reference ? bar.close / glance.reference - 1 : null;
  }
}

async function loadSymbols() {
  const { symbols } = await fetchJson("/api/v1/symbols");
  for (const glance of symbols) { state.symbols.set(glance.symbol, glance); seePrice(glance.symbol, glance.price); }
  const all = [...new Set(symbols.flatMap((glance) => glance.timeframes))].sort((a, b) => length(a) - length(b));
  if (state.timeframe === null || !all.includes(state.timeframe)) state.timeframe = all.includes("1m") ? "1m" : all[0] ?? null;
  drawTimeframes(all);
  drawCards();
  drawBestControls();
}
const UNITS = { ns: 1e-9, ms: 1e-3, s: 1, m: 60, h: 3600, d: 86400 };
const length = (timeframe) => parseFloat(timeframe) * (UNITS[timeframe.replace(/^\d+/, "")] ?? 1);

let symbolsTimer = 0;
function loadSymbolsSoon() {
  if (symbolsTimer) return;
  symbolsTimer = setTimeout(async () => {
    symbolsTimer = 0;
    try { await loadSymbols(); await loadBars(); } catch (_) { /* the stream will say whether the pipeline is there */ }
  }, 500);
}

async function loadBars() {
  const timeframe = state.timeframe;
  if (timeframe === null) return;
  const wanted = [...state.symbols.values()].filter((glance) => glance.timeframes.includes(timeframe)).map((glance) => glance.symbol);
  // A few at a time: there may be hundreds of symbols.
  const next = async () => {
    for (let symbol = wanted.shift(); symbol !== undefined; symbol = wanted.shift()) {
      const answer = await fetchJson(`/api/v1/bars/${encodeURIComponent(symbol)}?timeframe=${timeframe}&limit=${KEEP}`);
      state.bars.set(`${symbol} ${timeframe}`, answer.bars);
      for (const bar of answer.bars) seePrice(symbol, bar.close);
      cards.get(symbol)?.chart();
    }
  };
  await Promise.all([next(), next(), next(), next()]);
}

async function loadAll() {
  const [recommendations, verdicts] = await Promise.all([
    fetchJson("/api/v1/recommendations"), fetchJson("/api/v1/verdicts"), loadSymbols(),
  ]);
  // What the answers do not have any more is gone, unless the stream has brought it since.
  const prune = (map, answer, rows, key) => {
    const present = new Set(rows.map(key));
    for (const [name, standing] of map) if (!present.has(name) && standing.seq <= answer.last_seq) map.delete(name);
  };
  prune(state.recommendations, recommendations, recommendations.recommendations, (e) => e.symbol);
  prune(state.verdicts, verdicts, verdicts.verdicts, (e) => `${e.account} ${e.symbol}`);
  recommendations.recommendations.forEach(takeRecommendation);
  verdicts.verdicts.forEach(takeVerdict);
  drawCards();
  for (const card of cards.values()) card.recommendation();
  drawVerdicts();
  await loadBars();
  await loadBest();
}

let loading = null;
function reload() {
  loading = (loading || Promise.resolve()).then(loadAll).catch(() => setTimeout(reload, 2000));
}

/** Forgets all that stands here, and reads it anew. */
function restart() {
  for (const map of [state.recommendations, state.verdicts, state.bars, state.symbols]) map.clear();
  for (const card of cards.values()) card.forget();
  cards.clear();
  reload();
}

let source = null;
function connect() {
  source = new EventSource(state.lastId ? `/api/v1/stream?after=${encodeURIComponent(state.lastId)}` : "/api/v1/stream");
  const on = (name, handle) => source.addEventListener(name, (event) => {
    if (event.lastEventId) state.lastId = event.lastEventId;
    handle(JSON.parse(event.data));
  });
  source.onopen = () => { state.link = "live"; reload(); };
  source.onerror = () => {
    state.link = "reconnecting";
    // The browser tries again by itself, unless it was refused outright.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
    tick();
  };
  on("heartbeat", (beat) => {
    state.delays.push(Date.now() - beat.sent_ms);
    if (state.delays.length > 60) state.delays.shift();
    state.heartbeat = { sent: beat.sent_ms, deadline: beat.deadline_ms };
    // Another process: its seqs may be those of another store.
    if (state.status && state.status.started_ms !== beat.status.started_ms) restart();
    state.status = beat.status;
    state.link = "live";
    drawStatus();
    tick();
  });
  on("bars", (event) => {
    const touched = new Set();
    for (const bar of event.bars) { takeBar(bar); touched.add(bar.symbol); }
    for (const [symbol, timeframe, open] of event.deleted) {
      const series = state.bars.get(`${symbol} ${timeframe}`);
      const at = series ? series.findIndex((bar) => bar.open_time === open) : -1;
      if (at >= 0) series.splice(at, 1);
      touched.add(symbol);
    }
    for (const symbol of touched) { cards.get(symbol)?.price(); cards.get(symbol)?.chart(); }
  });
  on("recommendation", (e) => { if (takeRecommendation(e)) { drawCards(); cards.get(e.symbol)?.recommendation(); cards.get(e.symbol)?.chart(); } });
  on("verdict", (e) => { if (takeVerdict(e)) drawVerdictsSoon(); });
  on("reset", restart);
}

// ---------------------------------------------------------------------------------------------- header

function drawStatus() {
  const s = state.status;
  if (!s) return;
  text($("tick-rate"), whole(s.tick_rate));
  const lag = s.lag_seconds;
  text($("lag"), lag === null ? "–" : lag < 1 ? `${whole(lag * 1000)} ms` : `${number(lag, { maximumFractionDigits: 1 })} s`);
  $("lag").className = lag !== null && lag > 5 ? "down" : "";
  const chip = $("balanced");
  text(chip, t(s.balanced ? "balanced" : "unbalanced"));
  chip.className = `chip ${s.balanced ? "good" : "bad"}`;
  const term = (value, name) => h("span", { class: "term" }, whole(value), " ", h("small", null, t(name)));
  const op = (sign) => h("span", { class: "op" }, sign);
  const n = s.totals;
  $("ledger").replaceChildren(term(n.records_in, "in"), op("="), term(n.accepted, "accepted"), op("+"), term(n.duplicate, "duplicate"),
    op("+"), term(n.dead, "dead"), op("+"), term(n.held, "held"));
  text($("about"), fill(t("about"), { g: s.generation, e: s.epoch ?? "–", s: s.last_seq, u: span(s.uptime_seconds * 1000) }));
}

/** What moves with time alone: clocks, countdowns, and whether anything may be trusted. Twice a second. */
let trusted = null;
function tick() {
  const ok = alive();
  const link = $("link");
  const live = ok && state.link === "live";
  link.className = `link ${live ? "live" : ok ? "" : state.heartbeat ? "dead" : ""}`;
  text($("link-text"), live ? t("live") : ok || !state.heartbeat ? t(state.link === "connecting" ? "connecting" : "reconnecting") : t("noHeartbeat"));
  const alarm = $("alarm");
  const silent = !ok && Boolean(state.heartbeat);
  if (alarm.hidden === silent) alarm.hidden = !silent;
  text(alarm, silent ? t("alarm") : "");
  const now = pipelineNow();
  text($("clock"), Number.isNaN(now) ? "–" : dayTime(now));
  if (trusted !== ok) { trusted = ok; drawVerdicts(); } else refreshVerdicts();
  for (const card of cards.values()) card.countdown();
}

// ---------------------------------------------------------------------------------------------- cards

const cards = new Map();
const visible = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const card = cards.get(entry.target.dataset.symbol);
    if (card) { card.shown = entry.isIntersecting; card.chart(); }
  }
}, { rootMargin: "200px" });
const resized = new ResizeObserver((entries) => { for (const entry of entries) cards.get(entry.target.dataset.symbol)?.chart(); });

const tone = (action) => (action.endsWith("BUY") ? "buy" : action.endsWith("SELL") ? "sell" : "");

class Card {
  constructor(symbol) {
    this.symbol = symbol;
    this.shown = true;
    this.shownPrice = null;
    this.priceText = h("span", { class: "price" }, "–");
    this.changeText = h("span", { class: "change" });
    this.canvas = h("canvas", { class: "chart", role: "img", "data-symbol": symbol });
    this.body = h("div");
    this.details = h("details");
    this.element = h("article", { class: "card", "data-symbol": symbol, "aria-label": symbol },
      h("header", null, h("h3", null, symbol), this.priceText, this.changeText), this.canvas, this.body, this.details);
    this.frame = 0;
    visible.observe(this.element);
    resized.observe(this.canvas);
    this.recommendation();
    this.price();
  }

  forget() {
    visible.unobserve(this.element);
    resized.unobserve(this.canvas);
  }

  price() {
    const glance = state.symbols.get(this.symbol);
    if (!glance) return;
    const before = this.shownPrice;
    this.shownPrice = glance.price;
    text(this.priceText, price(this.symbol, glance.price));
    if (before !== null && glance.price !== null && before !== glance.price) {
      this.priceText.classList.remove("flash-up", "flash-down");
      this.priceText.classList.add(glance.price > before ? "flash-up" : "flash-down");
      requestAnimationFrame(() => requestAnimationFrame(() => this.priceText.classList.remove("flash-up", "flash-down")));
    }
    const change = glance.change;
    text(this.changeText, change === null ? "" : `${change > 0 ? "▲" : change < 0 ? "▼" : "●"} ${percent(Math.abs(change))}`);
    this.changeText.className = `change ${change > 0 ? "up" : change < 0 ? "down" : "muted"}`;
    this.changeText.title = glance.reference_time ? `${t("since")} ${dayTime(millis(glance.reference_time))}: ${price(this.symbol, glance.reference)}` : "";
  }

  standing() {
    const envelope = state.recommendations.get(this.symbol);
    return envelope && !envelope.gone ? envelope.recommendation : null;
  }

  recommendation() {
    const r = this.standing();
    this.expiry = null;
    if (!r) {
      this.element.className = "card";
      this.body.replaceChildren(h("p", { class: "muted" }, t("noRecommendation")));
      this.details.hidden = true;
      return;
    }
    const side = tone(r.action);
    const active = r.status === "active";
    this.element.className = `card ${active ? side : ""}`;
    const strong = r.action.startsWith("STRONG_") ? "strong" : "";
    const badge = h("div", { class: `badge ${active ? `${strong} ${side}` : "off"}` }, t(r.action));
    const value = Math.max(0, Math.min(100, r.confidence));
    const fillBar = h("i");
    fillBar.style.width = `${value}%`;
    const marks = [50, 70, 85].map((at) => { const mark = h("s"); mark.style.left = `${at}%`; return mark; });
    const meter = h("div", {
      class: `meter ${side || (r.bias ? "lean" : "")}`, role: "meter", "aria-label": t("confidence"),
      "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": value.toFixed(1),
    }, fillBar, marks);
    const confidence = h("div", { class: "confidence" },
      h("div", { class: "row" }, h("span", null, t("confidence")), h("b", null, number(r.confidence, { maximumFractionDigits: 1 }))), meter);
    const flags = h("div", { class: "flags" },
      r.status === "invalidated" && h("span", { class: "chip bad" }, t("invalidated")),
      r.status === "expired" && h("span", { class: "chip warn" }, t("expired")),
      r.bias !== 0 && h("span", { class: "chip warn" }, `${t("leans")} ${t(r.bias > 0 ? "long" : "short")} ${r.bias > 0 ? "↗" : "↘"}`));
    const level = (name, shown) => h("div", null, h("dt", null, t(name)), h("dd", null, shown));
    this.expiry = h("dd");
    this.expiryAt = millis(r.expires_at);
    const expires = h("div", null, h("dt", null, t("expires")), this.expiry);
    const traded = r.stop_loss !== null;
    const levels = h("dl", { class: "levels" }, traded ? [
      level("entry", `${price(this.symbol, r.entry_low)}–${price(this.symbol, r.entry_high)}`),
      level("stop", price(this.symbol, r.stop_loss)), level("target", price(this.symbol, r.take_profit)),
    ] : [
      level("close", price(this.symbol, r.close)), level("atr", r.atr === null ? "–" : number(r.atr, { maximumSignificantDigits: 4 })),
      level("strength", ratio(r.strength)),
    ], expires);
    const summary = h("p", { class: "summary" }, inWords(r.explanation.summary));
    this.body.replaceChildren(h("div", { class: "call" }, badge, confidence, flags), levels, summary);
    this.drawDetails(r);
    this.countdown();
  }

  drawDetails(r) {
    this.details.hidden = false;
    const arrow = (side) => (side > 0 ? `▲ ${t("long")}` : side < 0 ? `▼ ${t("short")}` : `● ${t("flat")}`);
    const item = (vote) => h("li", null,
      h("div", { class: "line" },
        h("span", { class: `side ${vote.side > 0 ? "up" : vote.side < 0 ? "down" : "muted"}` }, arrow(vote.side)),
        h("b", null, vote.strategy),
        vote.unproven && h("span", { class: "chip warn" }, t("unproven")),
        h("span", { class: "weight" }, vote.weight > 0 && vote.side !== 0
          ? `${t("weight")} ${ratio(vote.weight)} · ${t("confidenceShort")} ${ratio(vote.confidence)} · ${t("track")} ${ratio(vote.track)}`
          : t("noVote"))),
      h("p", null, inWords(vote.reason)),
      vote.values.length > 0 && h("p", { class: "values" }, vote.values.map(([name, value]) => `${name} = ${number(value, { maximumSignificantDigits: 8 })}`).join("   ")));
    const e = r.explanation;
    const words = h("div", { class: "words" },
      e.notes.length > 0 && h("p", null, h("b", null, `${t("notes")}: `), e.notes.map(inWords).join(" ")),
      inWords(e.invalidation) && h("p", null, h("b", null, `${t("invalidation")}: `), inWords(e.invalidation)),
      inWords(e.next_review) && h("p", null, h("b", null, `${t("review")}: `), inWords(e.next_review)));
    const n = r.votes.length;
    this.details.replaceChildren(h("summary", null, n === 1 ? t("vote1") : fill(t("votes"), { n })), h("ul", { class: "votes" }, r.votes.map(item)), words);
  }

  countdown() {
    if (!this.expiry) return;
    const left = this.expiryAt - pipelineNow();
    text(this.expiry, left > 0 ? brief(left) : hhmm(this.expiryAt));
    this.expiry.title = dayTime(this.expiryAt);
  }

  /** Asks for a drawing in the next frame, if the card can be seen. */
  chart() {
    if (!this.shown || this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = 0; drawChart(this); });
  }
}

function drawChart(card) {
  const { canvas, symbol } = card;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width) return;
  const scale = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
  if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
  const g = canvas.getContext("2d");
  g.setTransform(scale, 0, 0, scale, 0, 0);
  g.clearRect(0, 0, width, height);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const [up, down, muted, line, accent] = ["--up", "--down", "--muted", "--line", "--accent"].map(colour);
  const digits = decimals(symbol);
  const label = (value) => number(value, { minimumFractionDigits: digits, maximumFractionDigits: digits });
  g.font = "10.5px " + colour("--mono");
  const all = state.bars.get(`${symbol} ${state.timeframe}`) || [];
  if (all.length === 0) {
    g.fillStyle = muted; g.textAlign = "center"; g.fillText(t("noChart"), width / 2, height / 2);
    canvas.setAttribute("aria-label", `${symbol}: ${t("noChart")}`);
    return;
  }
  const right = Math.ceil(g.measureText(label(all[all.length - 1].high)).width) + 10;
  const plot = width - right, floor = height - 15, volumeTop = floor - 22, step = plot < 300 ? 6 : 7;
  const bars = all.slice(-Math.max(8, Math.floor(plot / step)));
  let low = Math.min(...bars.map((b) => b.low)), high = Math.max(...bars.map((b) => b.high));
  // Levels are shown where they do not squeeze the bars to a line.
  const r = card.standing();
  const levels = [];
  if (r && r.status === "active" && r.stop_loss !== null) {
    const room = Math.max(high - low, r.close * 1e-5) * 1.1;
    for (const [value, stroke, name] of [[r.take_profit, up, t("target")], [r.stop_loss, down, t("stop")]]) {
      if (value >= low - room && value <= high + room) levels.push({ value, name, stroke });
    }
    for (const { value } of levels) { low = Math.min(low, value); high = Math.max(high, value); }
  }
  if (high === low) { high += Math.abs(high) * 1e-4 || 1; low -= Math.abs(low) * 1e-4 || 1; }
  const pad = (high - low) * 0.06;
  const y = (value) => 6 + (high + pad - value) / (high - low + 2 * pad) * (volumeTop - 10);
  g.lineWidth = 1;
  // Three grid lines with their price.
  g.textAlign = "left"; g.textBaseline = "middle";
  for (const part of [0.12, 0.5, 0.88]) {
    const value = low + (high - low) * part, at = Math.round(y(value)) + 0.5;
    g.strokeStyle = line; g.beginPath(); g.moveTo(0, at); g.lineTo(plot, at); g.stroke();
    // The last price has its own label, which must stay readable.
    if (Math.abs(at - y(bars[bars.length - 1].close)) > 13) { g.fillStyle = muted; g.fillText(label(value), plot + 6, at); }
  }
  if (r && r.status === "active" && r.entry_low !== null) {
    g.fillStyle = accent; g.globalAlpha = 0.13;
    g.fillRect(0, y(r.entry_high), plot, Math.max(1, y(r.entry_low) - y(r.entry_high)));
    g.globalAlpha = 1;
  }
  const most = Math.max(...bars.map((b) => b.volume)) || Math.max(...bars.map((b) => b.count)) || 1;
  const byCount = !bars.some((b) => b.volume > 0);
  const wide = Math.max(1, Math.floor(step * 0.66));
  bars.forEach((bar, i) => {
    const x = Math.round(plot - (bars.length - i) * step + (step - wide) / 2), middle = x + wide / 2;
    const rising = bar.close >= bar.open;
    g.fillStyle = g.strokeStyle = rising ? up : down;
    const tall = Math.max(1, (byCount ? bar.count : bar.volume) / most * (floor - volumeTop));
    g.globalAlpha = 0.28; g.fillRect(x, floor - tall, wide, tall); g.globalAlpha = 1;
    g.beginPath(); g.moveTo(middle, y(bar.high)); g.lineTo(middle, y(bar.low)); g.stroke();
    const top = y(Math.max(bar.open, bar.close)), body = Math.max(1, Math.abs(y(bar.open) - y(bar.close)));
    if (bar.closed) g.fillRect(x, top, wide, body);
    else { g.fillStyle = colour("--panel"); g.fillRect(x, top, wide, body); g.strokeRect(x + 0.5, top + 0.5, Math.max(1, wide - 1), Math.max(1, body - 1)); }
  });
  // Their names stand side by side, so that stop and target can be read when they are close.
  for (const [i, { value, name, stroke }] of levels.entries()) {
    const at = Math.round(y(value)) + 0.5;
    g.setLineDash([4, 3]); g.strokeStyle = stroke; g.beginPath(); g.moveTo(0, at); g.lineTo(plot, at); g.stroke(); g.setLineDash([]);
    g.fillStyle = stroke; g.fillText(name, 2 + i * 64, at < 14 ? at + 8 : at - 7);
  }
  // The last price, on the axis.
  const last = bars[bars.length - 1], at = y(last.close);
  g.strokeStyle = accent; g.setLineDash([2, 3]); g.beginPath(); g.moveTo(0, Math.round(at) + 0.5); g.lineTo(plot, Math.round(at) + 0.5); g.stroke(); g.setLineDash([]);
  g.fillStyle = accent; g.beginPath(); g.roundRect(plot + 2, at - 8, right - 2, 16, 4); g.fill();
  g.fillStyle = colour("--on-solid"); g.fillText(label(last.close), plot + 6, at + 0.5);
  g.fillStyle = muted; g.textBaseline = "alphabetic";
  const seconds = length(state.timeframe) < 60;
  g.textAlign = "left"; g.fillText(hhmm(millis(bars[0].open_time), seconds), Math.max(0, plot - bars.length * step), height - 3);
  g.textAlign = "right"; g.fillText(`${hhmm(millis(last.open_time), seconds)} UTC`, plot, height - 3);
  canvas.setAttribute("aria-label", fill(t("chart"), { s: symbol, n: bars.length, t: state.timeframe, a: label(bars[0].open), b: label(last.close) }));
}

function drawCards() {
  const names = [...new Set([...state.symbols.keys(), ...[...state.recommendations].filter(([, e]) => !e.gone).map(([s]) => s)])].sort();
  const wanted = $("search").value.trim().toUpperCase();
  const order = [];
  for (const symbol of names) {
    let card = cards.get(symbol);
    if (!card) cards.set(symbol, (card = new Card(symbol)));
    card.element.hidden = wanted !== "" && !symbol.includes(wanted);
    order.push(card.element);
  }
  const holder = $("cards");
  if (order.length !== holder.children.length || order.some((element, i) => holder.children[i] !== element)) holder.replaceChildren(...order);
  $("no-cards").hidden = order.length > 0;
  $("search").hidden = order.length <= 6;
}

function buttons(holder, choices, current, choose) {
  holder.replaceChildren(...choices.map(([value, name]) =>
    h("button", { type: "button", "aria-pressed": String(value === current), onclick: () => choose(value) }, name)));
}

function drawTimeframes(all) {
  $("timeframes").hidden = all.length < 2;
  buttons($("timeframes"), all.map((timeframe) => [timeframe, timeframe]), state.timeframe, (timeframe) => {
    state.timeframe = timeframe;
    drawTimeframes(all);
    for (const card of cards.values()) card.chart();
    loadBars().catch(() => {});
  });
}

// ---------------------------------------------------------------------------------------------- verdicts

const rows = new Map(); // key → { row, cells, shown }
let verdictsTimer = 0;
function drawVerdictsSoon() {
  const wait = state.verdicts.size > 300 ? 1000 : 60;
  if (!verdictsTimer) verdictsTimer = setTimeout(() => { verdictsTimer = 0; drawVerdicts(); }, wait);
}

const standingVerdicts = () => [...state.verdicts.values()].filter((e) => !e.gone);
const asked = (verdict) => (verdict.intent === "none" ? t("none") : `${t(verdict.intent)} ${t(verdict.side > 0 ? "long" : "short")} ${verdict.side > 0 ? "▲" : "▼"}`);

function drawVerdicts() {
  const all = standingVerdicts().sort((a, b) => (a.account + " " + a.symbol < b.account + " " + b.symbol ? -1 : 1));
  buttons($("verdict-filter"), ["all", "allowed", "blocked"].map((f) => [f, t(f)]), state.filter, (f) => { state.filter = f; drawVerdicts(); });
  const passes = (e) => state.filter === "all" || effective(e.verdict).allow === (state.filter === "allowed");
  const table = $("verdicts");
  for (const body of table.querySelectorAll("tbody")) body.remove();
  const accounts = new Map();
  for (const e of all) accounts.set(e.account, [...(accounts.get(e.account) || []), e]);
  let shown = 0;
  rows.clear();
  for (const [account, list] of accounts) {
    const kept = list.filter(passes);
    if (kept.length === 0) continue;
    shown += kept.length;
    const count = h("span", { class: "note" });
    const body = h("tbody", { role: "rowgroup" },
      h("tr", { class: "account", role: "row" }, h("th", { scope: "rowgroup", role: "rowheader", colspan: 7 }, account, count)), kept.map(verdictRow));
    body.count = () => text(count, `${list.filter((e) => effective(e.verdict).allow).length} ${t("of")} ${list.length} ${t("allowedCount")}`);
    body.count();
    table.append(body);
  }
  table.hidden = shown === 0;
  const empty = $("no-verdicts");
  empty.hidden = shown > 0;
  text(empty, t(all.length ? "noneMatch" : "noVerdicts"));
  countVerdicts(all);
}

function countVerdicts(all) {
  text($("verdict-count"), all.length ? `${all.filter((e) => effective(e.verdict).allow).length} ${t("of")} ${all.length} ${t("allowedCount")}` : "");
}

function verdictRow(e) {
  const v = e.verdict;
  // Roles are written out, since a phone's layout would take them away.
  const cell = (label, name, ...children) => h("td", { class: name, role: "cell", "data-label": t(label) }, ...children);
  const meaning = cell("verdict", "meaning");
  const why = cell("why", "why");
  const until = cell("until", "until");
  const blank = (value) => (value === null ? "num blank" : "num");
  const stops = v.stop_loss === null && v.take_profit === null ? "–" : `${price(v.symbol, v.stop_loss)} / ${price(v.symbol, v.take_profit)}`;
  const row = h("tr", { role: "row" }, cell("symbol", "sym", v.symbol), cell("intent", "", asked(v)), meaning,
    cell("lots", blank(v.lots), v.lots === null ? "–" : number(v.lots, { maximumFractionDigits: 8 })),
    cell("stopTarget", v.stop_loss === null && v.take_profit === null ? "num blank" : "num", stops), why, until);
  rows.set(`${e.account} ${e.symbol}`, { e, row, meaning, why, until, shown: "" });
  refreshVerdict(rows.get(`${e.account} ${e.symbol}`));
  return row;
}

/** Redraws what depends on the time; the rest only when its meaning changes. */
function refreshVerdict(entry) {
  const v = entry.e.verdict;
  const { allow, reasons } = effective(v);
  const shown = `${lang} ${allow} ${reasons}`;
  if (entry.shown !== shown) {
    entry.shown = shown;
    entry.row.classList.toggle("void", v.allow && !allow);
    const idle = !allow && v.intent === "none" && reasons.every((code) => code === "NO_SIGNAL" || code === "EXPIRED");
    entry.meaning.replaceChildren(h("span", { class: `verdict ${allow ? "allow" : idle ? "idle" : "block"}` }, t(allow ? "allow" : idle ? "nothing" : "block")));
    entry.why.replaceChildren(h("div", null,
      h("ul", null, reasons.map((code) => h("li", null, reasonText(code), h("code", null, code)))),
      v.details.map((detail) => h("span", { class: "detail" }, detail)),
      allow && h("span", { class: "muted" }, t(v.intent === "exit" ? "exits" : "clear")),
      v.cancel_pending && h("span", { class: "chip warn" }, t("cancelPending"))));
  }
  const [at, name] = v.blocked_until ? [millis(v.blocked_until), "over"] : [millis(v.valid_until), "valid"];
  const left = at - pipelineNow();
  // Without a heartbeat nothing is valid for any time.
  const known = alive() && !Number.isNaN(left);
  entry.until.classList.toggle("blank", !known);
  const when = known ? `${hhmm(at)} UTC` : "–";
  const rest = !known ? "" : left > 0 ? fill(t(name), { d: span(left) }) : t("past");
  if (entry.until.textContent !== when + rest) entry.until.replaceChildren(h("div", null, h("span", { title: known && dayTime(at) }, when), h("small", null, rest)));
}

function refreshVerdicts() {
  let changed = false;
  for (const entry of rows.values()) {
    const before = entry.shown;
    refreshVerdict(entry);
    changed ||= before !== entry.shown;
  }
  if (!changed) return;
  for (const body of $("verdicts").querySelectorAll("tbody")) body.count?.();
  countVerdicts(standingVerdicts());
}

// ---------------------------------------------------------------------------------------------- best strategies

const COLUMNS = [
  ["sharpe", ratio], ["total_return", (v) => percent(v)], ["win_rate", (v) => percent(v, 1)], ["max_drawdown", (v) => percent(v)],
  ["profit_factor", ratio], ["trades", (v) => whole(v)],
];
const LESS_IS_BETTER = new Set(["max_drawdown"]);

function drawBestControls() {
  const select = $("best-symbol");
  const names = ["", ...[...state.symbols.keys()].sort()];
  const have = [...select.options].map((o) => o.value);
  if (have.join("\n") !== names.join("\n") || select.options[0]?.textContent !== t("allSymbols")) {
    select.replaceChildren(...names.map((name) => h("option", { value: name }, name || t("allSymbols"))));
    select.value = state.bestSymbol;
  }
  buttons($("best-window"), [["30d", t("w30d")], ["all", t("wall")]], state.window, (w) => { state.window = w; drawBestControls(); loadBest().catch(() => {}); });
}

async function loadBest() {
  const wanted = state.bestSymbol ? [state.bestSymbol] : [...state.symbols.keys()].slice(0, 40);
  const answers = await Promise.all(wanted.map((symbol) =>
    fetchJson(`/api/v1/metrics/${encodeURIComponent(symbol)}?window=${state.window}&sort=${state.sort.by}&limit=50`).catch(() => null)));
  state.best = answers.filter(Boolean).flatMap((answer) => answer.metrics.map((row) => ({ ...row, symbol: answer.symbol })));
  drawBest();
}

function drawBest() {
  const { by, descending } = state.sort;
  const better = (a, b) => {
    const [x, y] = [a[by], b[by]];
    if (x === null || y === null) return (x === null) - (y === null);
    return descending ? y - x : x - y;
  };
  const best = [...state.best].sort(better).slice(0, 12);
  const sortBy = (name) => {
    const descending = state.sort.by === name ? !state.sort.descending : !LESS_IS_BETTER.has(name);
    state.sort = { by: name, descending };
    drawBest();
    loadBest().catch(() => {});
  };
  const head = [h("th", { scope: "col" }, t("strategy")), h("th", { scope: "col" }, t("symbol")), h("th", { scope: "col" }, t("timeframe"))];
  for (const [name] of COLUMNS) {
    const sorted = name === by;
    head.push(h("th", { scope: "col", class: "num", "aria-sort": sorted ? (descending ? "descending" : "ascending") : null },
      h("button", { type: "button", onclick: () => sortBy(name) }, t(name), sorted ? (descending ? " ↓" : " ↑") : "")));
  }
  const focused = document.activeElement?.closest?.("#best-head th");
  const at = focused ? [...focused.parentNode.children].indexOf(focused) : -1;
  $("best-head").replaceChildren(...head);
  if (at >= 0) $("best-head").children[at]?.querySelector("button")?.focus();
  $("best-body").replaceChildren(...best.map((row, i) => h("tr", null,
    h("td", null, h("span", { class: "rank" }, String(i + 1)), row.strategy, h("small", { class: "tail", "aria-hidden": "true" }, `${row.symbol} · ${row.timeframe}`)),
    h("td", null, row.symbol), h("td", null, row.timeframe),
    COLUMNS.map(([name, show]) => h("td", {
      class: `num ${name === "total_return" && row[name] !== null ? (row[name] > 0 ? "up" : row[name] < 0 ? "down" : "") : ""}`,
    }, row[name] === null ? "–" : show(row[name]))))));
  $("best-scroll").hidden = best.length === 0;
  $("no-best").hidden = best.length > 0;
}

// ---------------------------------------------------------------------------------------------- start

function translate() {
  document.documentElement.lang = lang;
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-t-label]")) element.setAttribute("aria-label", t(element.dataset.tLabel));
  for (const button of document.querySelectorAll("[data-lang]")) button.setAttribute("aria-pressed", String(button.dataset.lang === lang));
  $("search").placeholder = t("findSymbol");
  $("search").setAttribute("aria-label", t("findSymbol"));
  drawStatus();
  drawCards();
  for (const card of cards.values()) { card.recommendation(); card.price(); card.chart(); }
  drawVerdicts();
  drawBestControls();
  drawBest();
  tick();
}

for (const button of document.querySelectorAll("[data-lang]")) {
  button.addEventListener("click", () => {
    lang = button.dataset.lang;
    try { localStorage.setItem("marea.lang", lang); } catch (_) { /* then it is not remembered */ }
    translate();
  });
}
$("search").addEventListener("input", drawCards);
$("best-symbol").addEventListener("change", (event) => { state.bestSymbol = event.target.value; loadBest().catch(() => {}); });
matchMedia("(prefers-color-scheme: light)").addEventListener("change", () => { for (const card of cards.values()) card.chart(); });

translate();
connect();
setInterval(tick, 500);
setInterval(() => { if (!document.hidden && alive()) loadBest().catch(() => {}); }, 5000);
