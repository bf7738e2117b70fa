"""The command line as a whole: every verb is there, says what it does, answers wrong input with one line and code 2."""

import argparse
import errno
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from clip_la import __version__, cli
from clip_la.errors import UserError

COMMANDS = Path(cli.__file__).parent / "commands"
# Verbs with commands of their own, whose help is a page each.
PARTS = {
    "data": ("starter", "pack", "verify", "read", "show"),
    "scaling": ("fit", "plot"),
    "bench": ("kernels", "attention", "data", "train", "zeroshot"),
}
PAGES = [(verb, part) for verb in cli.VERBS for part in PARTS.get(verb, ())] + [(verb,) for verb in cli.VERBS]
# The clearest misspelling of each page; what is needed besides comes first.
MISSPELT = {
    ("demo",): ["--sede", "0"],
    ("data", "starter"): ["OUT", "--jsno"],
    ("train",): ["--seed_everythin", "0"],
    ("convert",): ["RUN", "--attentoin", "linear"],
    ("eval",): ["CHECKPOINT", "--jsno"],
    ("scaling", "fit"): ["FILE", "--jsno"],
    ("scaling", "plot"): ["FILE", "--out", "x", "--jsno"],
    ("bench", "kernels"): ["--jsno"],
    ("models",): ["--jsno"],
    ("export",): ["CHECKPOINT", "OUT", "--jsno"],
}


def run(argv: Sequence[str]) -> int:
    """The exit code of a command line; argparse leaves --help and --version through SystemExit."""
    try:
        return cli.main(argv)
    except SystemExit as leave:
        return int(leave.code or 0)


def one_line_of_error(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command line that must fail with code 2 and one line on stderr; returns the line."""
    assert run(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("clip-la: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_every_verb_has_a_command_file() -> None:
    files = {path.stem for path in COMMANDS.glob("*.py")} - {"__init__"}
    assert files == {*cli.VERBS, "scaling_report", "scaling_sweep", *(f"bench_{table}" for table in PARTS["bench"])}


def test_overview_names_every_verb(capsys) -> None:
    assert run(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"\n  {verb} " in overview for verb in cli.VERBS)
    assert "epoch" not in overview.lower()


def test_no_command_is_an_error_that_shows_the_overview(capsys) -> None:
    assert run([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_version(capsys) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"clip-la {__version__}\n"


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_help_of_every_page(page: tuple[str, ...], capsys) -> None:
    assert run([*page, "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage" in text.lower()
    assert " ".join(page) in text
    # Time is counted in samples seen, everywhere.
    assert "epoch" not in text.lower()


class Parsed(Exception):
    """Instead of parsing: the words that a parser would have parsed."""


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_options_are_known_with_dashes_and_underscores(page: tuple[str, ...], monkeypatch) -> None:
    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda parser, *_: parsers.append(parser))
    assert run([*page, "--help"]) == 0

    def stop(parser, args=None, namespace=None, **_):
        raise Parsed(args)

    for parser in parsers:  # none where the help is a list of further commands
        base = type(parser).__mro__[1]
        monkeypatch.setattr(base, "parse_args", stop)
        monkeypatch.setattr(base, "parse_known_args", stop)
        # Of the others there is one spelling.
        options = [name for action in parser._actions for name in action.option_strings if set("-_") & set(name[2:])]
        for name in options:
            for spelt in (name.replace("_", "-"), "--" + name[2:].replace("-", "_")):
                with pytest.raises(Parsed) as parsed:
                    parser.parse_args([f"{spelt}=a_b-c", spelt])
                assert parsed.value.args == ([f"{name}=a_b-c", name],)


def test_values_keep_their_dashes_and_underscores(capsys) -> None:
    assert run(["models", "--image_size=64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["image_size"] == 64
    options = ["--budget-samples", "8", "--data.batch-size=4", "--model.name", "a-b_c", "--data.shards=--d-e_f"]
    with pytest.raises(SystemExit):
        cli.run(["train", "--out", "g-h_i", *options, "--print-config"])
    given = yaml.safe_load(capsys.readouterr().out)
    assert (given["budget_samples"], given["data"]["batch_size"]) == (8, 4)
    assert (given["out"], given["model"]["name"], given["data"]["shards"]) == ("g-h_i", "a-b_c", "--d-e_f")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["scalin"], "unknown command 'scalin'; did you mean scaling"),
        (["Train"], "did you mean train"),
        (["zzz"], "known: bench, convert, data, demo, eval, export, models, scaling, train"),
    ],
)
def test_an_unknown_verb_names_the_nearest(argv: list[str], says: str, capsys) -> None:
    assert says in one_line_of_error(argv, capsys)


@pytest.mark.parametrize("page", MISSPELT, ids=" ".join)
def test_a_misspelt_option_is_named(page: tuple[str, ...], capsys) -> None:
    argv = MISSPELT[page]
    option = next(word for word in argv if word.startswith("--"))
    line = one_line_of_error([*page, *argv], capsys)
    assert option.lstrip("-") in line
    assert "did you mean" in line or page == ("train",)


@pytest.mark.parametrize("verb", PARTS)
def test_an_unknown_part_names_the_nearest(verb: str, capsys) -> None:
    part = PARTS[verb][0]
    assert part in one_line_of_error([verb, part + part[-1]], capsys)


@pytest.mark.parametrize(
    "argv",
    [
        ["eval", "absent.ckpt", "--data", "absent.tar"],
        ["export", "absent.ckpt", "out.pt"],
        ["convert", "absent.ckpt", "--attention", "linear", "--data", "absent.tar", "--out", "out"],
        ["data", "verify", "absent-00000.tar"],
        ["data", "show", "absent-00000.tar"],
        ["scaling", "fit", "absent.jsonl"],
        ["train", "--config", "absent.yaml"],
    ],
    ids=" ".join,
)
def test_an_absent_file_is_named(argv: list[str], tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert "absent" in one_line_of_error(argv, capsys)
    assert list(tmp_path.iterdir()) == []


class FakeCommand:
    """Stands where a command's module would: raises what it is given."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def main(self, argv: list[str]) -> int:
        raise self.error


def test_an_error_of_several_lines_becomes_one(monkeypatch, capsys) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: FakeCommand(UserError("first\n  second")))
    assert one_line_of_error(["models"], capsys) == "clip-la: error: first second\n"


