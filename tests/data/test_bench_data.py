"""`bench data` measures what it says it measures."""

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from clip_la.bench.data import STAGES, bench_data, table
from clip_la.bench.loader import measure_device, measure_loader
from clip_la.cli import main
from clip_la.data.images.augment import Augmentation


@pytest.fixture
def photo_shards(make_shards):
    rng = np.random.default_rng(0)
    spoil = {}
    for i in range(24):
        data = BytesIO()
        Image.fromarray(rng.integers(0, 256, (70, 60, 3), dtype=np.uint8)).save(data, "JPEG")
        spoil[i] = {"png": data.getvalue()}
    return make_shards(2, 12, spoil=spoil)


@pytest.mark.filterwarnings("ignore")
def test_every_stage_is_measured_and_the_slowest_is_named(photo_shards):
    options = {"image_size": 32, "num_samples": 20, "workers": (0, 1), "batch_size": 8, "seconds": 0.1}
    result = bench_data(photo_shards, **options, decode={"cpu": 0.0, "hybrid": 0.5})
    stages = result["stages_us"]
    assert tuple(stages) == STAGES
    assert all(us > 0 for us in stages.values())
    assert result["bottleneck"] == max(stages, key=stages.get)
    assert result["pairs_per_s_per_core"] == pytest.approx(1e6 / sum(stages.values()))
    transform_us = stages["decode"] + stages["transform"]
    assert result["ratio_to_open_clip"] == pytest.approx(1e6 / result["open_clip_pairs_per_s_per_core"] / transform_us)
    assert [(each["decode"], each["workers"]) for each in result["loaders"]] == [
        *(("cpu", 0), ("hybrid", 0), ("cpu", 1), ("hybrid", 1))
    ]
    assert all(each["pairs_per_s"] > 0 for each in result["loaders"])
    assert f"bottleneck: {result['bottleneck']}" in table(result)


def test_the_time_of_each_thread_is_told_by_part(photo_shards):
    options = {"workers": 1, "batch_size": 8, "device": "cpu", "seconds": 0.3}
    result = measure_loader(photo_shards, Augmentation(32), share=0.5, **options)
    threads = result["us_a_pair"]
    assert set(threads["decoding thread"]) >= {"copy to device", "decode", "crop and resize"}
    assert set(threads["collecting thread"]) == {"wait for workers"}
    assert all(us > 0 for parts in threads.values() for us in parts.values())


def test_the_device_is_measured_at_several_numbers_of_jpegs(photo_shards):
    result = measure_device(photo_shards, Augmentation(32), batch_size=80, device="cpu")
    assert list(result) == ["64", "80"]
    assert all(parts["decode"] > 0 for parts in result.values())


@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_json(photo_shards, tmp_path, capsys):
    options = ["--samples", "10", "--workers", "0", "--batch-size", "4", "--seconds", "0.1", "--image-size", "32"]
    assert main(["bench", "data", *photo_shards, *options, "--json", "--out", str(tmp_path / "r.json")]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "r.json").read_text())


@pytest.mark.parametrize(
    "wrong",
    [
        ["gone.tar"],
        ["--samples", "none"],
        ["--device", "tpu"],
        ["--workers", "-1"],
        ["--decode", "x"],
        ["--decode", "1.5"],
    ],
)
def test_wrong_input_is_one_line(wrong, capsys):
    assert main(["bench", "data", *wrong]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
