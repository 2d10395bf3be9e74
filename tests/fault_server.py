"""A chat endpoint on this machine that fails in every way that endpoints are known to fail, by name.

    with FaultServer("truncated") as server: OpenAIEngine("m", base_url=server.url)

A server has one behaviour for all its calls: the name of one of MODES, or a handler. `python fault_server.py MODE`
serves one for trying by hand. GET /version, /health and /v1/models always say that all is well.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Self

from aiohttp import web

Handler = Callable[[dict[str, Any], "FaultServer"], Awaitable[web.StreamResponse]]
HUGE = 50_000_000


class FaultServer:
    """A server in a thread of its own. `seen` holds the bodies it got, `headers` their headers (names in lower case),
    `paths` every path that was asked for."""

    def __init__(self, behaviour: str | Handler, port: int = 0) -> None:
        self.behaviour: Handler = MODES[behaviour] if isinstance(behaviour, str) else behaviour
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.at_once = self.most_at_once = 0
        self.loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = port
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; nothing listens any more."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._start())
        self.loop.run_forever()
        self.loop.run_until_complete(self._end())
        self.loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=HUGE)
        for path in ("/version", "/health", "/v1/models"):
            app.router.add_get(path, self._well)
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._ready.set()

    async def _end(self) -> None:
        await self._runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _well(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path_qs)
        return web.json_response({"version": "1", "data": [{"id": "m"}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.seen.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.paths.append(request.path_qs)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.request = request
        try:
            return await self.behaviour(body, self)
        finally:
            self.at_once -= 1


# ---------------------------------------------------------------------------------------------- answers, good and bad


def choice(text: Any = "fine", **other: Any) -> dict[str, Any]:
    """One choice of a chat completion."""
    return {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | other


def answered(*choices: Any, prompt: int = 11, completion: int = 3, **other: Any) -> dict[str, Any]:
    """A chat completion; one choice `fine` unless others are given."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"object": "chat.completion", "choices": list(choices) or [choice()], "usage": usage} | other


