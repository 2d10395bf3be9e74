"""A judge behind an endpoint that knows the truth: of two fenced answers the longer one is better. Run as a program.

    python tests/judging_server.py ADDRESS_FILE LOG_FILE [--delay SECONDS] [--faults]

Writes its address into one file and a line for every call, with the digest of its body, into the other, before it
answers. With --faults, of the calls 2% get 429, 1% get 500, 1% a text that is no verdict, and 0.5% nothing at all;
which ones depends on the body and on how often it came.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

NO_VERDICTS = ("Neither A nor B is good", "A and B", "", "B? No, A", "I cannot say", "a", "A\nB", "answer: C")
HUNG = 3600.0


def verdict(content: str) -> str:
    """The letter of the longer answer."""
    first, second = (content.split(f"<<answer {name} ")[1].split("<<end")[0] for name in "AB")
    return "A" if len(first) > len(second) else "B"


class Judging:
    """The server's state: how often each body came."""

    def __init__(self, log: Path, delay: float, faults: bool) -> None:
        self.log, self.delay, self.faults = log.open("a", encoding="ascii", buffering=1), delay, faults
        self.times: Counter[str] = Counter()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One call."""
        body = await request.read()
        name = hashlib.sha256(body).hexdigest()[:16]
        self.log.write(f"{name}\n")
        self.times[name] += 1
        await asyncio.sleep(self.delay)
        text = verdict(json.loads(body)["messages"][-1]["content"])
        point = random.Random(f"{name}/{self.times[name]}").random() if self.faults else 1.0
        if point < 0.02:
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0"})
        if point < 0.03:
            return web.json_response({"error": {"message": "oh"}}, status=500)
        if point < 0.04:
            text = NO_VERDICTS[int(name, 16) % len(NO_VERDICTS)]
        elif point < 0.045:
            await asyncio.sleep(HUNG)
        return web.json_response(completion(text))


def completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 50, "completion_tokens": 2, "total_tokens": 52},
    }


@contextmanager
def judging(folder: Path, *, delay: float = 0.01, faults: bool = False) -> Iterator[tuple[str, Path]]:
    """A server in a process of its own: its address, and its log."""
    address, log = folder / "address", folder / "calls.log"
    more = ["--faults"] if faults else []
    command = [sys.executable, __file__, str(address), str(log), "--delay", str(delay), *more]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 60
        while not address.exists() or not address.read_text():
            assert process.poll() is None, "the server does not start"
            assert time.monotonic() < deadline, "the server does not start in time"
            time.sleep(0.02)
        yield address.read_text(), log
    finally:
        process.kill()
        process.wait()


def paid_twice(log: Path) -> int:
    """Calls beyond the first of each body."""
    return sum(times - 1 for times in Counter(log.read_text().split()).values())


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("--delay", type=float, default=0.01)
    parser.add_argument("--faults", action="store_true")
    given = parser.parse_args()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", Judging(given.log, given.delay, given.faults).answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    given.address.write_text(f"http://127.0.0.1:{port}/v1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
