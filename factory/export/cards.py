"""The cards of the Hub: README.md of an exported data set and of an exported policy, with their front matter.

A card says what a stranger must know before using the data or the model: what it was made from and by whom, under which
licences, how far its judges can be trusted, what was gained and how surely. What is not known is said to be unknown.
Form: huggingface.co/docs/hub/datasets-cards and model-cards.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from factory.faults import FactoryError
from factory.query import Described, describe
from factory.report import RunReport, estimate_of, figures, markdown, name_of_model
from factory.report.page import facts, measured_table, pairs_table, panel_table, panel_words
from factory.report.story import story
from factory.resources import EMBEDDED
from factory.schema import PolicyReport

if TYPE_CHECKING:
    import pyarrow as pa

    from factory.store import Store

EMBEDDED_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
APACHE = "apache-2.0"
UNKNOWN = "unknown"
RUNS = 5  # runs whose judges a card describes, the newest
_SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
Front = dict[str, Any]


class Split(NamedTuple):
    """One split of an exported table: rows, bytes in memory, bytes of its files."""

    name: str
    rows: int
    size: int
    on_disk: int


def whole(front: Front, blocks: Iterable[str]) -> str:
    """A card: front matter, then blocks of Markdown."""
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{head}---\n\n" + "\n\n".join(block for block in blocks if block) + "\n"


# ----------------------------------------------------------------------------------------------------------- data set


def dataset_card(store: Store, data: Mapping[str, pa.Table], splits: Mapping[str, Sequence[Split]]) -> str:
    """The card of exported tables, by name, with their splits."""
    rows = {name: sum(split.rows for split in found) for name, found in splits.items()}
    sources = _sources(store, data)
    front: Front = {
        "pretty_name": "Preference data",
        "license": _licence(source.licence for source in sources),
        "task_categories": ["text-generation"],
        "tags": ["preference-factory", "preferences", "rlaif", "trl"],
        "size_categories": [next((name for most, name in _SIZES if max(rows.values()) < most), "n>10M")],
        "configs": [_config(name, found, default=not place) for place, (name, found) in enumerate(splits.items())],
        "dataset_info": _dataset_info(data, splits),
    }
    opens = [f'load_dataset("<this folder>", "{name}")  # {count:,} rows' for name, count in rows.items()]
    blocks = [
        "# Preference data",
        "Prompts, answers of models, what judges said of them, and the preferences and labels that came of it. Made by "
        "preference-factory.",
        "```python\nfrom datasets import load_dataset\n\n" + "\n".join(opens) + "\n```",
        *_judges(store, data),
        "## Sources and licences",
        _of_sources(sources),
        *_limits(store, data),
    ]
    described = {entry.name: entry for entry in describe()}
    return whole(front, [*blocks, *(_columns(described[name], data[name].column_names) for name in splits)])


def _config(name: str, splits: Sequence[Split], *, default: bool) -> Front:
    files = [{"split": split.name, "path": f"{name}/{split.name}-*.parquet"} for split in splits]
    return {"config_name": name, **({"default": True} if default else {}), "data_files": files}


def _dataset_info(data: Mapping[str, pa.Table], splits: Mapping[str, Sequence[Split]]) -> Any:
    """Features, splits and sizes of every configuration, in the Hub's form."""
    from datasets import DatasetInfo, Features
    from datasets.info import DatasetInfosDict
    from datasets.splits import SplitDict, SplitInfo
    from huggingface_hub import DatasetCardData

    infos = DatasetInfosDict()
    for name, found in splits.items():
        held = SplitDict({s.name: SplitInfo(s.name, num_bytes=s.size, num_examples=s.rows) for s in found})
        infos[name] = DatasetInfo(
            features=Features.from_arrow_schema(data[name].schema),
            splits=held,
            download_size=sum(split.on_disk for split in found),
            dataset_size=sum(split.size for split in found),
        )
    card = DatasetCardData()
    infos.to_dataset_card_data(card)
    return card["dataset_info"]


def _columns(entry: Described, names: Sequence[str]) -> str:
    meanings = entry.columns | {"split": ("VARCHAR", "split of its prompt")}
    rows = [f"| {name} | {meanings[name][1].replace('|', '/')} |" for name in names]
    return "\n".join([f"## {entry.name}", "", entry.meaning, "", "| column | meaning |", "|---|---|", *rows])


# -------------------------------------------------------------------------------------------------------------- judges


