"""What a user reads who errs, the help, and the configuration files."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import yaml
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from clip_la.cli import main
from clip_la.errors import UserError
from clip_la.models import list_models
from clip_la.train.cli import config_text, make_parser, make_task_and_data, parse
from clip_la.train.hardware import BUCKET_MIB, cluster_plugins, ddp_settings, trainer_hardware
from clip_la.train.options import HardwareOptions, ModelOptions, TrainOptions
from clip_la.train.task import ContrastiveTask

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "train").glob("*.yaml"))


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


def test_torchrun_inside_a_slurm_job_counts_the_processes(monkeypatch):
    for name, value in {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "clip-la"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="ntasks-per-node"):
        cluster_plugins()
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    assert trainer_hardware(HardwareOptions(accelerator="cpu"))["num_nodes"] == 2
    assert [type(plugin).__name__ for plugin in cluster_plugins()] == ["SLURMEnvironment"]
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "16"}.items():
        monkeypatch.setenv(name, value)
    hardware = trainer_hardware(HardwareOptions(accelerator="cpu"))
    assert (hardware["devices"], hardware["num_nodes"]) == (8, 2)
    assert cluster_plugins() == []


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
    ],
    ids=["bracket", "bracket inside", "tab", "bytes", "empty", "list", "type"],
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


def test_gradients_are_sent_as_asked_for():
    two = [HardwareOptions(accelerator="cpu", devices=2, reduction=reduction) for reduction in ("float32", "bfloat16")]
    strategies = [trainer_hardware(options)["strategy"] for options in two]
    assert [strategy._ddp_comm_hook for strategy in strategies] == [None, bf16_compress_hook]
    # Where a step is timed DDP gets the same.
    assert ddp_settings() == {"gradient_as_bucket_view": True, "bucket_cap_mb": BUCKET_MIB}
    for strategy in strategies:
        assert strategy._ddp_kwargs == ddp_settings()


def test_gradient_accumulation_is_refused():
    task = ContrastiveTask(ModelOptions(name="vit_pico"), batch_size=4, budget_samples=8)
    task.trainer = pl.Trainer(accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="gradient accumulation changes the loss"):
        task.on_fit_start()


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
