"""Scenes: captions are true of the pictures, every scene is a function of seed and number, whoever makes it."""

import json
import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from clip_la.data.corpora.concepts import Concept, Deal
from clip_la.data.corpora.names import Name
from clip_la.data.corpora.scene_maker import Actor, SceneMaker, background_pixels
from clip_la.data.corpora.scene_words import BACKGROUNDS, COLORS, LAYOUTS, sized
from clip_la.data.corpora.scenes import SceneSource, build_scenes, cast_of
from clip_la.data.shards.reader import read_samples
from clip_la.data.tools.pack import pack
from clip_la.errors import UserError

SIZE = 48
SHAPES = {
    "circle": '<circle cx="5" cy="5" r="5" fill="{}"/>',
    "square": '<rect width="10" height="10" fill="{}"/>',
    "bar": '<rect y="3" width="10" height="4" fill="{}"/>',
}
HUES = {"crimson": "#dc143c", "navy": "#000080", "olive": "#808000", "teal": "#008080"}
CAST = [
    Actor(
        f"{hue} {shape}",
        f"a {hue} {shape}",
        "test",
        f"{i:04X}",
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10">{svg.format(color)}</svg>',
    )
    for i, (hue, color, shape, svg) in enumerate((h, c, s, v) for h, c in HUES.items() for s, v in SHAPES.items())
]


def scenes(count: int, seed: int = 0, size: int = SIZE):
    return list(SceneSource(CAST, count, seed, size).read(0, 0, count))


@pytest.fixture(scope="module")
def many():
    return scenes(400)


def center(thing):
    left, top, right, bottom = thing["box_px"]
    return (left + right) / 2, (top + bottom) / 2


def test_captions_are_true(many):
    """Places are read back from the words alone and compared with the boxes."""
    rules = {
        r"^(.+?) (?:to the )?left of (.+?) (?:on|in front)": lambda a, b: a[0] < b[0],
        r"^(.+?) (?:to the )?right of (.+?) (?:on|in front)": lambda a, b: a[0] > b[0],
        r"^(.+?) on the left and (.+?) on the right": lambda a, b: a[0] < b[0],
        r"^(.+?) (?:below|under) (?!.* and )(.+?) (?:on|in front)": lambda a, b: a[1] > b[1],
        r"^([^,]+?) at the top and (.+?) at the bottom (?:on|in front)": lambda a, b: a[1] < b[1],
        r"^((?:(?!above).)+) above ((?:(?! above | and ).)+?) (?:on|in front)": lambda a, b: a[1] < b[1],
    }
    used = set()
    for raw in many:
        places = {thing["name"]: center(thing) for thing in raw.meta["objects"]}
        for rule, holds in rules.items():
            match = re.search(rule, raw.caption)
            if match and len(places) == 2:
                first, second = (re.sub("^(a|an) (big |small )?", "", text) for text in match.groups())
                assert holds(places[first], places[second]), raw.caption
                used.add(rule)
    assert used == set(rules)


def test_corners_sizes_and_rows_are_true(many):
    for raw in many:
        things, half = raw.meta["objects"], SIZE / 2
        corner = re.search(r"^\S+ \S+ \S+ (?:at|in) the (top|bottom) (left|right)", raw.caption)
        if corner and len(things) == 1:
            x, y = center(things[0])
            assert (y < half, x < half) == (corner[1] == "top", corner[2] == "left")
        row = re.search(r"(\S+ \S+) between a (\S+ \S+) and a (\S+ \S+) ", raw.caption)
        if row:
            x = {thing["name"]: center(thing)[0] for thing in things}
            assert x[row[2]] < x[row[1]] < x[row[3]]
        side = {thing["name"]: thing["box_px"][2] - thing["box_px"][0] for thing in things}
        big, small = (re.search(rf"\b{word} (\S+ \S+)", raw.caption) for word in ("big", "small"))
        assert (big is None) == (small is None)
        if big and small:
            assert side[big[1]] > 1.4 * side[small[1]]


