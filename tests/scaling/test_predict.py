"""Predictions written down before a run: the law's value and interval, the record, and the comparison afterwards."""

import csv
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from clip_la.cli import main
from clip_la.errors import UserError
from clip_la.models.flops import flops, num_parameters
from clip_la.models.registry import model_spec
from clip_la.scaling.analysis import analyse
from clip_la.scaling.form_analysis import analyse_form
from clip_la.scaling.points import Point, Selection
from clip_la.scaling.points_table import table_points
from clip_la.scaling.predict import Prediction, Run, predict
from clip_la.scaling.prediction_record import FIELDS, outcomes, read_record

SIZES = {"image_size": 128, "context_length": 64}
MODELS = ("vit_w64", "vit_w128", "vit_w256", "vit_s16")
BETAS = {"softmax": 30.0, "rala": 24.0}
SAMPLES = 409_600


def row_of(kind: str, model: str, seed: int, samples: int = SAMPLES, beta: float | None = None) -> dict:
    """A row exactly on beta C^-.1, C counted for the model with this attention."""
    spec = model_spec(model, attention=kind, **SIZES)
    compute = flops(spec)["total"] * samples
    return {
        "run": f"{model}-{kind}-{seed}",
        "source": f"{model}-{kind}-{seed}-{samples}",
        "model": model,
        "attention": kind,
        "image_size": spec.image_size,
        "tokens": spec.num_image_tokens,
        "parameters": num_parameters(spec)["total"],
        "seed": seed,
        "samples_seen": samples,
        "flops_per_sample": flops(spec)["total"],
        "dataset": "scenes",
        "metric": "contrastive_loss",
        "value": (BETAS[kind] if beta is None else beta) * compute**-0.1,
    }


