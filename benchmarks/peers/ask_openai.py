"""AsyncOpenAI with a semaphore: what a script does without a labelling program. Nothing is stored."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import openai


async def ask(address: str, questions: list[list[dict[str, str]]], flight: int) -> int:
    slots, done = asyncio.Semaphore(flight), 0
    client = openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=2)

    async def one(messages: list[dict[str, str]]) -> None:
        nonlocal done
        async with slots:
            answer = await client.chat.completions.create(
                model="judge", messages=messages, temperature=0.0, max_tokens=8
            )
            done += answer.choices[0].message.content == "A"

    await asyncio.gather(*map(one, questions))
    return done


if __name__ == "__main__":
    address, asked, flight = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    questions = json.loads(asked.read_text(encoding="utf-8"))
    wall, cpu = time.perf_counter(), time.process_time()
    calls = asyncio.run(ask(address, questions, flight))
    print(json.dumps({"calls": calls, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}))
