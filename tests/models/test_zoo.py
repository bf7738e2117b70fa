"""results/zoo.md: what its table says runs can be spelt, and every kind of the package is in it."""

import re
from pathlib import Path

import pytest

from clip_la.models.attention.kinds import KINDS
from clip_la.models.attention.pattern import layer_choices
from clip_la.models.clip import empty_model
from clip_la.models.registry import model_spec

PAGE = Path(__file__).parents[2] / "results" / "zoo.md"
ROW = re.compile(r"^\|(.*)\|$", re.MULTILINE)
COLUMNS = ["system", "source", "status", "runs as", "what differs, or why not"]
LAYERS = 12


def rows() -> list[dict[str, str]]:
    cells = [[cell.strip() for cell in line.split("|")] for line in ROW.findall(PAGE.read_text(encoding="utf-8"))]
    return [
        dict(zip(COLUMNS, row, strict=True)) for row in cells if row != COLUMNS and not set("".join(row)) <= set("-")
    ]


def spelt(row: dict[str, str]) -> list[str]:
    return re.findall(r"`([^`]+)`", row["runs as"])


def test_no_row_is_empty_and_no_system_is_there_twice() -> None:
    table = rows()
    assert len(table) > 40
    names = [row["system"] for row in table]
    assert len(set(names)) == len(names)
    for row in table:
        assert row["status"] in ("runs", "part", "no"), row
        assert row["source"], row
        assert bool(spelt(row)) == (row["status"] != "no"), row
        assert row["what differs, or why not"] or row["status"] == "runs", row


@pytest.mark.parametrize("row", [row for row in rows() if row["status"] != "no"], ids=lambda row: row["system"])
def test_what_runs_is_registered_and_makes_a_tower(row: dict[str, str]) -> None:
    for pattern in spelt(row):
        assert {choice.kind for choice in layer_choices(pattern, LAYERS)} <= set(KINDS)
        model = empty_model(model_spec("vit_w128", image_attention=pattern))
        assert len(model.image.trunk.blocks) == LAYERS


def test_every_kind_of_the_package_has_a_row() -> None:
    named = {choice.kind for row in rows() for pattern in spelt(row) for choice in layer_choices(pattern, LAYERS)}
    assert named == set(KINDS)