def _judges(store: Store, data: Mapping[str, pa.Table]) -> Iterable[str]:
    """What each judge is worth, run by run: failures, ties, flips, habits, canaries, agreement."""
    runs = _runs(data)
    for run in runs[:RUNS]:
        panel = _panel(store, run)
        if not panel:
            continue
        yield f"## Judges of {markdown.text(run)}"
        yield markdown.of_table(panel_table(panel))
        yield from panel_words(panel)
        if panel.get("pairs"):
            yield "How far two judges agree on the pairs that both judged:"
            yield markdown.of_table(pairs_table(panel))
        habits = list(_habits(panel))
        if habits:
            yield "### Biases"
            yield "\n".join(f"- {habit}" for habit in habits)
    if len(runs) > RUNS:
        yield f"{len(runs) - RUNS} more runs are in the data; `factory agreement` tells their judges."


def _runs(data: Mapping[str, pa.Table]) -> list[str]:
    """The runs that judged, the newest first."""
    import pyarrow.compute as pc

    if "judgments" not in data or not data["judgments"].num_rows:
        return []
    newest = data["judgments"].select(["run", "at"]).group_by("run").aggregate([("at", "max")])
    ordered = newest.take(pc.sort_indices(newest, sort_keys=[("at_max", "descending")]))
    return [str(run) for run in ordered.column("run").to_pylist()]


def _panel(store: Store, run: str) -> Mapping[str, Any]:
    from factory.trust import agreement

    try:
        return agreement.report(store, run=run).to_json()
    except FactoryError:  # judgments of answers that are not here
        return {}


def _habits(panel: Mapping[str, Any]) -> Iterable[str]:
    """Each habit that the data tells from none, in words."""
    for judge in panel.get("judges") or []:
        name = markdown.text(str(judge.get("judge")))
        for what, key in figures.BIASES:
            share = estimate_of(judge.get(key))
            neutral = 0.0 if key == "flip_rate" else 0.5
            if share is not None and not share.low <= neutral <= share.high:
                sound = "its verdicts should not" if key == "flip_rate" else "without the habit 50%"
                yield f"{name}: {what} in {share.value:.0%} ({share.low:.0%} to {share.high:.0%}); {sound}."
        fooled = estimate_of(judge.get("fooled_rate"))
        if fooled is not None and fooled.value > 0:
            part = f"{fooled.value:.0%} of the canaries it decided"
            yield f"{name}: preferred answers that say nothing to real ones in {part}."


# ---------------------------------------------------------------------------------------------------------- sources


class _Source(NamedTuple):
    what: str  # prompts | answers
    name: str
    rows: int
    licence: str
    where: str


def _sources(store: Store, data: Mapping[str, pa.Table]) -> list[_Source]:
    """Where prompts and answers come from, with the licences that are known."""
    keys = {
        key for table in data.values() if "prompt_key" in table.column_names for key in _column(table, "prompt_key")
    }
    prompts = store.read("prompts", columns=["key", "source"])
    counts = Counter(str(row["source"]) for row in prompts if row["key"] in keys or not keys)
    found = [_Source("prompts", name or "not recorded", rows, *_of_data(name)) for name, rows in sorted(counts.items())]
    if "candidates" in data:
        models = Counter(_column(data["candidates"], "model"))
        found += [
            _Source("answers", name_of_model(model), rows, *_of_model(model)) for model, rows in sorted(models.items())
        ]
    return found


def _column(table: pa.Table, name: str) -> list[str]:
    values: list[str] = table.column(name).to_pylist()
    return values


def _of_data(name: str) -> tuple[str, str]:
    from factory.prompts.sources import bundled_prompts

    if bundled_prompts(name):
        return APACHE, "comes with preference-factory"
    if on_hub(name.split(":")[0]):
        return UNKNOWN, f"https://huggingface.co/datasets/{name.split(':')[0]}"
    return UNKNOWN, "a file" if name else ""


def _of_model(name: str) -> tuple[str, str]:
    if name == EMBEDDED:
        return APACHE, f"https://huggingface.co/{EMBEDDED_ON_HUB}"
    return UNKNOWN, f"https://huggingface.co/{name}" if on_hub(name) else ""


def on_hub(name: str) -> bool:
    """May it be a name of the Hub (owner/name), and no path?"""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name)) and not Path(name).exists()


def _licence(found: Iterable[str]) -> str:
    """The one licence of everything; unknown where there are several, or one is."""
    licences = set(found)
    return licences.pop() if len(licences) == 1 else UNKNOWN