def write(rows: list[dict], path: Path) -> Path:
    """The rows as a table."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def rows() -> list[dict]:
    """Four sizes of both kinds, two seeds, two budgets."""
    return [
        row_of(kind, model, seed, samples)
        for kind in BETAS
        for model in MODELS
        for seed in (0, 1)
        for samples in (40_960, SAMPLES)
    ]


def test_a_record_is_written_once_and_compared_later(rows, tmp_path, capsys) -> None:
    table, out = write(rows, tmp_path / "points.csv"), tmp_path / "prediction.json"
    source = [str(table), "--format", "points"]
    given = [*source, "--model", "vit_w512", "--samples", str(SAMPLES), "--context-length", "64", "--out", str(out)]
    assert main(["scaling", "predict", *given]) == 0
    assert "not yet" in capsys.readouterr().out
    made = json.loads(out.read_text())
    assert made["tables"] == [{"file": "points.csv", "sha256": hashlib.sha256(table.read_bytes()).hexdigest()}]
    assert (made["metric"], made["target"], made["law"]) == ("contrastive_loss", "scenes", "E = beta C^alpha")
    assert made["date"].endswith("+00:00")
    for said in made["predictions"]:
        spec = model_spec("vit_w512", attention=said["kind"], **SIZES)
        assert said["run"]["compute"] == flops(spec)["total"] * SAMPLES
        assert said["run"]["parameters"] == num_parameters(spec)["total"]
        assert said["error"] == pytest.approx(BETAS[said["kind"]] * said["run"]["compute"] ** -0.1)
    assert main(["scaling", "predict", *given]) == 2
    assert "exists: a prediction that was written down stands" in capsys.readouterr().err
    # Softmax lands on its law, at the mean of two seeds; rala's run was not made.
    value = row_of("softmax", "vit_w512", 0)["value"]
    measured = [
        {**row_of("softmax", "vit_w512", seed), "value": value * factor} for seed, factor in ((0, 0.8), (1, 1.0))
    ]
    later = write([*rows, *measured], tmp_path / "later.csv")
    assert main(["scaling", "predict", str(later), "--format", "points", "--check", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    softmax, rala = (next(line for line in lines if line.startswith(kind)) for kind in BETAS)
    assert softmax.split()[-5:] == [f"{0.9 * value:.4g}", "2", "+11.1", "%", "no"]
    assert rala.split()[-5:] == ["not", "yet", "0", "-", "-"]


@pytest.mark.parametrize(("num_runs", "branches"), [(4, 1), (8, 1), (8, 5)])
def test_the_interval_holds_new_runs(num_runs, branches) -> None:
    """In 95 of 100 studies the next run's error, at twenty times the largest trunk's compute."""
    rng = np.random.default_rng(0)
    at, num_studies, inside = Run(2e15), 500, 0
    for _ in range(num_studies):
        points = []
        for number, compute in enumerate(np.geomspace(1e12, 1e14, num_runs)):
            of_run = rng.normal(0, 0.03)
            for branch in range(branches):
                error = 3 * (compute * 2**branch) ** -0.1 * 10 ** (of_run + rng.normal(0, 0.01))
                names = ("", f"r{number}", "softmax", "m", None, f"r{number}-{branch}", 0, None, None)
                points.append(Point(*names, 1.0, 1, compute * 2**branch, error))
        fit = analyse(Selection(tuple(points), (), "t", "top1", "FLOPs")).fits[0]
        said = Prediction.by_power(fit, at)
        assert said.interval is not None
        new = 3 * at.compute**-0.1 * 10 ** (rng.normal(0, 0.03) + rng.normal(0, 0.01))
        inside += said.interval[0] < new < said.interval[1]
    assert 0.92 < inside / num_studies < 0.98


def test_l_of_n_and_d_predicts_with_an_interval_from_twelve_runs(rows, tmp_path) -> None:
    """A planted L(N, D) with 2 % noise, four sizes with three seeds of four budgets: the next size within 3 %."""
    rng = np.random.default_rng(1)

    def law(parameters: float, samples: float) -> float:
        return 0.1 + 20 * parameters**-0.25 + 9e3 * samples**-0.8

    planted = []
    for model in MODELS:
        for seed in (0, 1, 2):
            for samples in (40_960, 73_728, 131_072, SAMPLES):
                row = row_of("softmax", model, seed, samples)
                planted.append({**row, "value": law(row["parameters"], samples) * np.exp(rng.normal(0, 0.02))})
    selection = table_points([write(planted, tmp_path / "p.csv")])
    found = analyse_form(selection, "parametric", loss="relative", num_resamples=60)
    (said,) = predict(found, model="vit_w512", samples=[SAMPLES], context_length=64)
    truth = law(num_parameters(model_spec("vit_w512", **SIZES))["total"], SAMPLES)
    assert said.error == pytest.approx(truth, rel=0.03)
    assert said.interval is not None
    assert said.interval[0] < truth < said.interval[1]
    assert 0.04 < np.log(said.interval[1] / said.interval[0]) < 0.3
    assert set(said.parameters) == {"E0", "A", "B", "alpha", "beta"}
    # From few runs there is none.
    few = table_points([write([row for row in planted if row["seed"] == 0], tmp_path / "few.csv")])
    (said,) = predict(
        analyse_form(few, "parametric", num_resamples=2), model="vit_w512", samples=[9], context_length=64
    )
    assert said.interval is None
    with pytest.raises(UserError, match="needs parameters and samples_seen of the run: give --model and --samples"):
        predict(found, compute=1e16)


def test_a_compute_stands_for_all_kinds_and_finds_runs_near_it(rows, tmp_path) -> None:
    analysis = analyse(table_points([write(rows, tmp_path / "p.csv")]))
    said = predict(analysis, compute=1e16)
    assert [each.error for each in said] == pytest.approx([beta * 1e16**-0.1 for beta in BETAS.values()])
    measured = {**row_of("rala", "vit_w512", 0), "flops_per_sample": 1.01e16 / SAMPLES, "value": 0.5}
    later = table_points([write([*rows, measured], tmp_path / "later.csv")])
    softmax, rala = outcomes(said, later, "attention")
    assert (softmax.measured, softmax.num_measured, rala.measured, rala.num_measured) == (None, 0, 0.5, 1)
    assert rala.relative_error == pytest.approx(said[1].error / 0.5 - 1)


def test_a_record_is_compared_with_runs_of_its_own_filters(rows, tmp_path, capsys) -> None:
    """Whose compute and corpus the laws were of: runs on another corpus are no outcome, though nobody says so again."""
    table = write([{**row, "train_data": "scenes"} for row in rows], tmp_path / "points.csv")
    out = tmp_path / "prediction.json"
    given = ["--model", "vit_w512", "--samples", str(SAMPLES), "--context-length", "64", "--out", str(out)]
    only = ["--format", "points", "--where", "train_data=scenes"]
    assert main(["scaling", "predict", str(table), *only, *given]) == 0
    run = row_of("softmax", "vit_w512", 0)
    measured = [
        {**run, "train_data": data, "run": data, "value": value} for data, value in (("scenes", 0.5), ("photos", 5.0))
    ]
    later = write(measured, tmp_path / "later.csv")
    capsys.readouterr()
    for again in (only, only[:2]):
        assert main(["scaling", "predict", str(later), *again, "--check", str(out)]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("softmax"))
        assert "  0.5  " in line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "of which run: --model NAME --samples N ..., or --compute C"),
        (["--model", "vit_w512"], "of which run"),
        (["--compute", "1e16", "--samples", "9"], "of which run"),
        (["--compute", "-1"], "take numbers above 0"),
        (["--compute", "0"], "take numbers above 0"),
        (["--compute", "nan"], "take numbers above 0"),
        (["--compute", "1e16"], "--out FILE.json is needed"),
        (["--model", "vit_w513", "--samples", "9", "--out", "O"], "unknown model 'vit_w513'; did you mean vit_w512"),
        (["--model", "vit_w512", "--samples", "9", "--out", "O"], "give --context-length as of its run"),
        (["--model", "vit_w64", "--samples", "40960", "--out", "O"], "softmax was measured there already"),
        (["--model", "vit_w512", "--samples", "9", "--by", "model", "--out", "O"], "give --compute"),
        (["--check", "absent.json"], "no such file: absent.json"),
        (["--check", "T"], "no record of predictions"),
        (["--check", "T", "--metric", "top1"], "takes metric, target and runs from its file"),
        (["--check", "T", "--samples", "9"], "give it alone, without --samples"),
        (["--check", "T", "--rate", "all"], "give it alone, without --rate"),
        (["--check", "T", "--context-length", "9"], "give it alone, without --context-length"),
    ],
)
def test_wrong_input_gives_one_line(rows, tmp_path, capsys, options, says) -> None:
    table = write(rows, tmp_path / "points.csv")
    named = {"O": str(tmp_path / "o.json"), "T": str(table)}
    given = [str(table), "--format", "points", *(named.get(each, each) for each in options)]
    assert main(["scaling", "predict", *given]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o.json").exists()


def test_a_damaged_record_is_named(tmp_path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"date": 1}')
    with pytest.raises(UserError, match=r"r.json: no record of predictions: it lacks tables, target, metric"):
        read_record(path)
    said = Prediction("softmax", Run(1e15), 0.3, (0.2, 0.4), 9, 3, {})
    whole = {**dict.fromkeys(FIELDS, "compute"), "rate": "best", "tables": [{"file": "p.csv", "sha256": "0" * 64}]}
    path.write_text(json.dumps(whole | {"predictions": [{"kind": "softmax", "run": {}}]}))
    with pytest.raises(UserError, match=r"r.json: no record of predictions \(.*missing"):
        read_record(path)
    wrongs: list[dict] = [{"error": "much"}, {"error": None}, {"error": 0}, {"error": True}, {"error": float("nan")}]
    wrongs += [{"interval": each} for each in ("ab", 0, [], {}, [1], [2, 1], [0.1, "1"], [1, 2, 3])]
    wrongs += [{"run": each} for each in (3, {"compute": 0}, {"compute": "1e15"}, {"compute": 1e15, "model": 7})]
    wrongs += [{"run": {"compute": 1e15, "samples_seen": each}} for each in ("9", 0, 0.5, [], True)]
    wrongs += [{"kind": each} for each in (None, 3, [], {})]
    for wrong in wrongs:
        path.write_text(json.dumps({**whole, "predictions": [{**asdict(said), **wrong}]}))
        with pytest.raises(UserError, match=r"r.json: no record of predictions \("):
            read_record(path)
    fields = [*("date", "target", "metric", "by", "axis", "rate", "law", "frontier", "tables", "predictions")]
    others = [{name: each} for name in fields for each in (None, True, 3, {}, [3])]
    others += [{"axis": "metres"}, {"rate": "worst"}, {"tables": [{"file": "p.csv"}]}]
    others += [{"where": each} for each in (3, ["train_data"], [1])]
    for other in others:
        path.write_text(json.dumps({**whole, "predictions": [], **other}))
        with pytest.raises(UserError, match=r"r\.json: no record of predictions"):
            read_record(path)
    path.write_text(json.dumps({**whole, "predictions": [asdict(said)]}))
    assert read_record(path)["predictions"][0].run == said.run


@pytest.mark.parametrize("tokens", [1, 60, 10_001])
def test_tokens_that_no_patches_make_are_named(rows, tmp_path, capsys, tokens) -> None:
    table = write([{**row, "tokens": tokens} for row in rows], tmp_path / "points.csv")
    run = ["--model", "vit_w512", "--samples", "9", "--context-length", "64", "--out", str(tmp_path / "o.json")]
    assert main(["scaling", "predict", str(table), "--format", "points", *run]) == 2
    said = capsys.readouterr().err
    assert f"{tokens} tokens are no patches of 128 pixels and a class token: give --compute, not --model" in said
    assert said.count("\n") == 1


def test_flops_that_no_length_of_captions_explains_ask_for_a_compute(rows, tmp_path, capsys) -> None:
    """Half of the patches left out, say: the caption's length was given, so to ask for it again helps nobody."""
    halved = [{**row, "flops_per_sample": row["flops_per_sample"] / 2} for row in rows]
    table = write(halved, tmp_path / "points.csv")
    run = ["--model", "vit_w512", "--samples", "9", "--context-length", "64", "--out", str(tmp_path / "o.json")]
    assert main(["scaling", "predict", str(table), "--format", "points", *run]) == 2
    assert "give --compute, not --model" in capsys.readouterr().err


