"""Kinds and models from outside: the example of docs/adding_a_kind.md as a user runs it, and what may be wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import clip_la
from clip_la.cli import main
from clip_la.data.corpora.scenes import build_scenes
from clip_la.errors import UserError
from clip_la.models.attention import costs, kinds
from clip_la.models.flops import flops, num_parameters

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "adding_a_kind.md").read_text(encoding="utf-8"), re.DOTALL)
KIND, MODEL = BLOCKS
BATCH = 32


def python(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python in a folder, which must end well."""
    variables = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=folder, env=variables
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_example_is_short() -> None:
    code = [line for line in KIND.splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 10


def test_the_example_trains_evaluates_and_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "relu_attention.py"
    plugin.write_text(KIND + "\n" + MODEL)
    build_scenes(tmp_path / "scenes", pairs=2 * BATCH, size_px=32, quiet=True)
    options = {
        **{"model.name": "vit_pico", "model.attention": "relu", "data.shards": "scenes/train", "data.workers": 0},
        **{"data.batch_size": BATCH, "budget_samples": 2 * BATCH, "tensorboard": False, "accelerator": "cpu"},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"options": options, "grid": {"seed": [0]}}))
    evaluate = ["eval", "out/runs/seed0", "--data", "scenes/train", "--task", "zeroshot_retrieval", "--workers", "0"]
    evaluate += ["--out", "r.jsonl"]
    verbs = [
        ["models", "vit_pico", "vit_tall", "--attention", "relu(conv=3)/relu", "--json", "--plugin=relu_attention.py"],
        # The sweep trains in a process of its own.
        ["scaling", "sweep", "sweep.yaml", "--out", "out", "--gpus", ""],
        *(evaluate, evaluate),
    ]
    code = f"from clip_la.cli import main\nassert [main(verb) for verb in {verbs!r}] == [0] * {len(verbs)}"
    done = python(["-c", code], tmp_path)
    rows = json.loads(done.stdout[: done.stdout.index("\n]") + 2])
    # Its FLOPs are those of softmax, which counts the same two products.
    same = clip_la.create_model("vit_pico", image_attention="softmax(conv=3)").spec
    assert [row["model"] for row in rows] == ["vit_pico", "vit_tall"]
    assert rows[0]["gflops"]["total"] == flops(same)["total"] / 1e9
    assert rows[0]["parameters"] == num_parameters(same)

    assert "already in" in done.stdout
    plugin.write_text(plugin.read_text().replace("** 0.5", "** 0.25"))
    python(["-m", "clip_la", *evaluate], tmp_path, CLIP_LA_PLUGINS=str(plugin))
    made = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert len({line["evaluation"] for line in made}) == 2
    assert made[0]["attention"] == "relu"

    data = str(tmp_path / "scenes/train")
    (checkpoint,) = (tmp_path / "out/runs/seed0/checkpoints").glob("*.ckpt")
    assert main(["eval", str(checkpoint), "--data", data, "--task", "zeroshot_retrieval"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in (str(checkpoint), "unknown attention kind 'relu'", "--plugin FILE.py"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.py", None, "no plugin file at {path}"),
        ("plugin.txt", "", "plugin {path} is no Python file: its name must end in .py"),
        ("syntax.py", "x = 1\ndef f(:\n", "plugin {path}: line 2: SyntaxError: invalid syntax"),
        ("fault.py", "x = 1\n\nx / 0\n", "plugin {path}: line 3: ZeroDivisionError: division by zero"),
        ("needs.py", "import absent_package\n", "plugin {path}: line 1: ModuleNotFoundError: No module named"),
        ("ends.py", "raise SystemExit(3)\n", "plugin {path}: line 1: SystemExit: 3"),
        ("binary.py", "\0", "plugin {path}: SyntaxError: source code string cannot contain null bytes"),
        (
            "taken.py",
            "import clip_la\n\nclip_la.register_attention('softmax', None)\n",
            "plugin {path}: line 3: an attention kind called 'softmax' is there already; take another name",
        ),
        (
            "model.py",
            "from clip_la import register_model\ndef vit_b16(): ...\nregister_model(vit_b16)\n",
            "plugin {path}: line 3: a model called vit_b16 is registered already",
        ),
        ("none.py", "import clip_la\nclip_la.register_attention('mine', 3)\n", "'mine' is 3, not an AttentionKind"),
        ("dash.py", "import clip_la\nclip_la.register_attention('a-b', 3)\n", "'a-b' cannot be the name"),
    ],
)
def test_a_wrong_plugin_file_is_one_line(name: str, content: str | None, says: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    for _ in range(2):  # the second time too
        assert main(["models", "--kinds", "--plugin", str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert says.format(path=path) in captured.err
    assert "CLIP_LA_PLUGINS" not in os.environ


@pytest.mark.parametrize("argv", [["models", "--plugin"], ["--plugin", "--json", "models"], ["models", "--plugin="]])
def test_a_plugin_without_a_file_is_refused(argv: list[str], capsys) -> None:
    assert main(argv) == 2
    assert "--plugin expects a file" in capsys.readouterr().err


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch):
    """`register_attention` whose kinds are gone after the test."""
    monkeypatch.setattr(kinds, "KINDS", dict(kinds.KINDS))
    return clip_la.register_attention


class Unset(clip_la.Attention):
    """Has a parameter that it forgets in draw_extra."""

    def __init__(self, dim: int, **arguments) -> None:
        super().__init__(dim, **arguments)
        self.scale = nn.Parameter(torch.ones(3))


def kind(layer: object) -> clip_la.AttentionKind:
    return clip_la.AttentionKind("a kind", layer, costs.quadratic)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.Linear, "'mine': its layer <class 'torch.nn.modules.linear.Linear'> is not derived from clip_la.Attention"),
        (
            "absent_package.file:Layer",
            "its layer absent_package.file:Layer: ModuleNotFoundError: No module",
        ),
        ("clip_la.models.clip:Absent", "cannot import its layer clip_la.models.clip:Absent: AttributeError: module"),
        ("just_a_name", "layer is 'just_a_name', not a class or 'package.module:Class'"),
        (Unset, "Unset.draw_extra gives scale no initial values"),
    ],
)
def test_a_layer_that_cannot_be_one_is_refused(register, layer: object, says: str) -> None:
    def make() -> None:
        register("mine", kind(layer))
        clip_la.create_model("vit_pico", attention="mine", seed=0)

    with pytest.raises(UserError, match=re.escape(says)):
        make()


