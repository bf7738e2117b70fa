"""`bench data` measures what it says it measures."""

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from clip_la.bench.data import STAGES, bench_data, table
from clip_la.cli import main


@pytest.fixture
def photo_shards(make_shards):
    rng = np.random.default_rng(0)
    spoil = {}
    for i in range(24):
        data = BytesIO()
        Image.fromarray(rng.integers(0, 256, (70, 60, 3), dtype=np.uint8)).save(data, "JPEG")
        spoil[i] = {".png": data.getvalue()}
    return make_shards(2, 12, spoil=spoil)


@pytest.mark.filterwarnings("ignore")
def test_every_stage_is_measured_and_the_slowest_is_named(photo_shards):
    options = {"image_size": 32, "num_samples": 20, "workers": 0, "batch_size": 8, "seconds": 0.1}
    result = bench_data(photo_shards, **options, decode=("cpu", "gpu"))
    stages = result["stages_us"]
    assert tuple(stages) == STAGES
    assert all(us > 0 for us in stages.values())
    assert result["bottleneck"] == max(stages, key=stages.get)
    assert result["pairs_per_s_per_core"] == pytest.approx(1e6 / sum(stages.values()))
    transform_us = stages["decode"] + stages["transform"]
    assert result["ratio_to_open_clip"] == pytest.approx(1e6 / result["open_clip_pairs_per_s_per_core"] / transform_us)
    assert all(rate > 0 for rate in result["loader_pairs_per_s"].values())
    assert f"bottleneck: {result['bottleneck']}" in table(result)


@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_json(photo_shards, tmp_path, capsys):
    options = ["--samples", "10", "--workers", "0", "--batch-size", "4", "--seconds", "0.1", "--image-size", "32"]
    assert main(["bench", "data", *photo_shards, *options, "--json", "--out", str(tmp_path / "r.json")]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "r.json").read_text())


@pytest.mark.parametrize(
    "wrong", [["gone.tar"], ["--samples", "none"], ["--device", "tpu"], ["--workers", "-1"], ["--decode", "x"]]
)
def test_wrong_input_is_one_line(wrong, capsys):
    assert main(["bench", "data", *wrong]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