def test_pictures_show_what_the_boxes_say(many):
    for raw in many[:80]:
        pixels = np.asarray(Image.open(BytesIO(raw.image)).convert("RGB"))
        assert pixels.shape == (SIZE, SIZE, 3)
        colors = (raw.meta["colors"] * 2)[:2]
        expected = background_pixels(raw.meta["background"], tuple(colors), SIZE)
        outside = np.ones((SIZE, SIZE), bool)
        for thing in raw.meta["objects"]:
            left, top, right, bottom = thing["box_px"]
            assert 0 <= left < right <= SIZE
            assert 0 <= top < bottom <= SIZE
            assert outside[top:bottom, left:right].all(), "things overlap"
            outside[top:bottom, left:right] = False
            # The shape's own colour is in the middle of its box, whatever the shape.
            hue = HUES[thing["name"].split()[0]].lstrip("#")
            wanted = np.array([int(hue[i : i + 2], 16) for i in (0, 2, 4)])
            middle = pixels[(top + bottom) // 2, (left + right) // 2].astype(int)
            assert np.abs(middle - wanted).max() <= 2
        assert (pixels[outside] == expected[outside]).all()


def test_everything_occurs(many):
    assert {raw.meta["layout"] for raw in many} == set(LAYOUTS)
    assert {raw.meta["background"] for raw in many} == set(BACKGROUNDS)
    assert {color for raw in many for color in raw.meta["colors"]} == set(COLORS)
    assert {thing["name"] for raw in many for thing in raw.meta["objects"]} == {actor.name for actor in CAST}
    assert len({raw.caption for raw in many}) > 390
    assert all("{" not in raw.caption and "  " not in raw.caption for raw in many)


def test_a_scene_hangs_on_seed_and_number_alone(many):
    source = SceneSource(CAST, 5000, 0, SIZE)
    assert list(source.read(0, 17, 20)) == many[17:20]
    assert source.sizes() == [2000, 2000, 1000]
    assert [raw.caption for raw in scenes(20, seed=1)] != [raw.caption for raw in many[:20]]
    larger = scenes(20, size=96)
    assert [raw.caption for raw in larger] == [raw.caption for raw in many[:20]]
    assert Image.open(BytesIO(larger[0].image)).size == (96, 96)


def test_other_drawings_make_other_scenes(tmp_path):
    (tmp_path / "a.svg").write_text("<svg/>")
    cast = [CAST[0]._replace(svg=tmp_path / "a.svg"), *CAST[1:]]

    def names(actors=cast, *settings):
        return list(SceneSource(actors, *(settings or (40, 7, 32))).names())

    before = names()
    assert before == names()
    (tmp_path / "a.svg").write_text("<gvs/>")
    others = [
        names(),
        names([*cast[:-1], cast[-1]._replace(svg="<svg/>")]),
        names([cast[0]._replace(name="x"), *cast[1:]]),
    ]
    others += [names(cast[:-1]), names(cast, 41, 7, 32), names(cast, 40, 8, 32), names(cast, 40, 7, 33), before]
    assert all(others.count(own) == 1 for own in others)


def test_workers_change_no_byte(tmp_path):
    for workers in (1, 2):
        source = SceneSource(CAST, 40, 7, 32)
        pack(source, tmp_path / str(workers), per_shard=15, workers=workers, check_pixels=False, quiet=True)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / w).iterdir()} for w in "12")
    assert one == two
    found = [s for name in sorted(one) if name.endswith(".tar") for s in read_samples(str(tmp_path / "1" / name))]
    assert len(found) == 40
    assert all(json.loads(s["json"])["caption"] == s["txt"].decode() for s in found)


def test_held_out_drawings_are_not_cast():
    concepts = [
        Concept((i,), Name(f"thing {i}", f"a thing {i}"), {"twemoji": f"t{i}", "openmoji": f"o{i}"})
        for i in range(1, 5)
    ]
    dealt = Deal(frozenset(["0001"]), {"0002": "twemoji", "0003": "openmoji"})
    assert [(actor.code_point, actor.artist) for actor in cast_of(concepts, dealt)] == [
        ("0002", "openmoji"),
        ("0003", "twemoji"),
        ("0004", "twemoji"),
        ("0004", "openmoji"),
    ]


def test_a_background_that_hides_things_is_not_taken():
    white = [a._replace(svg=re.sub("#[0-9a-f]{6}", "#ffffff", a.svg)) for a in CAST]
    stage = SceneMaker(white, SIZE)
    rng = np.random.default_rng(0)
    colors = {color for _ in range(60) for color in stage.scene(rng.random(64).tolist()).colors}
    assert "white" not in colors
    assert "light gray" not in colors
    assert {"black", "red", "dark blue"} <= colors


def test_a_cast_must_fill_a_scene():
    with pytest.raises(ValueError, match="at least 4 names"):
        SceneMaker(CAST[:3], SIZE)


def test_sized():
    assert sized("an apple", "big") == "a big apple"
    assert sized("grapes", "small") == "small grapes"
    assert sized("the flag of France", "big") == "the flag of France"


@pytest.mark.parametrize(("options", "match"), [({"pairs": 0}, "--pairs 0"), ({"pairs": 1, "size_px": 7}, "--size 7")])
def test_bad_numbers(tmp_path, options, match):
    with pytest.raises(UserError, match=match):
        build_scenes(tmp_path / "out", **options)
