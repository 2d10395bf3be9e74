"""Labelling through an endpoint against a bare aiohttp loop, and beside plain clients and other labelling programs.

    python benchmarks/labelling.py [--calls 4000] [--flight 64 256] [--rounds 5] [--peers]

A server in a process of its own answers every chat completion after 50 ms. Against it, in turn, so that a busy machine
slows all alike: a bare aiohttp loop (the same questions, made beforehand; each answer parsed and dropped),
`factory.calls.answer` (each answer kept in a fresh store before its slot goes on), and
`factory.labelling.label` (a pairwise judge in both orders with canaries: questions made, calls and judgments kept).
Printed are medians over the rounds: calls a second, processor milliseconds of the client for a call, and both as ratios
to the bare loop of the same round. Nothing is counted before every way has run once.

`--peers` adds AsyncOpenAI, bespokelabs-curator and distilabel, each in a process of its own, in an environment that is
made under .venv-peers/ from benchmarks/peers/NAME.txt; they run benchmarks/peers/ask_NAME.py. Their caches: curator
keeps every answer (it cannot be told not to; each run has a fresh folder), distilabel's is off, AsyncOpenAI has none.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

SECONDS = 0.05
VERDICT = {
    "id": "chatcmpl-0", "object": "chat.completion", "created": 1700000000, "model": "judge",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "A"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 300, "completion_tokens": 2, "total_tokens": 302},
}  # fmt: skip
PAIRS_OF_A_PROMPT = 6  # of four answers
WAYS = ("bare", "answer", "label")
PEERS = Path(__file__).parent / "peers"
ENVIRONMENTS = Path(__file__).parent.parent / ".venv-peers"


# -------------------------------------------------------------------------------------------------------- the server


class Answering(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, as much of it as the clients use; the body is the same for every request."""

    REPLY = json.dumps(VERDICT).encode()
    HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(REPLY)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.came = transport, b""
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.came += data
        while (end := self.came.find(b"\r\n\r\n")) >= 0:
            head = self.came[:end].lower()
            size = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
            if len(self.came) < end + 4 + size:
                return
            self.came = self.came[end + 4 + size :]
            self.loop.call_later(SECONDS, self.reply)

    def reply(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.HEAD + self.REPLY)  # type: ignore[attr-defined]


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


@contextmanager
def serving() -> Iterator[str]:
    """The address of a server in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, "--serve", str(port)])
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


# --------------------------------------------------------------------------------------------------------- the work


class Spent(NamedTuple):
    """What a run took: calls, seconds by the clock, and processor seconds of the client."""

    calls: int
    wall: float
    cpu: float

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.wall

    @property
    def cpu_ms(self) -> float:
        """Processor milliseconds a call."""
        return self.cpu / self.calls * 1000


def timed(work: Callable[[], int]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    calls = work()
    return Spent(calls, time.perf_counter() - wall, time.process_time() - cpu)


def texts(calls: int) -> Iterator[tuple[str, list[str]]]:
    """Prompts with four answers each, enough for so many calls: 6 pairs in both orders."""
    for number in range(-(-calls // (2 * PAIRS_OF_A_PROMPT))):
        sentence = f"The story of thing {number} is long, and most of it was written down late by people who knew it."
        yield f"Tell me about thing {number}.", [" ".join([sentence] * (2 + k)) for k in range(4)]


def judge_of() -> Any:
    """A pairwise judge for an endpoint that gives no log-probs."""
    from factory.judges.pairwise import PairwiseJudge

    return PairwiseJudge(prefix="", max_tokens=8)


def questions(calls: int) -> list[list[dict[str, str]]]:
    """The messages that the judge asks, in both orders."""
    from factory.schema import Matchup

    judge, asked = judge_of(), []
    for prompt, candidates in rows(calls):
        for a, b in itertools.combinations(candidates, 2):
            asked += [ask.request.messages for ask in judge.asks(Matchup(prompt, a, b, secret=b"s"))]
    return asked[:calls]


def rows(calls: int) -> Iterator[tuple[Any, list[Any]]]:
    """Prompts with their candidates."""
    from factory.schema import Candidate, Prompt, digest

    at = datetime(2026, 1, 1)
    for text, answers in texts(calls):
        messages: Any = [{"role": "user", "content": text}]
        prompt = Prompt(key=digest(messages), messages=messages, split="train", group=text, at=at)
        yield (
            prompt,
            [
                Candidate(
                    key=digest(text, k),
                    run="bench",
                    prompt_key=prompt.key,
                    split="train",
                    model="m",
                    text=answer,
                    at=at,
                )
                for k, answer in enumerate(answers)
            ],
        )


# ------------------------------------------------------------------------------------------------------- the clients


class Bench:
    """The ways to have the same questions answered."""

    def __init__(self, address: str, calls: int) -> None:
        self.address, self.calls = address, calls
        self.questions = questions(calls)

    def bare(self, flight: int) -> Spent:
        """A bare aiohttp loop: as many workers as calls in flight, each answer parsed."""
        return timed(lambda: asyncio.run(self._bare(flight)))

    async def _bare(self, flight: int) -> int:
        import aiohttp

        waiting, done, url = iter(self.questions), 0, f"{self.address}/chat/completions"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=flight)) as session:

            async def work() -> None:
                nonlocal done
                for messages in waiting:
                    body = {"model": "judge", "messages": messages, "temperature": 0.0, "max_tokens": 8}
                    async with session.post(url, json=body) as response:
                        done += (await response.json())["choices"][0]["message"]["content"] == "A"

            await asyncio.gather(*(work() for _ in range(flight)))
        return done

    def answer(self, flight: int) -> Spent:
        """`factory.calls.answer`: each answer in a fresh store."""
        from factory.calls import answer
        from factory.schema import Request, Sampling

        requests = [Request(messages, Sampling(0.0, max_tokens=8)) for messages in self.questions]  # type: ignore[arg-type]
        with self._engine(flight) as engine, fresh_store() as store:
            found = answer(store, engine, requests, run="bench", round=0, purpose="judge")
            return timed(lambda: sum(call.text == "A" for _, call, _ in found))

    def label(self, flight: int) -> Spent:
        """`factory.labelling.label` with a pairwise judge. Filling the store with candidates is not counted."""
        from factory.labelling import PanelMember, label

        with self._engine(flight) as engine, fresh_store() as store:
            filled = list(rows(self.calls))
            store.append("prompts", [prompt for prompt, _ in filled])
            store.append("candidates", [candidate for _, candidates in filled for candidate in candidates])
            member = PanelMember("judge", judge_of(), engine)
            return timed(lambda: label(store, [member], run="bench").judges[0].calls)

    @contextmanager
    def _engine(self, flight: int) -> Iterator[Any]:
        from factory.engines.openai import OpenAIEngine

        engine = OpenAIEngine("judge", base_url=self.address, concurrency=flight, api_key_env="NO_KEY_IS_NEEDED")
        with closing(engine):
            yield engine


@contextmanager
def fresh_store() -> Iterator[Any]:
    from factory.store import Store

    with tempfile.TemporaryDirectory() as folder, Store.open(folder, create=True) as store:
        yield store


# --------------------------------------------------------------------------------------------------------- the peers


def environment(name: str) -> Path | str:
    """The python of a peer's environment, made when it is not there; or why there is none."""
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    done = folder / ".done"
    wanted = (PEERS / f"{name}.txt").read_text(encoding="utf-8")
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    for line in (line for line in wanted.splitlines() if line and not line.startswith("#")):
        install = subprocess.run(
            [python, "-m", "pip", "install", "-q", *line.split()], capture_output=True, text=True, check=False
        )
        if install.returncode:
            return f"pip install {line}: {(install.stderr.strip().splitlines() or ['failed'])[-1]}"
    done.write_text(wanted, encoding="utf-8")
    return python


