"""distilabel: a pipeline of one TextGeneration task, its cache off. A batch is as large as what may be in flight."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration


def main() -> None:
    address, asked, flight, folder = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    rows = [{"instruction": messages[-1]["content"]} for messages in json.loads(asked.read_text(encoding="utf-8"))]
    with Pipeline(name="judge", cache_dir=folder) as pipeline:
        data = LoadDataFromDicts(data=rows, batch_size=flight)
        llm = OpenAILLM(
            model="judge", base_url=address, api_key="none", generation_kwargs={"temperature": 0.0, "max_new_tokens": 8}
        )
        data >> TextGeneration(llm=llm, input_batch_size=flight)
    wall, cpu = time.perf_counter(), sum(time_of_all())
    found = pipeline.run(use_cache=False)
    took = time.perf_counter() - wall, sum(time_of_all()) - cpu
    calls = sum(row["generation"] == "A" for row in found["default"]["train"])
    print(json.dumps({"calls": calls, "wall": took[0], "cpu": took[1]}))


def time_of_all() -> tuple[float, float]:
    """Processor seconds of this process, and of its children that have ended: distilabel's steps are processes."""
    import resource

    own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, ended.ru_utime + ended.ru_stime


if __name__ == "__main__":
    main()