def test_notes_are_of_the_laws_alone(rows, tmp_path, capsys) -> None:
    """Too few pairs for a multiplier with an interval concern the comparison, an untuned rate the laws."""
    few = [row for row in rows if row["model"] == "vit_w64" or row["attention"] == "softmax"]
    few.append(row_of("rala", "vit_w128", 7))
    table = write([{**row, "learning_rate": 0.001} for row in few], tmp_path / "p.csv")
    assert main(["scaling", "fit", str(table), "--format", "points"]) == 0
    fitted = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    given = ["--compute", "1e16", "--out", str(tmp_path / "o.json")]
    assert main(["scaling", "predict", str(table), "--format", "points", *given]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert [note for note in fitted if note not in said]
    assert all("multiplier" in note or "at equal model" in note for note in fitted if note not in said)
    assert said == [note for note in fitted if "multiplier" not in note and "at equal model" not in note]
    assert said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"target": "photos"}, "unknown target 'photos'"),
        ({"metric": "top9"}, "unknown metric 'top9'"),
        ({"by": "colour"}, "unknown field that tells kinds apart 'colour'"),
        ({"where": ["seed=9"]}, "unknown value of 'seed' '9'"),
    ],
)
def test_what_a_record_asks_for_in_vain_names_the_record(rows, tmp_path, capsys, change, says) -> None:
    table, path = write(rows, tmp_path / "p.csv"), tmp_path / "r.json"
    said = Prediction("softmax", Run(1e15), 0.3, (0.2, 0.4), 9, 3, {})
    made = {**dict.fromkeys(FIELDS, "compute"), "rate": "best", "tables": [], "target": "scenes"}
    made |= {"metric": "contrastive_loss", "by": "attention", "predictions": [asdict(said)]}
    path.write_text(json.dumps(made | change))
    assert main(["scaling", "predict", str(table), "--format", "points", "--check", str(path)]) == 2
    line = capsys.readouterr().err
    assert f"error: {path}: {says}" in line
    assert line.count("\n") == 1
    assert main(["scaling", "predict", str(tmp_path / "absent.csv"), "--format", "points", "--check", str(path)]) == 2
    assert str(path) not in capsys.readouterr().err