def peer(name: str, python: Path, bench: Bench, flight: int) -> Spent | str:
    """One run of a peer; or why it did not end well. Imports are not counted."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "questions.json"
        asked.write_text(json.dumps(bench.questions), encoding="utf-8")
        command = [str(python), str(PEERS / f"ask_{name}.py"), bench.address, str(asked), str(flight), folder]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=QUIET | os.environ)
        if run.returncode:
            return (run.stderr.strip().splitlines() or ["it failed"])[-1]
        said = json.loads(run.stdout.strip().splitlines()[-1])
        return Spent(said["calls"], said["wall"], said["cpu"])


QUIET = {"TELEMETRY_ENABLED": "0", "CURATOR_DISABLE_RICH_DISPLAY": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


# --------------------------------------------------------------------------------------------------------- the table


def compared(bench: Bench, flight: int, rounds: int, peers: Mapping[str, Path]) -> dict[str, list[Spent]]:
    """Every way once a round."""
    found: dict[str, list[Spent]] = {name: [] for name in [*WAYS, *peers]}
    for number in range(rounds):
        for name in WAYS:
            found[name].append(getattr(bench, name)(flight))
        for name, python in peers.items():
            took = peer(name, python, bench, flight)
            if isinstance(took, Spent):
                found[name].append(took)
            elif number == 0:
                print(f"{name}: {took}", file=sys.stderr)
    return {name: runs for name, runs in found.items() if runs}


def report(flight: int, found: Mapping[str, Sequence[Spent]]) -> None:
    bare = found["bare"]
    for name, runs in found.items():
        pairs = list(zip(runs, bare, strict=False))
        print(
            f"{flight:>6}  {name:<12}{median(r.rate for r in runs):>9.0f}{median(r.cpu_ms for r in runs):>9.3f}"
            f"{median(r.rate / b.rate for r, b in pairs):>12.2f}{median(r.cpu_ms / b.cpu_ms for r, b in pairs):>9.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--flight", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", choices=["openai", "curator", "distilabel"])
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(given.serve))
        return
    peers: dict[str, Path] = {}
    for name in () if given.peers is None else given.peers or ("openai", "curator", "distilabel"):
        python = environment(name)
        if isinstance(python, Path):
            peers[name] = python
        else:
            print(f"{name} is left out: {python}", file=sys.stderr)
    with serving() as address:
        warm = Bench(address, 600)
        for name in WAYS:
            getattr(warm, name)(16)
        bench = Bench(address, given.calls)
        print(f"{given.calls} calls, {given.rounds} rounds; ratios to the bare loop")
        print(f"{'flight':>6}  {'way':<12}{'calls/s':>9}{'ms CPU':>9}{'throughput':>12}{'CPU':>9}")
        for flight in given.flight:
            report(flight, compared(bench, flight, given.rounds, peers))


if __name__ == "__main__":
    main()
