#!/usr/bin/env python3
"""Follows the verdicts of an account, or the recommendation of a symbol, in Redis: prints one line per decision.

    consumer.py verdicts ACCOUNT SYMBOL     "ACCOUNT SYMBOL allow SEQ INTENT LOTS" or "ACCOUNT SYMBOL block SEQ WHY"
    consumer.py recommendations SYMBOL      "SYMBOL SEQ ACTION" for each change, none left out

The order is what makes it right: read `latest`, then the stream after its seq, then subscribe. A message on the channel is
only a hint that the stream has more: who misses one misses nothing. Needs redis-py (Debian: python3-redis).
"""

import json
import os
import sys
import time
from datetime import datetime, timezone

import redis

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")


def milliseconds(text):
    """RFC 3339 with nanoseconds, in milliseconds since 1970."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    seconds = datetime.fromisoformat(whole).replace(tzinfo=timezone.utc).timestamp()
    return int(seconds) * 1000 + int((fraction + "000")[:3])


def why_not(heartbeat, body):
    """Why nothing may be done, or None. Asked again before every act, not only when something new comes."""
    now = time.time() * 1000
    if heartbeat is None or now >= json.loads(heartbeat)["deadline_ms"]:
        return "NO_HEARTBEAT"
    if body is None or body.get("deleted"):
        return "NO_VERDICT"
    if body["valid_until"] is not None and now >= milliseconds(body["valid_until"]):
        return "PAST_VALID_UNTIL"
    verdict = body["verdict"]
    return None if verdict["allow"] else ",".join(verdict["reasons"])


class Stream:
    """A stream and its channel: gives each body after `seq` once, in order."""

    def __init__(self, client, name, seq):
        self.client, self.stream, self.seq = client, name + ":stream", seq
        # Subscribed before the stream is read, so that nothing falls between.
        self.hints = client.pubsub(ignore_subscribe_messages=True)
        self.hints.subscribe(name)

    def wait(self, seconds):
        """Waits for a hint, at most so long; then the stream is read whether there was one or not."""
        self.hints.get_message(timeout=seconds)
        bodies = []
        for entry, fields in self.client.xrange(self.stream, min=f"({self.seq}-0"):
            self.seq = int(entry.split("-")[0])
            bodies.append(json.loads(fields["body"]))
        return bodies


def connect():
    # The name is for whoever looks at CLIENT LIST.
    return redis.Redis.from_url(URL, decode_responses=True, socket_timeout=2, client_name="marea-consumer")


def verdicts(account, symbol):
    name = "verdict:" + account.replace(":", "%3A")
    body, last = None, None

    def decide(heartbeat, why=None):
        nonlocal last
        why = why or why_not(heartbeat, body)
        seq = (body or {}).get("seq") or "-"
        if why is None:
            decision = f"allow {seq} {body['verdict']['intent']} {body['verdict']['lots']}"
        else:
            decision = f"block {seq} {why}"
        if decision != last:
            print(account, symbol, decision, flush=True)
            last = decision

    def look(client):
        """Heartbeat and value as of one moment: a deadline that is newer than the value would vouch for what is past."""
        heartbeat, latest = client.mget("marea:heartbeat", f"{name}:{symbol}:latest")
        return heartbeat, json.loads(latest) if latest else None

    def version(found):
        # Not the seq: it is null before the commit, and a restart begins a new generation.
        return found["generation"], found["epoch"]

    while True:
        try:
            client = connect()
            heartbeat, body = look(client)
            stream = Stream(client, name, (body or {}).get("seq") or 0)
            while True:
                decide(heartbeat)
                # All that came, then one decision: what was superseded meanwhile is nothing to act on.
                changes = [change for change in stream.wait(0.25) if change["symbol"] == symbol]
                heartbeat, body = look(client)
                if body is not None and changes:
                    body = max(body, changes[-1], key=version)
        except (redis.RedisError, OSError):
            body = None
            decide(None, "NO_REDIS")
            time.sleep(0.25)


def recommendations(symbol):
    """Every change, also those while nobody listened, as far back as the stream reaches."""
    seq = int(os.environ.get("AFTER", "0"))
    while True:
        try:
            client = connect()
            stream = Stream(client, f"recommendation:{symbol}", seq)
            while True:
                for change in stream.wait(0.25):
                    row = change["recommendation"]
                    # Printed, and only then counted as read.
                    print(symbol, change["seq"], row["action"] if row else "DELETED", flush=True)
                    seq = change["seq"]
        except (redis.RedisError, OSError):
            time.sleep(0.25)


if __name__ == "__main__":
    try:
        {"verdicts": verdicts, "recommendations": recommendations}[sys.argv[1]](*sys.argv[2:])
    except (KeyError, IndexError, TypeError):
        sys.exit(__doc__)
    except KeyboardInterrupt:
        pass