def test_a_run_with_other_options_is_another_run(rows, tmp_path, capsys) -> None:
    """Patches left out: neither measured already, nor what a prediction for the model on all patches is about."""
    half = [
        {**row_of("softmax", model, 3), "run": f"h-{model}", "source": f"h-{model}", "value": 0.5}
        | {"flops_per_sample": flops(model_spec(model, attention="softmax", **SIZES), 0.5)["total"]}
        for model in ("vit_w512", *MODELS)
    ]
    (halved, *_), selection = half, table_points([write([*rows, *half[:1]], tmp_path / "a.csv")])
    run = Run(row_of("softmax", "vit_w512", 0)["flops_per_sample"] * SAMPLES, "vit_w512", SAMPLES)
    said = Prediction("softmax", run, 0.3, None, 9, 3, {})
    assert outcomes([said], selection, "attention")[0].num_measured == 0
    like = Prediction("softmax", Run(halved["flops_per_sample"] * SAMPLES, "vit_w512", SAMPLES), 0.3, None, 9, 3, {})
    assert outcomes([like], selection, "attention")[0].measured == 0.5
    given = ["--samples", "9", "--context-length", "64", "--out", str(tmp_path / "o.json")]
    table = write([*rows, *half], tmp_path / "b.csv")
    assert main(["scaling", "predict", str(table), "--format", "points", "--model", "vit_w64", *given]) == 2
    assert "runs of vit_w64 have several FLOPs a pair: give --compute, not --model" in capsys.readouterr().err
    known = [{**row, "patch_dropout": "", "context_length": 64} for row in rows]
    known += [{**row, "patch_dropout": 0.5, "context_length": 64} for row in half[1:]]
    table = write(known, tmp_path / "c.csv")
    wide = ["--model", "vit_w512", "--samples", "9", "--out", str(tmp_path / "o.json")]
    assert main(["scaling", "predict", str(table), "--format", "points", *wide]) == 2
    assert "softmax has runs with several patch_dropout: which one is predicted?" in capsys.readouterr().err
    # Those of one value count as they were trained, their length of captions too.
    assert main(["scaling", "predict", str(table), "--format", "points", "--where", "patch_dropout=0.5", *wide]) == 0
    (made,) = json.loads((tmp_path / "o.json").read_text())["predictions"]
    assert made["run"]["compute"] == 9 * halved["flops_per_sample"]
