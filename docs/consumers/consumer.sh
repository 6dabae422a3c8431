#!/bin/sh
# Acts on the verdict of one account and symbol, with nothing but redis-cli: prints one line per decision.
#
#   consumer.sh ACCOUNT SYMBOL        REDIS_URL, default redis://127.0.0.1:6379/0
#
# Polls four times a second. Blocks without a heartbeat, past valid_until, without a verdict, when Redis does not answer.
set -eu
account=$(printf '%s' "$1" | sed 's/:/%3A/g') symbol=$2
url=${REDIS_URL:-redis://127.0.0.1:6379/0}

# One script, so that heartbeat, verdict and clock are of one moment. It answers "allow SEQ SIDE LOTS" or "block SEQ REASON".
decide='
local function block(seq, why) return "block " .. seq .. " " .. why end
local now = redis.call("TIME")
now = now[1] * 1000 + math.floor(now[2] / 1000)
local beat = redis.call("GET", KEYS[1])
if not beat or cjson.decode(beat).deadline_ms <= now then return block("-", "NO_HEARTBEAT") end
local body = redis.call("GET", KEYS[2])
if not body then return block("-", "NO_VERDICT") end
body = cjson.decode(body)
if body.deleted then return block("-", "NO_VERDICT") end
local seq = body.seq ~= cjson.null and string.format("%d", body.seq) or "-"
local verdict, until_ = body.verdict, body.valid_until
if until_ ~= cjson.null then
  local y, m, d, hour, min, sec = string.match(until_, "^(%d+)-(%d+)-(%d+)T(%d+):(%d+):([%d.]+)Z$")
  if tonumber(m) <= 2 then y, m = y - 1, m + 12 end
  local days = 365 * y + math.floor(y / 4) - math.floor(y / 100) + math.floor(y / 400)
  days = days + math.floor((153 * m - 457) / 5) + d - 719469
  local at = ((days * 24 + hour) * 60 + min) * 60000 + sec * 1000
  if at <= now then return block(seq, "PAST_VALID_UNTIL") end
end
if not verdict.allow then return block(seq, table.concat(verdict.reasons, ",")) end
return "allow " .. seq .. " " .. verdict.intent .. " " .. (verdict.lots ~= cjson.null and verdict.lots or "-")
'

last=
while :; do
    decision=$(timeout 2 redis-cli --no-raw -u "$url" EVAL "$decide" 2 marea:heartbeat "verdict:$account:$symbol:latest" 2>/dev/null |
        sed -n 's/^"\(\(allow\|block\) .*\)"$/\1/p') || true
    decision=${decision:-block - NO_REDIS}
    if [ "$decision" != "$last" ]; then
        printf '%s %s %s\n' "$1" "$symbol" "$decision"
        last=$decision
    fi
    sleep 0.25
done
