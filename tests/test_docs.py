"""The Markdown pages say what is there: links, anchors, paths and commands."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from braceexpand import braceexpand

from clip_la import cli

REPO = Path(__file__).parents[1]
# Not what lies in a checkout besides: environments, runs, corpora.
FOLDERS = [REPO / name for name in ("clip_la", "kernels", "configs", "scripts", "tests", "results", "docs")]
PAGES = sorted([*REPO.glob("*.md"), REPO / "data" / "README.md", *(p for f in FOLDERS for p in f.rglob("*.md"))])
# Findings name files as they were on their day; only their links are held.
LOG = REPO / "results" / "LOG.md"
LIVING = [page for page in PAGES if page != LOG]
FENCE = re.compile(r"^```[^\n]*\n.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
# Folders of the repository; `data/` holds what commands build, so of it pages name only what is tracked.
PATH = re.compile(r"(?<![\w/.<~=-])(?:clip_la|kernels|configs|scripts|tests|results|docs)/[\w./{},*@+-]*")
# Names in capitals stand for files of the reader's own.
FILE_NAME = re.compile(r"(?:[\w-]+/)*[a-z_0-9]+\.(?:py|sh|yaml)")
# What commands write.
WRITTEN = {"config.yaml"}
OPTION = re.compile(r"--[A-Za-z][\w.-]*")
# Verbs with verbs of their own.
NESTED = {"data", "scaling", "bench"}
VERB = re.compile(r"[a-z][a-z-]*")
# Options that no help lists.
ALWAYS = ("--help", "--print_config", "--plugin")


def ids(page: Path) -> str:
    return str(page.relative_to(REPO))


def prose(page: Path) -> str:
    """A page without its fenced blocks and code spans."""
    return CODE.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors GitHub gives a page's headings."""
    found: list[str] = []
    for heading in HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        repeats = found.count(anchor)
        found += [anchor] + ([f"{anchor}-{repeats}"] if repeats else [])
    return frozenset(found)


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b_c` & d, e\n```\n# not one\n```\n## Twice\n## Twice\n### [Link](x.md) 2026-11: x\n")
    assert anchors(page) == {"a-b_c--d-e", "twice", "twice-1", "link-2026-11-x"}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.is_relative_to(REPO) or not target.exists():
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            wrong.append(f"{link}: no such heading; there are {', '.join(sorted(anchors(target)))}")
    assert not wrong, f"{page}: " + "; ".join(wrong)


def named_paths(text: str) -> Iterator[str]:
    """Paths from the root of the repository that a page names, braces expanded."""
    for path in PATH.findall(text):
        yield from braceexpand(path.rstrip(".,"))


@pytest.mark.parametrize("page", LIVING, ids=ids)
def test_named_paths_exist(page: Path) -> None:
    missing = {path for path in named_paths(page.read_text(encoding="utf-8")) if not any(REPO.glob(path.rstrip("/")))}
    assert not missing, f"{page} names {', '.join(sorted(missing))}"


@cache
def endings() -> frozenset[str]:
    """Every script and configuration by each ending of its path."""
    files = [path.relative_to(REPO).parts for folder in FOLDERS for path in folder.rglob("*.*")]
    return frozenset("/".join(parts[i:]) for parts in files for i in range(len(parts)))


@pytest.mark.parametrize("page", LIVING, ids=ids)
def test_named_files_exist(page: Path) -> None:
    """Also those named without their folder, such as `stream.py`."""
    spans = CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    missing = {span for span in spans if FILE_NAME.fullmatch(span)} - endings() - WRITTEN
    assert not missing, f"{page} names {', '.join(sorted(missing))}"


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each `clip-la ...` in a page's blocks and code spans, continued lines joined, comments dropped."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(FENCE.findall(text)).replace("\\\n", " ")
    for line in [*blocks.splitlines(), *CODE.findall(FENCE.sub("", text))]:
        found = re.search(r"(?:^|[ ;(])(?:clip-la|-m clip_la|scripts/train_(?:torchrun|slurm)\.sh) +(.*)", line.strip())
        if found is None:
            continue
        is_launcher = "scripts/train_" in found[0]
        with contextlib.suppress(ValueError):  # a quotation mark of the prose
            yield [*(["train"] if is_launcher else []), *shlex.split(found[1], comments=True)]


@cache
def help_of(*verbs: str) -> str:
    """What `clip-la VERBS --help` prints; raises UserError for an unknown verb."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.run([*verbs, "--help"])
    return printed.getvalue()


def verbs_of(words: list[str]) -> tuple[str, ...]:
    """The verb of a command, and its own verb where it has some; a word in capitals or with bars stands for several."""
    return tuple(word for word in words[: 2 if words[0] in NESTED else 1] if VERB.fullmatch(word))


@pytest.mark.parametrize("page", LIVING, ids=ids)
def test_commands_exist(page: Path) -> None:
    wrong = []
    for words in commands(page):
        verbs = verbs_of(words)
        known = {*OPTION.findall(help_of(*verbs)), *ALWAYS} if verbs else {*ALWAYS}
        wrong += [f"{' '.join(words)}: no {word}" for word in words if OPTION.fullmatch(word) and word not in known]
    assert not wrong, f"{page}: " + "; ".join(wrong)


@cache
def known_options() -> frozenset[str]:
    """Every option of the commands that any page names, and of the scripts."""
    verbs = {verbs_of(words) for page in LIVING for words in commands(page)} - {()}
    sources = [*REPO.glob("scripts/*.py"), *REPO.glob("kernels/clip_la_kernels/*.py")]
    texts = [*(help_of(*each) for each in verbs), *(path.read_text(encoding="utf-8") for path in sources)]
    return frozenset(option for text in texts for option in OPTION.findall(text)).union(ALWAYS)


@pytest.mark.parametrize("page", LIVING, ids=ids)
def test_options_named_alone_exist(page: Path) -> None:
    spans = CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    options = {option for span in spans if span.startswith("--") for option in OPTION.findall(span)}
    missing = options - known_options()
    assert not missing, f"{page} names {', '.join(sorted(missing))}"


def test_pages_name_commands() -> None:
    """The search for commands finds some, of each verb that takes any."""
    verbs = {words[0] for page in LIVING for words in commands(page) if words}
    assert set(cli.VERBS) - verbs <= {"demo"}
