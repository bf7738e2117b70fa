"""The command line of training: what a user reads who errs, and the help."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import pytorch_lightning as pl
import yaml

from clip_la.cli import main
from clip_la.errors import UserError
from clip_la.train.cli import make_parser, parse
from clip_la.train.options import ModelOptions, TrainOptions
from clip_la.train.task import ContrastiveTask


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--model.attentoin", "linear"], "unknown option --model.attentoin; did you mean model.attention"),
        (["--bugdet_samples", "5"], "unknown option --bugdet_samples; did you mean budget_samples"),
        (["--model.lr", "fast"], "model.lr: fast is not of type float"),
        (["--model.schedule", "linear"], "model.schedule: linear is not one of 'cosine', 'constant', 'cooldown'"),
        (["--model.batch_size", "4"], '"model.batch_size" must be given via "data.batch_size"'),
        (["--model.name", "vit_pic"], "unknown model 'vit_pic'; did you mean vit_pico"),
        (["--model.image_size", "100000"], "image_size 100000 with patch_size"),
        (["--model.attention", "liner"], "'liner'; did you mean linear"),
        (["--model.warmup_samples", "1000"], "do not fit into budget_samples 32"),
        (["--data.batch_size", "1"], "batch_size must be at least 2"),
        (["--seed", "-1"], "seed must be from 0 to 4294967295, not -1"),
        (["--seed", "4294967296"], "seed must be from 0 to 4294967295, not 4294967296"),
        (["--data.shards", "nowhere/00000.tar"], "nowhere/00000.tar"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--branch_from", "nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
        (["stray"], "unknown option stray"),
        (["--resume", "maybe"], "resume: maybe is not true or false"),
        (["--resume=maybe"], "resume: maybe is not true or false"),
        (["--budget_samples", "0"], "budget_samples must be at least 1"),
        (["--log_every_samples", "-1"], "log_every_samples must be at least 1"),
        (["--save_every_samples", "0"], "save_every_samples must be at least 1"),
        (["--devices", "0"], "devices must be at least 1"),
        (["--model.max_logit_scale", "0"], "max_logit_scale must be at least 1"),
        (["--model.max_grad_norm", "-1"], "max_grad_norm must be positive"),
        (["--model.beta2", "1"], "beta2 must be from 0 to below 1"),
        (["--model.weight_decay", "-0.1"], "weight_decay must not be negative"),
        (["--model.lr", ".nan"], "lr must be positive and finite"),
        (["--branch_from"], "branch_from"),
        (["--zeroshot_suite", "gone.yaml"], "no suite at gone.yaml"),
        (["--zeroshot_samples", "[16]"], "zeroshot_samples says when to evaluate; say on what: zeroshot_suite"),
        (["--zeroshot_samples", "[0]"], "zeroshot_samples must be at least 1, not 0"),
        (["--zeroshot_samples", "[often]"], "zeroshot_samples: often is not of type int"),
        (["--zeroshot_suite", "x", "--zeroshot_samples", "[64]"], "zeroshot_samples 64 lies beyond the budget of 32"),
        (["--checkpoint_samples", "[16, 99999]"], "checkpoint_samples 99,999 lies beyond the budget of 32 samples"),
        (["--validate_every_samples", "16"], "validate_every_samples says when to validate; say on what shards"),
        (["--validate_every_samples", "0", "--validate_on", "x"], "validate_every_samples must be at least 1"),
        (["--validate_on", "gone/00000.tar"], "gone/00000.tar"),
        (["--model.cuda_graphs", "true"], "model.cuda_graphs needs a GPU"),
        (["--model.micro_batches", "0"], "micro_batches must be from 1 to batch_size"),
        (["--checkpoint_samples", "[-5]"], "checkpoint_samples must be at least 1, not -5"),
        (["--checkpoint_samples", "64"], "checkpoint_samples: 64 is not a list such as [1, 2]"),
        (["--zeroshot_suit", "x.yaml"], "did you mean zeroshot_suite"),
        (["--data.weights", "3"], "train: data.weights: 3 is not a list such as [0.5, 2], or null (see"),
        (["--data.weights", "[a]"], "train: data.weights: ['a'] is not a list such as [0.5, 2], or null (see"),
        (["--data.caption_fields", "txt"], "train: data.caption_fields: txt is not a list such as [txt] (see"),
        (["--model.freeze", "foo"], "train: model.freeze: foo is not 'image', 'text', or null (see"),
        (["--devices", "two"], "train: devices: two is not a whole number, or null (see"),
        (["--model", "vit_pico"], "model is a group of options, and 'vit_pico' no file of them; write --model.name V"),
        (["--data", "[1,2]"], "data is a group of options, and '[1,2]' no file of them; write --data.shards VALUE"),
        (["--epochs", "3"], "unknown option --epochs; did you mean budget_samples?"),
        (["--model.learning_rate", "3"], "unknown option --model.learning_rate; did you mean model.lr?"),
        (["--learning-rate", "3"], "unknown option --learning-rate; did you mean model.lr?"),
        (["--model.leraning_rate", "3"], "unknown option --model.leraning_rate; did you mean model.lr?"),
        (["--model.weight_decy", "3"], "did you mean model.weight_decay"),
        (["--data.batch-sizes", "3"], "unknown option --data.batch-sizes; did you mean data.batch_size"),
    ],
)
def test_wrong_options_give_one_line_and_exit_code_2(wrong, says, run_options, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *run_options, "--budget_samples", "32", "--out", str(run), *wrong]) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1
    assert not run.exists()


def test_a_gpu_that_is_not_there_is_one_line(run_options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    options = ["--budget_samples", "32", "--out", str(tmp_path / "run"), "--accelerator", "gpu"]
    assert main(["train", *run_options, *options]) == 2
    shown = capsys.readouterr().err
    assert "finds no GPU" in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "resumes"),
    [
        (["--resume"], True),
        (["--resume", "true"], True),
        (["--resume=true"], True),
        (["--resume", "yes"], True),
        (["--resume", "false"], False),
        (["--resume=false"], False),
        ([], False),
    ],
)
def test_resume_is_a_flag_and_an_option(words, resumes, run_options, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 7\n")
    for given in ([*words, "--out", str(tmp_path)], ["--out", str(tmp_path), *words]):
        options = parse([*run_options, "--budget_samples", "32", *given])
        # A run that goes on has the options of its folder.
        assert (options.resume, options.seed) == (resumes, 7 if resumes else 0)


def test_a_missing_option_is_named(run_options, tmp_path, capsys):
    assert main(["train", *run_options, "--out", str(tmp_path / "run")]) == 2
    assert "budget_samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("branch_from", "says"),
    [
        ("nowhere.ckpt", "--branch_from {} is not there: name a checkpoint, RUN/checkpoints/samples=NUMBER.ckpt"),
        ("run", "--branch_from {} is a folder: name a checkpoint"),
        ("lonely.ckpt", "--branch_from {} has no config.yaml beside it: "),
        ("stage/checkpoints/samples=000000016.ckpt", "stage is a stage of a conversion: the same `clip-la convert`"),
    ],
)
def test_what_no_branch_can_leave_is_named(branch_from, says, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "lonely.ckpt").touch()
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage/config.yaml").write_text("begins_with: layers/x.ckpt\nsamples: 16\n")
    start = tmp_path / branch_from
    assert main(["train", "--branch_from", str(start), "--out", str(tmp_path / "out"), "--budget_samples", "32"]) == 2
    assert says.format(start) in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(tmp_path / "stage")]) == 2
    assert "stage is a stage of a conversion" in capsys.readouterr().err


def test_shards_without_captions_stop_the_run_with_one_line(run_options, tmp_path, capsys):
    options = ["--data.caption_fields", "[json.caption]", "--budget_samples", "32", "--out", str(tmp_path / "run")]
    assert main(["train", *run_options, *options]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no caption" in line


def test_a_foreign_checkpoint_is_no_start(run_options, tmp_path, capsys):
    foreign = tmp_path / "weights.ckpt"
    foreign.write_bytes(b"not a checkpoint")
    options = ["--budget_samples", "32", "--out", str(tmp_path / "run"), "--branch_from", str(foreign)]
    assert main(["train", *run_options, *options]) == 2
    assert f"{foreign} is damaged" in capsys.readouterr().err


def test_gradient_accumulation_is_refused():
    task = ContrastiveTask(ModelOptions(name="vit_pico"), batch_size=4, budget_samples=8)
    task.trainer = pl.Trainer(accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="gradient accumulation changes the loss"):
        task.on_fit_start()


def fields_of(options: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Each option's name and the field it comes from."""
    for field in dataclasses.fields(options):
        if dataclasses.is_dataclass(field.type):
            yield from fields_of(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


def test_the_help_tells_every_option_with_its_default_and_what_it_is() -> None:
    fields = dict(fields_of(TrainOptions))
    actions = {action.dest: action for action in make_parser()._actions}
    assert {*fields, "help", "config", "print_config", "model", "data"} == set(actions)
    entries = [" ".join(entry.split()) for entry in re.split(r"\n+(?:\S.*\n)?  (?=-)", make_parser().format_help())]
    for name, field in fields.items():
        text, default = actions[name].help, field.default
        assert len(text.split()) >= 2, f"{name} has no text below it"
        (entry,) = (entry for entry in entries if entry.startswith(f"--{name} "))
        assert " ".join(text.split()) in entry
        if default is dataclasses.MISSING:
            assert "(required" in entry
        else:
            assert entry.endswith(f"default: {'null' if default is None else default})")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--lr", "1"], '"lr" must be given via "model.lr"'),
        (["--data.image_size", "64"], '"data.image_size" must be given via "model.image_size"'),
        (["--model.seed", "1"], '"model.seed" must be given via "seed"'),
        (["--model.zzz", "1"], "unknown option --model.zzz; did you mean model"),
        (["--model.model", "vit_pico"], "unknown option --model.model; did you mean model.name?"),
        (["--resume", "--out", "nowhere"], "nowhere holds no run to resume: clip-la train: the following arguments"),
    ],
)
def test_an_option_of_another_group_says_where_it_is(wrong: list[str], says: str) -> None:
    with pytest.raises(UserError) as error:
        parse(wrong)
    assert says in str(error.value)


