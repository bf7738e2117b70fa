"""The wide corpus: further artists and icons from npm packages, without what is held out. On stand-in packages."""

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from clip_la.commands import data as command
from clip_la.data.corpora import npm
from clip_la.data.corpora.clip_art import clip_art
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


def clip_art_svg(title, tags, drawing='<rect width="300pt" height="200pt" fill="red"/>', description=""):
    bag = "".join(f"<rdf:li>{tag}</rdf:li>" for tag in tags)
    return (
        '<svg width="400pt" height="300pt" xmlns="http://www.w3.org/2000/svg"><metadata><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/" '
        f'xmlns="http://web.resource.org/cc/"><Work><dc:title>{title}</dc:title><dc:description>{description}'
        f"</dc:description><dc:subject><rdf:Bag>{bag}</rdf:Bag></dc:subject></Work></rdf:RDF></metadata>{drawing}</svg>"
    )


def rect(height):
    return f'<rect width="300pt" height="{height}pt" fill="blue"/>'


@pytest.fixture
def art(tmp_path):
    """Open Clip Art in small: each file is one case of what is kept or left out."""
    files = {
        "tools/hammer_01.svg": clip_art_svg("Hammer", ["tool", "hammer", "hash(0x89c79d4)"]),
        "food/fruit/pie_bw.svg": clip_art_svg("Apple Pie (B and W)", ["apple"], rect(90), "An apple pie with cream."),
        "animals/damselfly.svg": clip_art_svg("damselfly_02", ["damselfly"], rect(95), "Made with inkscape as svg"),
        "animals/birds/cigno.svg": clip_art_svg("Cigno", ["bird"], rect(100)),  # Italian: nothing bears it out
        "food/fruit/wine.svg": clip_art_svg("Bowl of grapes", ["fruit", "bowl"], rect(105)),  # held out
        "food/fruit/bowl.svg": clip_art_svg("Fruit bowl", ["fruit", "grapes"], rect(106)),  # held out by its tags
        "computer/mouse.svg": clip_art_svg("Mouse", ["mouse"], rect(110)),
        "tools/text.svg": clip_art_svg("Saw", ["saw"], "<text>saw</text>"),
        "tools/empty.svg": clip_art_svg("Nail", ["nail"], '<rect width="5pt" height="5pt"/>'),
        "tools/copy.svg": clip_art_svg("Mallet", ["mallet"]),  # the hammer's picture
        "tools/set.svg": clip_art_svg("Tool icons", ["tool"], rect(120)),
        "tools/long.svg": clip_art_svg("A tool that has a name of too many words", ["tool"], rect(125)),
        "tools/damaged.svg": "<svg><metadata>",
        **{f"office/{i}.svg": clip_art_svg("Pen collection", ["pen"], rect(130 + i)) for i in range(2)},
        **{f"office/pen{i}.svg": clip_art_svg("Pen", ["pen"], rect(140 + i)) for i in range(5)},  # a series
    }
    for name, text in files.items():
        path = tmp_path / "art" / "usr/share/openclipart/svg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "art"


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


def test_what_is_held_out_stays_out(modules, art):
    picture = IconSet(modules, "@iconify-json/game-icons").svg("test-picture", "black")
    assert picture is not None
    found = wide_entries(modules, art, CONCEPTS, DEALT, set(), quiet=True)
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
        "openclipart": {"mallet", "apple pie", "damselfly"},
    }
    assert set(found.credits) == set(by_artist)
    assert all(entry.caption == entry.meta["captions"][0] for entry in found.entries)


def test_clip_art_is_said_to_be_what_its_library_says(art):
    found = {drawing.title: drawing.entry() for drawing in clip_art(art)}
    assert set(found) == {"hammer", "mallet", "apple pie", "damselfly", "nail", "bowl of grapes", "fruit bowl"}
    pie = found["apple pie"].meta
    assert pie["captions"][1:] == ["An apple pie with cream", "an apple pie in black and white"]
    assert pie["caption"].endswith("of an apple pie in black and white")
    assert pie["origin"] == "food/fruit/pie_bw.svg"
    assert found["damselfly"].meta["captions"][1:] == ["a damselfly"]  # its description is about the file
    assert found["hammer"].meta["tags"] == "tool"


def test_clip_art_is_drawn_in_the_middle_of_a_square_whatever_its_units(art):
    with Image.open(BytesIO(render(clip_art(art)[0].entry().svg, 40))) as image:
        columns, rows = (np.flatnonzero((np.asarray(image)[..., 0] < 128).any(axis)) for axis in (0, 1))
    # 400 x 300 points on 40 pixels: the first drawing covers 300 x 95 of them, from the top left corner.
    assert (columns[0], columns[-1]) == (0, 29)
    assert rows[0] == 5
    assert abs(rows[-1] - 14) <= 1


def test_clip_art_that_is_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no SVG drawings with titles; .* openclipart-svg"):
        clip_art(tmp_path / "empty")
    with pytest.raises(UserError, match="is no folder; name the one that openclipart-svg was unpacked to"):
        clip_art(tmp_path / "absent")


def test_pictures_of_the_test_splits_are_not_added(modules, art):
    everything = wide_entries(modules, art, CONCEPTS, DEALT, set(), quiet=True).entries
    taken = [next(e for e in everything if e.meta["artist"] == name) for name in ("game-icons", "openclipart")]
    tests = {pixel_hash(render(entry.svg, MARK_SIZE_PX)) for entry in taken}
    rest = wide_entries(modules, art, CONCEPTS, DEALT, tests, quiet=True).entries
    assert rest == [entry for entry in everything if entry not in taken]


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
    for option in ("--npm", "--clip-art"):
        with pytest.raises(UserError, match=f"{option} is for --wide"):
            command.main(["starter", str(tmp_path / "out"), option, str(tmp_path)])
