"""Old module names give the objects of the new ones, and say so."""

import importlib
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clip_la.data.images.augment import NUM_UNIFORMS, Augmentation
from clip_la.data.images.limits import Limits
from clip_la.data.stream.samples import SampleDecoder
from clip_la.data.text.captions import Captions
from clip_la.moved import MODULES


@pytest.mark.parametrize(("old", "new"), MODULES.items())
def test_an_old_name_is_imported_with_a_warning_that_says_the_new_one(old: str, new: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        module = importlib.import_module(old)
    home = importlib.import_module(new)
    public = [name for name in vars(home) if not name.startswith("_")]
    assert public
    assert all(getattr(module, name) is getattr(home, name) for name in public)
    with pytest.raises(AttributeError):
        _ = module.nothing_of_this_name


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("clip_la.data.corpora.scenes", "clip_la.data.corpora.scene_maker", "Actor Scene SceneMaker background_pixels"),
        ("clip_la.data.stream.in_memory", "clip_la.data.stream.in_memory_pool", "Crops InMemoryDataset"),
        ("clip_la.data.stream.stream", "clip_la.data.stream.order", "WeightedSource"),
        ("clip_la.data.stream.stream", "clip_la.data.stream.position", "Position RankState"),
        ("clip_la.sweep.plan", "clip_la.sweep.planned_run", "PlannedRun folder_of layers_of"),
    ],
)
def test_what_left_a_module_is_still_found_in_it(old: str, new: str, names: str) -> None:
    before, home = importlib.import_module(old), importlib.import_module(new)
    for name in names.split():
        assert getattr(before, name) is getattr(home, name)
        assert getattr(home, name).__module__ == new


def test_old_functions_are_found_by_from_imports() -> None:
    code = "from clip_la.zeroshot.load import load_subject; from clip_la.zeroshot.model.load import load_eval_model; "
    subprocess.run([sys.executable, "-W", "ignore", "-c", code + "assert load_subject is load_eval_model"], check=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_decoder_under_its_old_name_takes_parts_by_their_old_names() -> None:
    data, uniforms = io.BytesIO(), [0.5] * NUM_UNIFORMS
    Image.new("RGB", (9, 7), (10, 200, 30)).save(data, "PNG")
    arguments = Captions(), Augmentation(8, 1.0), Limits()
    old = importlib.import_module("clip_la.data.rows").StreamedRows(*arguments)
    new = SampleDecoder(*arguments)
    images = old._picture({".png": data.getvalue()}, uniforms), new._image({"png": data.getvalue()}, uniforms)
    np.testing.assert_array_equal(*images)
