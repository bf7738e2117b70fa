"""The wide corpus: further artists and icons from npm packages, without what is held out. On stand-in packages."""

import json

import pytest

from clip_la.commands import data as command
from clip_la.data.corpora import npm
from clip_la.data.corpora.concepts import Concept, Deal
from clip_la.data.corpora.names import describe, parse_code_point
from clip_la.data.corpora.npm import NPM_PACKAGES, IconSet, npm_modules
from clip_la.data.corpora.render import pixel_hash, render
from clip_la.data.corpora.wide import MARK_SIZE_PX, wide_artists, wide_entries
from clip_la.errors import UserError


def body(number: int) -> str:
    return f'<rect x="{number}" y="2" width="9" height="{number + 3}" fill="currentColor"/>'


def icons(modules, name, drawings, chars=None, aliases=None, **more):
    folder = modules / "@iconify-json" / name
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"version": NPM_PACKAGES[f"@iconify-json/{name}"]}))
    table = {"icons": {key: {"body": text} for key, text in drawings.items()}, "width": 32, "height": 32, **more}
    (folder / "icons.json").write_text(json.dumps({**table, "aliases": aliases or {}}))
    (folder / "chars.json").write_text(json.dumps(chars or {}))


@pytest.fixture
def modules(tmp_path):
    """Four artists and an icon set; grapes are a held-out concept, melons a held-out rendition."""
    root = tmp_path / "node_modules"
    chars = {"1f347": "grapes", "1f348": "melon", "1f34e": "red-apple", "1f34f": "green-apple"}
    drawings = {"grapes": body(1), "melon": body(2), "red-apple": body(3), "green-apple": body(1)}
    icons(root, "noto", drawings, chars)
    icons(root, "fluent-emoji-flat", {"red-apple": body(4), "melon": body(4)}, chars)
    icons(root, "emojione", {"melon": body(5), "flag-for-france": body(6), "grapes": body(7)})
    icons(root, "fxemoji", {"redapple": body(8), "up": body(9)})
    names = ["melon", "bunch-of-grapes", "grape", "sword", "sword-2", "test-picture", "red-wine", "red-sword"]
    icons(root, "game-icons", {name: body(10 + i) for i, name in enumerate(names)})
    return root


CONCEPTS = [
    Concept(parse_code_point(code), describe(parse_code_point(code), raw, aliases), {})
    for code, raw, aliases in [
        ("1F347", ":grapes:", (":red_wine:",)),
        ("1F348", ":melon:", ()),
        ("1F34E", ":red_apple:", ()),
        ("1F34F", ":green_apple:", ()),
        ("1F1EB-1F1F7", ":France:", ()),
        ("1F199", ":UP!_button:", (":up:",)),
    ]
]
DEALT = Deal(frozenset(["1F347"]), {"1F348": "twemoji"})


def test_what_is_held_out_stays_out(modules):
    picture = IconSet(modules, "@iconify-json/game-icons").svg("test-picture", "black")
    assert picture is not None
    found = wide_entries(modules, CONCEPTS, DEALT, set(), quiet=True)
    by_artist = {}
    for entry in found.entries:
        by_artist.setdefault(entry.meta["artist"], set()).add(entry.meta["name"])
    assert by_artist == {
        # The green apple is drawn like the grapes, which are held out.
        "noto": {"melon", "red apple"},
        # One picture under two names is kept once.
        "fluent-emoji-flat": {"melon"},
        "emojione": {"melon", "flag of France"},
        # ":up:" is a button to Unicode and an arrow or a hand to others.
        "fxemoji": {"red apple"},
        "game-icons": {"melon", "grape", "sword", "test picture", "red sword"},
    }
    assert set(found.credits) == set(by_artist)
    assert all(entry.caption == entry.meta["captions"][0] for entry in found.entries)


def test_pictures_of_the_test_splits_are_not_added(modules):
    everything = wide_entries(modules, CONCEPTS, DEALT, set(), quiet=True).entries
    taken = next(entry for entry in everything if entry.meta["artist"] == "game-icons")
    tests = {pixel_hash(render(taken.svg, MARK_SIZE_PX))}
    rest = wide_entries(modules, CONCEPTS, DEALT, tests, quiet=True).entries
    assert [entry.identity for entry in rest] == [e.identity for e in everything if e.identity != taken.identity]


def test_icons_stand_in_their_own_frame(tmp_path):
    icons(tmp_path, "noto", {"a": body(1)}, aliases={"b": {"parent": "a"}, "c": {"parent": "a", "hFlip": True}}, top=-2)
    found = IconSet(tmp_path, "@iconify-json/noto")
    assert 'viewBox="0 -2 32 32"' in found.svg("a", "#123")
    assert 'fill="#123"' in found.svg("a", "#123")
    assert found.svg("b") == found.svg("a")
    assert found.svg("c") is None
    assert found.svg("absent") is None
    assert found.names == ["a"]


def test_artists_are_credited(modules):
    for artist in wide_artists(modules):
        assert all(artist.credit().values())
        assert artist.package.removesuffix(" (npm)") in NPM_PACKAGES


def test_missing_packages(modules, tmp_path, monkeypatch):
    assert npm_modules(modules.parent) == modules
    (modules / "@iconify-json" / "noto" / "package.json").write_text('{"version": "0.0.1"}')
    with pytest.raises(UserError, match=r"lacks @iconify-json/noto@1\.\S+: npm install --prefix .* --ignore-scripts"):
        npm_modules(modules.parent)
    monkeypatch.setenv("CLIP_LA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(npm, "which", lambda name: None)
    with pytest.raises(UserError, match="needs npm, or --npm FOLDER"):
        npm_modules()
    with pytest.raises(UserError, match="--npm is for --wide"):
        command.main(["starter", str(tmp_path / "out"), "--npm", str(tmp_path)])