def test_an_interrupt_is_code_130_without_a_traceback(monkeypatch, capsys) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: FakeCommand(KeyboardInterrupt()))
    assert run(["models"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_a_path_that_cannot_be_written_is_named(tmp_path, capsys) -> None:
    (tmp_path / "file").touch()
    assert "file" in one_line_of_error(["data", "starter", str(tmp_path / "file" / "corpus")], capsys)


def test_a_full_disk_is_one_line(monkeypatch, capsys) -> None:
    full = FakeCommand(OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(importlib, "import_module", lambda name: full)
    assert "No space left on device" in one_line_of_error(["models"], capsys)


def test_a_reader_that_went_away_is_no_error() -> None:
    command = [sys.executable, "-m", "clip_la", "models", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert b"BrokenPipe" not in process.stderr.read()


def test_a_bug_keeps_its_traceback(monkeypatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: FakeCommand(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run(["models"])


@pytest.mark.parametrize("argv", [["models", "--jso"], ["train", "--model.nam", "vit_nano", "--out", "x"]])
def test_half_an_option_is_a_misspelt_one(argv, capsys) -> None:
    assert "did you mean" in one_line_of_error(argv, capsys)


@pytest.mark.parametrize(
    ("ends_by", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "study: interrupted; "),
        (UserError("no such folder: x"), 2, "study: error: no such folder: x\n"),
        (PermissionError(errno.EACCES, "Permission denied", "tables.md"), 2, "study: error: tables.md: Permission"),
    ],
)
def test_a_script_ends_in_one_line_of_its_own_name(ends_by: BaseException, code: int, says: str, capsys) -> None:
    def work() -> int:
        raise ends_by

    assert cli.guarded("study", work) == code
    said = capsys.readouterr().err
    assert said.startswith(says)
    assert said.count("\n") == 1


def test_a_fault_of_a_script_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.guarded("study", lambda: 1 // 0)
