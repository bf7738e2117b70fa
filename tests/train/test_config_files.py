"""Configuration files of training: those of the repository, those of a run's folder, and what is said of wrong ones."""

from pathlib import Path

import pytest
import yaml

from clip_la.cli import main
from clip_la.models import list_models
from clip_la.train.cli import config_text, make_task_and_data, parse

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "train").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configuration_files_parse(config, shards, tmp_path):
    # A small model in the large one's place: making ViT-L would tell no more.
    options = ["--data.shards", shards, "--out", str(tmp_path / "run"), "--model.name", "vit_pico"]
    given = parse(["--config", str(config), *options])
    task, data = make_task_and_data(given)
    assert yaml.safe_load(config.read_text())["model"]["name"] in list_models()
    assert task.batch_size == data.batch_size == given.data.batch_size
    # What is written into the run's folder gives the same run again.
    resolved = tmp_path / "config.yaml"
    resolved.write_text(config_text(given))
    assert parse(["--config", str(resolved)]) == given


def test_there_are_configuration_files():
    assert {"vit_nano", "vit_s16", "vit_b16", "vit_l16"} <= {path.stem for path in CONFIGS}


def test_a_configuration_of_an_earlier_version_is_resumed(run_options, tmp_path) -> None:
    """As `clip-la train` wrote it when LightningCLI made its parser."""
    (tmp_path / "config.yaml").write_text(EARLIER)
    given = parse(["--resume", "--out", str(tmp_path), "--model.lr", "0.25"])
    assert (given.budget_samples, given.resume, given.checkpoint_samples) == (512, True, (128,))
    assert (given.model.name, given.model.lr, given.model.eps, given.model.image_size) == ("vit_pico", 0.25, 1e-6, None)
    assert (given.data.shards, given.data.caption_fields, given.data.weights) == ("scenes/train", ("txt",), None)


EARLIER = """\
budget_samples: 512
out: run
branch_from: null
checkpoint_samples:
- 128
log_every_samples: null
seed: 0
precision: auto
zeroshot_samples: []
model:
  name: vit_pico
  image_size: null
  lr: 0.0005
  eps: 1.0e-06
  schedule: constant
  max_grad_norm: 1.0
data:
  shards: scenes/train
  batch_size: 64
  weights: null
  caption_fields:
  - txt
  caption_weights: []
  max_pixels: 67108864
"""


def refusal(config, run_options, tmp_path, capsys):
    """The one line that a run with this configuration file ends with."""
    options = ["--budget_samples", "32", "--out", str(tmp_path / "run"), "--config", str(config)]
    assert main(["train", *run_options, *options]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert not (tmp_path / "run").exists()
    return shown


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model:\n  attn: linear\n", "wrong.yaml: unknown option model.attn; did you mean model."),
        ("bugdet_samples: 5\n", "wrong.yaml: unknown option bugdet_samples; did you mean budget_samples"),
        ("data: [1, 2]\n", "wrong.yaml: data is [1, 2], not a group of options; write lines NAME: VALUE below it"),
        ("model: 3\n", "wrong.yaml: model is 3, not a group of options"),
        ("data:\n  shards:\n", "wrong.yaml: data.shards: null is not a list such as [a.tar, b.tar], or text; give a "),
        ("data: {batch_size: null}\n", "wrong.yaml: data.batch_size: null is not a whole number; give a value"),
        ("data: {shards: {a: 1}}\n", "wrong.yaml: data.shards: {'a': 1} is not a list such as [a.tar, b.tar], or text"),
    ],
)
def test_wrong_options_in_a_configuration_file_give_one_line(text, says, run_options, tmp_path, capsys):
    config = tmp_path / "wrong.yaml"
    config.write_text(text)
    assert says in refusal(config, run_options, tmp_path, capsys)
    # The same where the outcome is only to be printed.
    assert says in refusal(config, [*run_options, "--print_config"], tmp_path, capsys)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a: [1, 2\n", "not valid YAML: while parsing a flow sequence at line 1, column 4"),
        (b"model:\n  lr: [fast\nseed: 3\n", "not valid YAML: while parsing a flow sequence at line 2, column 7"),
        (b"model:\n\tlr: 1\n", "at line 2, column 1"),
        (b"a: '\xff'\n", "not text in UTF-8"),
        (b"", "holds no options; expected lines NAME: VALUE"),
        (b"- linear\n- softmax\n", "holds no options; expected lines NAME: VALUE"),
        (b"seed: fast\n", "seed: fast is not of type int"),
        (b"model:\n  lr: 1\n  lr: 2\n", "not valid YAML: the key 'lr' stands twice at line 3, column 3"),
    ],
    ids=["bracket", "bracket inside", "tab", "bytes", "empty", "list", "type", "twice"],
)
def test_a_damaged_configuration_file_is_named_with_the_place(content, says, run_options, tmp_path, capsys):
    config = tmp_path / "broken.yaml"
    config.write_bytes(content)
    shown = refusal(config, run_options, tmp_path, capsys)
    assert f"{config}: " in shown
    assert says in shown
    assert "<unicode string>" not in shown


def test_a_configuration_that_is_no_file_is_named(run_options, tmp_path, capsys):
    missing = tmp_path / "missing.yaml"
    assert f"File does not exist: '{missing}'" in refusal(missing, run_options, tmp_path, capsys)
    assert f"Path is not a file: '{tmp_path}'" in refusal(tmp_path, run_options, tmp_path, capsys)