def _of_sources(sources: Sequence[_Source]) -> str:
    rows = [(s.what, s.name, f"{s.rows:,}", s.licence, s.where) for s in sources]
    told = markdown.table(["what", "from", "rows", "licence", "where"], rows) if rows else ""
    return told + "\n\nA licence that is not known here must be looked up at the source before the data is passed on."


def _limits(store: Store, data: Mapping[str, pa.Table]) -> Iterable[str]:
    yield "## Limits"
    models = sorted({m for m in _column(data["judgments"], "judge_model") if m}) if "judgments" in data else []
    if models:
        named = ", ".join(markdown.text(name_of_model(model)) for model in models)
        yield f"Verdicts of language models ({named}) are no verdicts of people; their habits are listed above."
    yield "Texts were written by models and are not checked: they may be wrong, offensive, or repeat what models read."


# -------------------------------------------------------------------------------------------------------------- policy


def model_card(report: RunReport, number: int, folder: Path) -> str:
    """The card of the policy of a round, whose files are in `folder`."""
    recipe = yaml.safe_load(report.recipe) if report.recipe else {}
    train = (recipe.get("train") or {}).get("config") or {}
    measured = next((view.report for view in report.rounds if view.round == number), None)
    final = report.final if number == report.champion else None
    adapter = (folder / "adapter_config.json").is_file()
    base = str(recipe.get("model") or "")
    front: Front = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "license": APACHE if base == EMBEDDED else UNKNOWN,
        "tags": ["preference-factory", *([str(train["method"])] if train.get("method") else [])],
    }
    known = EMBEDDED_ON_HUB if base == EMBEDDED else base if on_hub(base) else None
    if known:
        front |= {"base_model": known, "base_model_relation": "adapter" if adapter else "finetune"}
    results = [_results(name, found) for name, found in (("final", final), ("heldout", measured)) if found is not None]
    if any(results):
        front["model-index"] = [{"name": f"{report.run}, round {number}", "results": [r for r in results if r]}]
    return whole(front, _of_policy(report, number, base, train, adapter=adapter))


def _of_policy(report: RunReport, number: int, base: str, train: Mapping[str, Any], *, adapter: bool) -> Iterable[str]:
    what = "A LoRA adapter of" if adapter else "Trained from"
    champion = "the champion" if number == report.champion else f"not the champion, which is round {report.champion}"
    yield f"# {markdown.text(report.run)}, round {number}"
    yield f"{what} {markdown.text(name_of_model(base)) or 'a model that is not recorded'}; {champion} of its run."
    yield "## What was gained, what it cost, why it ended"
    yield from (markdown.text(sentence) for sentence in story(report))
    if report.rounds:
        yield "## Held-out prompts, round by round"
        yield markdown.of_table(measured_table(report))
    if report.panel:
        yield "## Judges that labelled"
        yield markdown.of_table(panel_table(report.panel))
        yield from panel_words(report.panel)
    if train:
        yield "## Training"
        yield markdown.fenced(yaml.safe_dump(dict(train), sort_keys=False, allow_unicode=True).rstrip(), "yaml")
    yield "## Limits"
    yield (
        "It was measured on prompts of the kind that it was trained on, and on nothing else: no claim is made about "
        "safety, facts or other languages. What the base model does wrong it may still do."
    )
    yield "## Where the numbers come from"
    yield markdown.table(["what", "value"], [(name, _public(value)) for name, value in facts(report)])


def _public(value: str) -> str:
    """A fact without the folders of the machine that it was made on."""
    return re.sub(r"(?<!\S)/\S+/(\S+/\S+)", r"\1", value)


def _results(split: str, found: PolicyReport) -> Front:
    """Results in the form of the Hub's model-index; empty where nothing was graded."""
    wanted = [("pass_rate", found.pass_rate), ("win_rate", found.win_rate), ("kl", found.kl_sequence)]
    metrics = [
        {"type": kind, "name": f"{kind.replace('_', ' ')}, 95% interval {value.low:.3g} to {value.high:.3g}",
         "value": round(value.value, 6)}
        for kind, value in wanted if value is not None
    ]  # fmt: skip
    if not metrics:
        return {}
    data = {"type": "preference-factory", "name": f"{found.prompts} {split} prompts of the run", "split": split}
    return {"task": {"type": "text-generation"}, "dataset": data, "metrics": metrics}