def test_a_layer_may_be_a_class_or_its_address(register) -> None:
    address = "clip_la.models.attention.softmax:SoftmaxAttention"
    module, _, name = address.partition(":")
    register("by_address", kind(address))
    register("by_class", kind(getattr(sys.modules[module], name)))
    images = torch.randn(2, 3, 32, 32)
    features = [
        clip_la.create_model("vit_pico", attention=each, seed=0).encode_image(images)
        for each in ("softmax", "by_address", "by_class")
    ]
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])


def test_an_installed_package_is_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(MODEL)
    (tmp_path / "mine-1.0.dist-info").mkdir()
    (tmp_path / "mine-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    points = tmp_path / "mine-1.0.dist-info/entry_points.txt"
    points.write_text("[clip_la.plugins]\nmine = my_models\n")
    code = "import clip_la; print('vit_tall' in clip_la.list_models())"
    paths = os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])
    assert python(["-c", code], tmp_path, PYTHONPATH=paths).stdout == "True\n"
    points.write_text("[clip_la.plugins]\nmine = my_models:absent\n")
    code = "from clip_la.cli import main; assert main(['models', '--kinds']) == 2"
    said = python(["-c", code], tmp_path, PYTHONPATH=paths).stderr
    assert said.startswith("clip-la: error: plugin mine of the installed package mine: AttributeError: ")
    assert said.endswith("; mend or uninstall that package\n")
    assert said.count("\n") == 1