def test_options_are_read_and_explained_without_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
from clip_la.commands import convert, train
assert train.main(["--help"]) == convert.main(["--help"]) == 0
train.main(["--out", "x", "--budget_samples", "3", "--model.name", "n", "--data.shards", "s", "--print_config"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--model.lr LR" in done.stdout
    assert yaml.safe_load(done.stdout[done.stdout.index("\nout: x") :])["data"]["shards"] == "s"


WRONG_WITHOUT_TORCH = {
    "holds a run already": ["--out", "{begun}"],
    "is a file; --out must name a folder": ["--out", "{begun}/metrics.csv"],
    "unknown model 'vit_pic'; did you mean vit_pico": ["--model.name", "vit_pic"],
    "'liner'; did you mean linear": ["--model.attention", "liner"],
    "image_size 33 is no multiple of patch_size": ["--model.image_size", "33"],
    "lr must be positive and finite, not 0": ["--model.lr", "0"],
    "budget_samples must be at least 1, not 0": ["--budget_samples", "0"],
    "batch_size must be at least 2": ["--data.batch_size", "1"],
    "checkpoint_samples 64 lies beyond": ["--checkpoint_samples", "[64]"],
    "weights has 2 numbers for 1 entries of shards": ["--data.weights", "[1, 2]"],
    "weights [-1.0] must be positive": ["--data.weights", "[-1]"],
    "caption_weights has 2 numbers for 1 caption_fields": ["--data.caption_weights", "[1, 2]"],
    "caption_fields is empty": ["--data.caption_fields", "[]"],
    "shard 'nowhere.tar' does not exist": ["--data.shards", "nowhere.tar"],
}


def test_what_can_be_refused_without_torch_is(run_options, tmp_path) -> None:
    """Importing torch and Lightning takes many seconds, after which a misspelt name should not be news."""
    (tmp_path / "metrics.csv").write_text("samples_seen,loss\n32,3.5\n")
    code = """
import sys
sys.modules["torch"] = sys.modules["pytorch_lightning"] = None
from clip_la.cli import main
for words in eval(sys.argv[1]):
    assert main(["train", *words]) == 2
"""
    base = [*run_options, "--budget_samples", "32", "--out", str(tmp_path / "new")]
    wrong = [[*base, *(word.format(begun=tmp_path) for word in words)] for words in WRONG_WITHOUT_TORCH.values()]
    done = subprocess.run([sys.executable, "-c", code, repr(wrong)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(wrong)
    assert [says for says, line in zip(WRONG_WITHOUT_TORCH, lines, strict=True) if says not in line] == []
