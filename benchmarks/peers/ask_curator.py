"""bespokelabs-curator: an LLM over a data set of prompts. Its cache is a folder of this run alone, so nothing is held.

curator counts tokens with tiktoken, which fetches its vocabulary from the network; here one token is four characters,
which costs curator less than what it does by itself.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

address, asked, flight, folder = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.environ |= {"CURATOR_CACHE_DIR": folder, "OPENAI_API_KEY": "none", "TELEMETRY_ENABLED": "0"}

import tiktoken  # noqa: E402


class FourCharacters:
    """A tokenizer that needs no vocabulary."""

    def encode(self, text: str, **_: object) -> range:
        return range(len(text) // 4)


tiktoken.get_encoding = tiktoken.encoding_for_model = lambda name: FourCharacters()

from bespokelabs import curator  # noqa: E402


class Judge(curator.LLM):
    def prompt(self, row: dict[str, str]) -> str:
        return row["question"]

    def parse(self, row: dict[str, str], response: str) -> dict[str, str]:
        return {"verdict": response}


if __name__ == "__main__":
    rows = [{"question": messages[-1]["content"]} for messages in json.loads(asked.read_text(encoding="utf-8"))]
    judge = Judge(
        model_name="judge",
        backend="openai",
        backend_params={
            "base_url": address,
            "max_concurrent_requests": flight,
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 10_000_000_000,
        },
        generation_params={"temperature": 0.0, "max_tokens": 8},
    )
    wall, cpu = time.perf_counter(), time.process_time()
    found = judge(rows)
    took = time.perf_counter() - wall, time.process_time() - cpu
    data = getattr(found, "dataset", found)
    print(json.dumps({"calls": sum(row["verdict"] == "A" for row in data), "wall": took[0], "cpu": took[1]}))
