// Follows the verdict of one account and symbol over HTTP (server-sent events): prints one line per decision.
//
//   node consumer.mjs http://127.0.0.1:8000 ACCOUNT SYMBOL
//
// In a browser `EventSource` is there; Node 20 has none: `event-source.mjs` is what of it is used here.
const EventSource = globalThis.EventSource ?? (await import('./event-source.mjs')).EventSource;
const [url, account, symbol] = process.argv.slice(2);

let body = null; // the verdict that stands
let known = false; // whether it is the one that stands now
let asked = 0; // how often that was asked
let deadline = 0; // until when it may be acted on, ms since 1970
let last = '';

// Asked before every act, and four times a second: time alone makes a verdict invalid.
function decide() {
  const now = Date.now();
  const why =
    now >= deadline ? 'NO_HEARTBEAT'
    : !known || body?.verdict == null ? 'NO_VERDICT'
    : body.valid_until !== null && now >= Date.parse(body.valid_until) ? 'PAST_VALID_UNTIL'
    : body.verdict.allow ? null
    : body.verdict.reasons.join(',');
  const seq = body?.seq ?? '-';
  const decision = why === null ? `allow ${seq} ${body.verdict.intent} ${body.verdict.lots}` : `block ${seq} ${why}`;
  if (decision !== last) console.log(account, symbol, decision);
  last = decision;
}

// What stands now; an event that is newer wins. Until it is known, nothing is done, and events are only kept.
async function latest() {
  const mine = ++asked;
  known = false;
  body = null;
  decide();
  const query = new URLSearchParams({ account, symbol });
  let found;
  try {
    const answer = await fetch(`${url}/api/v1/verdicts?${query}`);
    // 404: it has never heard of this account or symbol.
    if (!answer.ok && answer.status !== 404) throw new Error(`${answer.status}`);
    found = answer.ok ? ((await answer.json()).verdicts[0] ?? null) : null;
  } catch {
    if (mine === asked) setTimeout(() => mine === asked && latest(), 250);
    return;
  }
  // Asked again since: another process may be there.
  if (mine !== asked) return;
  if (found && found.seq >= (body?.seq ?? 0)) body = found;
  known = true;
  decide();
}

const source = new EventSource(`${url}/api/v1/stream`);
source.addEventListener('open', () => {
  // Another process may be there, whose numbers are others. What it replays is of the past: its heartbeat comes after.
  deadline = 0;
  latest();
});
source.addEventListener('reset', latest);
source.addEventListener('heartbeat', ({ data }) => {
  deadline = JSON.parse(data).deadline_ms ?? 0;
  decide();
});
source.addEventListener('verdict', ({ data }) => {
  const change = JSON.parse(data);
  if (change.account === account && change.symbol === symbol && change.seq > (body?.seq ?? 0)) body = change;
  decide();
});
setInterval(decide, 250);
