"""Files of every format give the same rows; broken rows and broken files say what is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.faults import FactoryError
from factory.prompts.sources import Record, RowFault, open_source

ROWS: list[dict[str, Any]] = [{"prompt": "Why, then?\nSo", "topic": "bread"}, {"prompt": "“Où?”", "topic": "tea"}]


def read(path: Path | str) -> list[Record | RowFault]:
    return list(open_source(str(path)).rows)


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
        return path
    texts = {
        ".jsonl": lines(ROWS),
        ".ndjson": "\ufeff" + lines(ROWS).replace("\n", "\r\n\r\n"),
        ".json": lines(ROWS) if "lines" in name else json.dumps({"data": ROWS} if "nested" in name else ROWS, indent=1),
        ".csv": 'prompt,topic\r\n"Why, then?\nSo",bread\r\n“Où?”,tea\r\n',
        ".tsv": '\ufeffprompt\ttopic\n"Why, then?\nSo"\tbread\n“Où?”\ttea\n',
    }
    data = texts[Path(name.removesuffix(".gz")).suffix].encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl",
        "a.ndjson",
        "a.json",
        "nested.json",
        "lines.json",
        "a.csv",
        "a.tsv",
        "a.parquet",
        "a.jsonl.gz",
        "a.csv.gz",
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    assert open_source(str(path)).name == name
    assert [row.values for row in read(path) if isinstance(row, Record)] == ROWS


def test_a_folder_is_read_by_datasets(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl")
    assert [row.values for row in read(tmp_path) if isinstance(row, Record)] == ROWS
    with pytest.raises(FactoryError, match="cannot be loaded"):
        list(open_source(str(tmp_path), hub_split="validation").rows)


def test_an_arrow_file_is_read_by_datasets(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path)
    [path] = tmp_path.glob("*.arrow")
    assert [row.values for row in read(path) if isinstance(row, Record)] == ROWS


def test_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One\n\n Two \n")
    assert read(path) == [Record(1, {"prompt": "One"}), Record(3, {"prompt": "Two"})]


def test_broken_lines_keep_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"prompt": "a"}\n{"prompt": \n[1]\n{"prompt": "\xff"}\n\n' + b'{"a":' * 5000 + b'\n{"prompt": "b"}'
    )
    rows = read(path)
    assert rows[0] == Record(1, {"prompt": "a"})
    assert rows[-1] == Record(7, {"prompt": "b"})
    faults = [row for row in rows if isinstance(row, RowFault)]
    assert [fault.line for fault in faults] == [2, 3, 4, 6]
    assert "not JSON" in faults[0].reason
    assert "must be an object with columns, not list" in faults[1].reason
    assert faults[2].reason == "not UTF-8"


def test_broken_csv_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,topic\na\nb,c,d\n"e"f,g\nh,\n"[{""kind"": ""title""}]",x\n"[1]",y\ni\xff,z\n"open,\n')
    rows = read(path)
    assert [(r.line, r.reason) for r in rows[:2] if isinstance(r, RowFault)] == [
        (2, "1 cells in a table of 2 columns"), (3, "3 cells in a table of 2 columns"),
    ]  # fmt: skip
    assert isinstance(rows[2], RowFault)
    assert rows[3:7] == [
        Record(5, {"prompt": "h", "topic": None}),
        Record(6, {"prompt": [{"kind": "title"}], "topic": "x"}),
        Record(7, {"prompt": "[1]", "topic": "y"}),
        Record(8, {"prompt": "i\udcff", "topic": "z"}),
    ]
    assert isinstance(rows[7], RowFault)
    assert rows[7].line == 9


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.json", b"[1, 2", "not JSON"),
        ("a.json", b'"text"', "holds no list of rows"),
        ("a.parquet", b"PAR1 nonsense", "Parquet file cannot be read"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.csv", b"prompt,topic,prompt\na,b,c\n", "the column 'prompt' is there twice"),
        ("a.docx", b"", "'.docx' are not read; known: .arrow, .csv"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(FactoryError, match=said) as caught:
        read(path)
    assert str(path) in caught.value.where


def test_nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for source in ("missing.jsonl", "./missing", "/no/where/at/all"):
        with pytest.raises(FactoryError, match="there is no such file"):
            open_source(source)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FactoryError, match="cannot be loaded") as caught:
        read("nobody/nothing-of-this-name")
    assert caught.value.where == "nobody/nothing-of-this-name"


def test_a_file_comes_before_a_bundled_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_source("verifiable").name == "verifiable"
    assert len(read("verifiable")) >= 240
