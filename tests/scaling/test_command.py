"""`clip-la scaling` as a user types it: what it prints, what it writes, and one line for wrong input."""

import json

import pytest

from clip_la.cli import main


def test_fit_prints_json(write_lines, two_laws, capsys) -> None:
    assert main(["scaling", "fit", str(write_lines(two_laws)), "--json", "--resamples", "20"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [fit["name"] for fit in data["fits"]] == ["softmax", "linear"]
    assert data["comparisons"][0]["alpha_difference"] == pytest.approx(-0.01)


def test_frontier_and_bins(write_lines, two_laws, capsys) -> None:
    options = ["--frontier", "bins", "--bins", "4", "--json", "--resamples", "20"]
    assert main(["scaling", "fit", str(write_lines(two_laws)), *options]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["frontier"] == "best of 4 bins"
    assert data["fits"][0]["n_fitted"] <= 4 < data["fits"][0]["n"]


def test_plot_says_what_it_wrote(write_lines, two_laws, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "law"
    assert main(["scaling", "plot", str(write_lines(two_laws)), "--out", str(out), "--resamples", "5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {out}.png and {out}.svg"
    assert (tmp_path / "law.png").stat().st_size > 10000


def test_a_plot_that_cannot_be_written_names_the_file_that_was_given(write_lines, two_laws, capsys) -> None:
    pytest.importorskip("matplotlib")
    assert main(["scaling", "plot", str(write_lines(two_laws)), "--out", "/proc/x", "--resamples", "5"]) == 2
    assert capsys.readouterr().err == "clip-la: error: /proc/x.png: No such file or directory\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "usage"),
        (["fitt", "FILE"], "unknown scaling command 'fitt'; did you mean fit"),
        (["fit"], "the following arguments are required: FILE"),
        (
            ["fit", "FILE", "--frontierr", "all"],
            "option '--frontierr'; did you mean --frontier",
        ),
        (["fit", "FILE", "--frontier", "parreto"], "unknown frontier 'parreto'; did you mean pareto"),
        (["fit", "FILE", "--format", "laion5b"], "unknown format 'laion5b'; did you mean laion"),
        (["fit", "FILE", "--interval", "t2"], "unknown interval 't2'"),
        (["fit", "FILE", "--interval", "t", "--frontier", "pareto"], "--interval t needs --frontier all"),
        (["fit", "FILE", "--law", "saturated"], "unknown law 'saturated'; did you mean saturating"),
        (["fit", "FILE", "--law", "parametric"], "'parameters' is not recorded, L(N, D)"),
        (["fit", "FILE", "--law", "saturating", "--interval", "t"], "belongs to --law power"),
        (["fit", "FILE", "--law", "saturating", "--loss", "hubber"], "unknown loss 'hubber'; did you mean huber"),
        (["fit", "FILE", "--law", "parametric", "--frontier", "bins"], "--frontier bins has no part in L(N, D)"),
        (["fit", "FILE", "--loss", "huber"], "--loss belongs to --law saturating"),
        (["fit", "FILE", "--axis", "samplse"], "unknown axis 'samplse'; did you mean samples"),
        (["fit", "FILE", "--format", "points"], "no column run"),
        (["points", "FILE", "--format", "points", "--out", "x.csv"], "unknown format 'points'"),
        (["coverage", "--out", "x.csv", "--studies", "0"], "--studies and --resamples take a number from 1"),
        (["fit", "FILE", "--bins", "4"], "--bins belongs to --frontier bins"),
        (["fit", "FILE", "--frontier", "bins", "--bins", "2"], "at least 3 bins, not 2"),
        (["fit", "FILE", "--frontier", "bins", "--bins", "x"], "invalid int value: 'x'"),
        (["fit", "FILE", "--resamples", "0"], "--resamples takes a number from 1"),
        (["fit", "FILE", "--metric", "top3"], "unknown metric 'top3'; did you mean top1"),
        (["fit", "FILE", "--target", "rendition"], "unknown target 'rendition'; did you mean renditions"),
        (["fit", "FILE", "--by", "modle"], "unknown field to fit by 'modle'; did you mean model"),
        (["fit", "FILE", "--law", "saturating", "--baseline", "linear"], "--baseline belongs to --law power"),
        (["fit", "FILE", "--where", "seed"], "a filter is FIELD=VALUE"),
        (["fit", "TABLE"], "table.csv: a table, not result lines: give --format points"),
        (["fit", "FOLDER", "--format", "points"], "folder is a folder: --format points reads a table (CSV)"),
        (["fit", "FOLDER", "--format", "laion", "--target", "a"], "folder is a folder: --format laion reads a table"),
        (["points", "FILE", "--out", "/proc/x.csv"], "clip-la: error: /proc/x.csv: No such file or directory"),
        (["fit", "ONE"], "no fit for softmax: 1 point, a fit needs at least 3"),
        (["fit", "EMPTY"], "empty.jsonl: no results in it"),
        (["fit", "FEW"], "no fit for softmax: 2 points, a fit needs at least 3"),
        (["fit", "absent.jsonl"], "no such file: absent.jsonl"),
        (["fit", "FILE", "--format", "laion", "--target", "a", "--target", "b"], "one --target at a time"),
        (["fit", "FILE", "--format", "laion", "--target", "a"], "no column arch"),
        (["plot", "FILE"], "the following arguments are required: --out"),
        (["plot", "FILE", "--out", "law.jpg"], "as PNG and SVG, not .jpg"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    write_lines, two_laws, tmp_path, capsys, options: list[str], says: str
) -> None:
    places = {"EMPTY": tmp_path / "empty.jsonl", "FEW": tmp_path / "few.jsonl", "FILE": write_lines(two_laws)}
    places |= {"TABLE": tmp_path / "table.csv", "FOLDER": tmp_path / "folder", "ONE": tmp_path / "one.jsonl"}
    places["EMPTY"].touch()
    places["TABLE"].write_text("run,model\na,b\n")
    places["FOLDER"].mkdir()
    places["ONE"].write_text(json.dumps(two_laws[0]))
    softmax = [line for line in two_laws if line["attention"] == "softmax"]
    places["FEW"].write_text("\n".join(map(json.dumps, softmax[:2])))
    argv = [str(places.get(option, option)) for option in options]
    assert main(["scaling", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    if options:
        assert captured.err.count("\n") == 1
        assert says in captured.err
    else:
        assert "usage: clip-la scaling {fit,plot,predict,report,points,coverage,sweep}" in captured.err


def test_a_saturating_law_of_two_kinds(write_lines, result_line, capsys) -> None:
    lines = []
    for attention, scale in (("softmax", 60.0), ("linear", 66.0)):
        for i in range(14):
            samples = round(10 ** (3 + 0.3 * i))
            error = scale * (1.5e7 * samples) ** -0.25 + 0.2
            run = {"run_id": f"{attention}{i}", "samples_seen": samples, "budget_samples": samples}
            lines.append(result_line(1 - error, attention=attention, **run))
    path = str(write_lines([line for line in lines if line["metrics"]["top1"]["value"] > 0]))
    arguments = ["scaling", "fit", path, "--law", "saturating", "--resamples", "2"]
    assert main([*arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    softmax, linear = data["fits"]
    assert softmax["parameters"]["c"] == pytest.approx(-0.25, rel=1e-3)
    assert linear["parameters"]["d"] == pytest.approx(0.2, abs=1e-3)
    assert softmax["largest_held_out"]["predicted_error"] == pytest.approx(
        softmax["largest_held_out"]["measured_error"], rel=1e-4
    )
    assert [fit["shared"] for fit in data["joint_fits"]] == [[], ["c"], ["d"], ["c", "d"]]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "E = a (C + b)^c + d on renditions" in text
    assert "in common to all kinds" in text