async def good(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
    """Says the last turn and the seed; knows n."""
    texts = [f"{body['messages'][-1]['content']}/{body['seed'] + number}" for number in range(body.get("n", 1))]
    return web.json_response(answered(*map(choice, texts), completion=3 * len(texts)))


async def one_only(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
    """As many a server: n is ignored."""
    return await good({**body, "n": 1}, server)


def always(
    status: int = 200, *, data: Any = None, text: str | bytes | None = None, headers: dict[str, str] | None = None
) -> Handler:
    """The same reply to every call; `%KEY%` in it becomes the key that the caller sent."""

    async def handler(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        raw = json.dumps(data) if text is None else text
        key = server.headers[-1].get("authorization", "").removeprefix("Bearer ")
        whole = (raw.encode() if isinstance(raw, str) else raw).replace(b"%KEY%", key.encode())
        return web.Response(status=status, body=whole, headers=headers)

    return handler


def error(status: int, code: str | None = None, message: str = "no %KEY%", **headers: str) -> Handler:
    """An error in OpenAI's form."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return always(status, data={"error": {"message": message, "type": "error", "code": code}}, headers=names)


def in_turn(*handlers: Handler) -> Handler:
    """One handler a call; the last one for all further calls."""

    async def handler(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        return await handlers[min(len(server.seen), len(handlers)) - 1](body, server)

    return handler


def mixed(shares: dict[str, float], otherwise: Handler, seed: int = 0) -> Handler:
    """Each call at random: of such a mode with such a probability, else `otherwise`."""
    chance = random.Random(seed)

    async def handler(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        drawn = chance.random()
        for name, share in shares.items():
            drawn -= share
            if drawn < 0:
                return await MODES[name](body, server)
        return await otherwise(body, server)

    return handler


def after(seconds: float, handler: Handler) -> Handler:
    """The handler, so much later."""

    async def later(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await handler(body, server)

    return later


async def hang(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
    """No byte, ever."""
    await asyncio.sleep(3600)
    return web.Response()


async def trickle(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
    """A byte now and then, for ever."""
    response = web.StreamResponse()
    await response.prepare(server.request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


async def reset(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
    """The connection breaks before a byte of the reply."""
    assert server.request.transport is not None
    server.request.transport.abort()
    return web.Response()


async def reset_in_body(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
    """The connection breaks in the middle of the body that was announced."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(server.request)
    await response.write(b'{"choices": [')
    assert server.request.transport is not None
    server.request.transport.abort()
    return response


async def huge(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
    """50 MB, in pieces without a length."""
    response = web.StreamResponse()
    await response.prepare(server.request)
    for _ in range(50):
        await response.write(b"x" * (HUGE // 50))
    return response


async def chunked(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
    """A good answer, a few bytes at a time, of a wrong type."""
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(server.request)
    raw = json.dumps(answered(choice("in pieces"))).encode()
    for start in range(0, len(raw), 40):
        await response.write(raw[start : start + 40])
    return response


def _soon(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds))


async def until_a_date(body: dict[str, Any], server: FaultServer) -> web.StreamResponse:
    """429 with a date for the first call, then good."""
    first = error(429, None, "slow down", Retry_After=_soon(1))
    return await (first if len(server.seen) == 1 else good)(body, server)


TOO_LONG_OPENAI = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."
TOO_LONG_VLLM = "The decoder prompt (length 2000) is longer than the maximum model length of 1024."
LOGPROB = {"content": [{"token": "A", "logprob": float("nan"), "top_logprobs": []}]}

MODES: dict[str, Handler] = {
    "good": good,
    "one_only": one_only,
    "chunked": chunked,
    "400": error(400, "invalid_request_error"),
    "400_too_long": error(400, "context_length_exceeded", TOO_LONG_OPENAI),
    "400_too_long_vllm": error(400, "BadRequestError", TOO_LONG_VLLM),
    "400_filtered": error(400, "content_filter"),
    "401": error(401, "invalid_api_key", "Incorrect API key provided: %KEY%"),
    "402": error(402),
    "403": error(403),
    "403_later": in_turn(good, error(403, None, "<html>blocked %KEY%</html>"), good),
    "404": error(404, "model_not_found"),
    "408": error(408),
    "409": error(409),
    "413": error(413),
    "418": error(418),
    "422": error(422),
    "425": error(425),
    "429": error(429, "rate_limit_exceeded"),
    "429_once": in_turn(error(429), good),
    "429_seconds": in_turn(error(429, Retry_After="0.3"), good),
    "429_milliseconds": in_turn(error(429, retry_after_ms="300"), good),
    "429_reset": in_turn(error(429, x_ratelimit_reset_requests="300ms", x_ratelimit_remaining_requests="0"), good),
    "429_date": until_a_date,
    "429_an_hour": error(429, Retry_After="3600"),
    "429_quota": error(429, "insufficient_quota"),
    "500": error(500),
    "502": always(502, text="<html>bad gateway %KEY%</html>"),
    "503": error(503),
    "503_once": in_turn(error(503), good),
    "504": error(504),
    "529": error(529, "overloaded_error"),
    "redirect": always(307, headers={"Location": "http://127.0.0.1:1/stolen"}),
    "hang": hang,
    "trickle": trickle,
    "reset": reset,
    "reset_once": in_turn(reset, good),
    "reset_in_body": reset_in_body,
    "truncated": always(text='{"choices": [{"message": {"role": "assistant", "content": "%KEY% A lon'),
    "truncated_once": in_turn(always(text='{"choices": [{"mess'), good),
    "html": always(text="<html><body>Please sign in, %KEY%</body></html>", headers={"Content-Type": "text/html"}),
    "empty_body": always(text=""),
    "no_utf8": always(text=b'{"choices": "\xff\xfe\xff"}'),
    "deep": always(text="[" * 100_000),
    "huge": huge,
    "huge_announced": always(text=b"x" * HUGE),
    "bomb": always(text=gzip.compress(b" " * HUGE), headers={"Content-Encoding": "gzip"}),
    "a_list": always(data=[]),
    "no_choices": always(data={"id": "x"}),
    "null_choices": always(data=answered(choices=None)),
    "empty_choices": always(data=answered(choices=[])),
    "choice_of_wrong_type": always(data=answered("text")),
    "message_of_wrong_type": always(data=answered(choice(message="text"))),
    "content_of_wrong_type": always(data=answered(choice(5))),
    "null_content": always(data=answered(choice(None))),
    "null_content_cut": always(data=answered(choice(None, finish_reason="length"))),
    "tool_call": always(data=answered(choice(None, finish_reason="tool_calls"))),
    "no_finish": always(data=answered(choice("x", finish_reason=None))),
    "logprob_of_wrong_type": always(data=answered(choice("A", logprobs=LOGPROB))),
    "filtered": always(data=answered(choice("", finish_reason="content_filter"))),
    "refusal": always(data=answered(choice(message={"content": None, "refusal": "I will not."}))),
    "lone_surrogates": always(text=json.dumps(answered(choice("a\ud800b\U0001f600")))),
    "surrogate_bytes": always(text=json.dumps(answered(choice("a?b"))).encode().replace(b"?", b"\xed\xa0\x80")),
    "byte_order_mark": always(text=b"\xef\xbb\xbf" + json.dumps(answered()).encode()),
    "bad_verdict": always(data=answered(choice("Neither A nor B is good."))),
    "empty_text": always(data=answered(choice(""))),
    "too_many_choices": always(data=answered(choice("one"), choice("two"), choice("three"))),
    "no_usage": always(data=answered(usage=None)),
    "usage_of_wrong_type": always(data=answered(usage={"prompt_tokens": "many", "completion_tokens": -3})),
    "dead_engine": error(500, "EngineDeadError"),
}


def main() -> None:
    """Serve one mode until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=sorted(MODES))
    with FaultServer(parser.parse_args().mode) as server:
        print(server.url, flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
