"""One writer and one reader of result lines: what a kill, another version or another program leaves is borne."""

import json
import math
from pathlib import Path

import pytest

from clip_la import results
from clip_la.errors import UserError
from clip_la.scaling.results import read_results
from clip_la.sweep.state import result_lines


def test_results_survive_a_torn_line(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    results.append(path, {"evaluation": "a", "n": 1})
    with path.open("a") as stream:
        stream.write('{"evaluation": "b", "n"')
    assert [line["n"] for line in results.read(path)] == [1]
    results.append(path, {"evaluation": "c", "n": 3})
    assert [line["n"] for line in results.read(path)] == [1, 3]
    path.write_text(path.read_text().rstrip("\n"))
    results.append(path, {"evaluation": "a", "n": 4})
    assert [line["n"] for line in results.read(path)] == [1, 3, 4]
    assert results.find(path, "a") == {"evaluation": "a", "n": 4}


def test_results_name_a_bad_line(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"n": 1}\nnonsense\n{"n": 2}\n')
    with pytest.raises(UserError, match=":2:"):
        list(results.read(path))


# The end of a line that a kill cut inside of a sign of three bytes.
HALF_A_SIGN = '{"evaluation": "b", "dataset": "\u5317'.encode()[:-1]


@pytest.mark.parametrize("torn", [b"{", b'{"evaluation": "b", "n"', HALF_A_SIGN, b"[" * 100_000, b"[1]", b"7"])
def test_any_torn_end_is_skipped_and_cut_off(tmp_path: Path, torn: bytes):
    path = tmp_path / "results.jsonl"
    results.append(path, {"evaluation": "a", "n": 1})
    with path.open("ab") as stream:
        stream.write(torn)
    assert [line["n"] for line in results.read(path)] == [1]
    results.append(path, {"evaluation": "c", "n": 3})
    # What is JSON but no result can only be a person's: it stays, and is named.
    if torn in (b"[1]", b"7"):
        with pytest.raises(UserError, match=":2: not a JSON object"):
            list(results.read(path))
    else:
        assert [line["n"] for line in results.read(path)] == [1, 3]
        assert path.read_bytes().count(b"\n") == 2


DAMAGED = {
    b"nonsense": "not JSON",
    b'{"n": 1': "not JSON",
    b'{"dataset": "caf\xe9"}': "not UTF-8",
    b"[" * 100_000: "not JSON",
    b'{"n": ' + b"7" * 5000 + b"}": "not JSON",
    b"[1, 2]": "not a JSON object",
    b"null": "not a JSON object",
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGED.items(), ids=range(len(DAMAGED)))
def test_a_damaged_line_is_named_or_skipped(tmp_path: Path, damage: bytes, reason: str):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"n": 1}\n' + damage + b'\n\n{"n": 2, "metrics": {}}\n')
    with pytest.raises(UserError, match=f"results.jsonl:2: {reason}.*; one result a line is expected"):
        list(results.read(path))
    assert [line["n"] for line in results.read(path, skip_damaged=True)] == [1, 2]
    # The readers of a sweep and of scaling laws are this one.
    assert [line["n"] for line in result_lines(tmp_path)] == [2]
    with pytest.raises(UserError, match=f"results.jsonl:2: {reason}"):
        read_results([path])


def test_unknown_fields_nan_and_repeats_pass(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    line = {"evaluation": "a", "metrics": {"loss": {"value": math.nan}}, "from a later version": [1, {"x": None}]}
    path.write_text(f"{json.dumps(line)}\r\n\n{json.dumps(line)}\n")
    first, second = results.read(path)
    assert math.isnan(first["metrics"]["loss"]["value"])
    assert second["from a later version"] == [1, {"x": None}]
    assert [number for number, _ in results.numbered_lines(path)] == [1, 3]


def test_only_json_is_written(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.append(path, {"value": math.nan})
    assert not path.exists()


def test_the_last_of_the_lines_that_agree_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "results.jsonl"
    for number, (dataset, data) in enumerate([("x", "a/b"), ("x", "./a/b"), ("y", "a/b")]):
        results.append(path, {"evaluation": "e", "dataset": dataset, "data": data, "n": number})
    assert results.find(path, "e")["n"] == 2
    assert results.find(path, "e", {"dataset": "x", "data": str(tmp_path / "a" / "b")})["n"] == 1
    assert results.find(path, "e", {"dataset": "z"})["n"] == 2
    assert results.find(path, "f") is None
    assert results.find(tmp_path / "absent.jsonl", "e") is None


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        list(results.read(tmp_path))
