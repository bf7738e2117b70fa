"""What a run's folder adds to its points: rate, resolution, tokens, pairs, seconds, FLOPs that were spared."""

import json

import pytest

from clip_la.cli import main
from clip_la.errors import UserError
from clip_la.scaling.cautions import carrying
from clip_la.scaling.points_table import table_points
from clip_la.scaling.results import result_points


def test_the_run_folder_adds_rate_resolution_and_seconds(write_lines, result_line, tmp_path) -> None:
    path = write_lines([result_line(0.3), result_line(0.4, run_id="b", learning_rate=5e-4)], "runs/a/results.jsonl")
    (path.parent / "config.yaml").write_text("model: {lr: 0.002, image_size: 128}\ndevices: 2\n")
    (path.parent / "metrics.csv").write_text("samples_seen,loss,train_s\n20000,3,50.0\n40000,2,100.5\n50000\n")
    first, second = result_points([tmp_path / "runs"]).points
    assert (first.learning_rate, first.image_size, first.gpu_seconds) == (0.002, 128, 201.0)
    # What the line says itself stands.
    assert second.learning_rate == 5e-4
    write_lines([result_line(0.3, samples_seen=[1])], "runs/a/results.jsonl")
    with pytest.raises(UserError, match=r"results.jsonl:1: 'samples_seen' is \[1\], not a number"):
        result_points([tmp_path / "runs"])


def test_the_run_folder_adds_tokens_pairs_and_its_share_of_a_gpu(write_lines, result_line, tmp_path) -> None:
    run = tmp_path / "runs/a"
    line = result_line(0.3, checkpoint=str(run / "checkpoints/samples=000040000.ckpt"))
    # An evaluation of its own writes its lines elsewhere.
    path = write_lines([line], "evaluated/results.jsonl")
    run.mkdir(parents=True)
    shards = [tmp_path / "a", tmp_path / "b"]
    for folder, sizes in zip(shards, ({"0.tar": 700}, {"0.tar": 100, "1.tar": 50}), strict=True):
        folder.mkdir()
        (folder / "sizes.json").write_text(json.dumps(sizes))
    config = {"model": {"name": "vit_nano", "image_size": 64}, "data": {"shards": [str(each) for each in shards]}}
    (run / "config.yaml").write_text(json.dumps(config))
    (run / "metrics.csv").write_text("samples_seen,loss,train_s\n40000,2,90.0\n")
    (run / "place.json").write_text('{"runs_per_gpu": 3}')
    (point,) = result_points([path]).points
    # vit_nano's patches are 8 pixels: 8 x 8 of them and the class token.
    assert (point.image_size, point.tokens, point.train_pairs, point.gpu_seconds) == (64, 65, 850, 30.0)
    assert any("saw their pairs more than 4 times (up to 47)" in note for note in carrying("a", [point]))


def test_patches_left_out_in_training_cost_nothing(write_lines, result_line, tmp_path) -> None:
    """A line counts the FLOPs of the model that was evaluated, on all patches."""
    from clip_la.models.flops import flops
    from clip_la.models.registry import model_spec

    spec = model_spec("vit_nano", image_size=64, attention="linear")
    kinds = {"image_attention": "linear", "text_attention": "linear"}
    path = write_lines([result_line(0.3, flops_per_sample=flops(spec)["total"], **kinds)], "a/results.jsonl")
    config = {"model": {"name": "vit_nano", "image_size": 64, "patch_dropout": 0.5}}
    (path.parent / "config.yaml").write_text(json.dumps(config))
    (point,) = result_points([path]).points
    # 32 of 64 patches and the class token: what a model of as many tokens costs, and the patches' embedding.
    assert point.flops_per_sample == pytest.approx(flops(spec, 0.5)["total"])
    assert point.flops_per_sample < 0.8 * flops(spec)["total"]


@pytest.mark.parametrize(
    ("weights", "pass_samples", "passes"),
    [
        # 700 and 150 pairs: three quarters of 1,200 samples are 900, a quarter is 300.
        ([3.0, 1.0], 600, 2.0),
        ([1, 3], 200, 6.0),
        ([1.0, 0.0], 700, 12 / 7),
        (None, None, 1200 / 850),
        ([1.0], None, 1200 / 850),
    ],
)
def test_pairs_of_mixed_sources_are_repeated_as_their_weights_say(
    write_lines, result_line, tmp_path, weights, pass_samples, passes
) -> None:
    path = write_lines([result_line(0.3, samples_seen=1200, budget_samples=1200)], "runs/a/results.jsonl")
    shards = [tmp_path / "a", tmp_path / "b"]
    for folder, sizes in zip(shards, ({"0.tar": 700}, {"0.tar": 100, "1.tar": 50}), strict=True):
        folder.mkdir()
        (folder / "sizes.json").write_text(json.dumps(sizes))
    config = {"data": {"shards": [str(each) for each in shards], "weights": weights}}
    (path.parent / "config.yaml").write_text(json.dumps(config))
    out = tmp_path / "points.csv"
    assert main(["scaling", "points", str(path), "--out", str(out)]) == 0
    for (point,) in (result_points([tmp_path / "runs"]).points, table_points([out]).points):
        assert (point.train_pairs, point.pass_samples) == (850, pass_samples)
        assert point.passes == pytest.approx(passes)
        said = [note for note in carrying("a", [point]) if "saw their pairs more than 4 times" in note]
        assert [note.split("(")[1].split(")")[0] for note in said] == (["up to 6"] if passes > 4 else [])


def test_options_that_change_a_pairs_flops_stand_in_the_table(write_lines, result_line, tmp_path) -> None:
    """Presets' own lengths and no dropout are empty cells: tables of before have no such columns."""
    from clip_la.models.flops import flops
    from clip_la.models.registry import model_spec

    preset = model_spec("vit_nano").context_length
    runs = {"plain": (0.0, None), "same": (0.0, preset), "cut": (0.5, None), "short": (0.5, preset // 2)}
    for name, (dropout, context) in runs.items():
        spec = model_spec("vit_nano", attention="softmax", context_length=context)
        line = result_line(0.3, run_id=name, flops_per_sample=flops(spec)["total"], image_attention="softmax")
        path = write_lines([{**line, "text_attention": "softmax"}], f"runs/{name}/results.jsonl")
        config = {"model": {"name": "vit_nano", "patch_dropout": dropout, "context_length": context}}
        (path.parent / "config.yaml").write_text(json.dumps(config))
    out = tmp_path / "points.csv"
    assert main(["scaling", "points", str(tmp_path / "runs"), "--out", str(out)]) == 0
    for points in (result_points([tmp_path / "runs"]).points, table_points([out]).points):
        found = {point.source: point for point in points}
        assert found["plain"].options == found["same"].options == (None, None)
        assert found["cut"].options == (0.5, None)
        assert found["short"].options == (0.5, preset // 2)
        spec = model_spec("vit_nano", attention="softmax", context_length=preset // 2)
        assert found["short"].flops_per_sample == pytest.approx(flops(spec, 0.5)["total"], rel=1e-9)
