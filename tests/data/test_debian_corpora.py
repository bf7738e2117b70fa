"""Photographs and Fashion-MNIST: the curated map is sound, pictures come through untouched; on stand-in packages."""

import gzip
import json
import struct
from importlib.resources import files
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from clip_la.data.corpora import debian
from clip_la.data.corpora.fashion import CLASSES, build_fashion
from clip_la.data.corpora.photos import build_photos, read_class_map, squared_photo
from clip_la.data.corpora.png import encode_png
from clip_la.data.shards.reader import read_samples
from clip_la.errors import UserError
from clip_la.zeroshot.labels.classes import from_file


def samples(folder):
    return [s for shard in sorted(folder.glob("*.tar")) for s in read_samples(str(shard))]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def test_class_map_is_sound():
    photos = read_class_map()
    assert len(photos) == len({photo.path for photo in photos}) == 245
    by_class = {photo.name: photo.wnid for photo in photos}
    assert len(by_class) == len(set(by_class.values())) == 181
    assert all(by_class[photo.name] == photo.wnid for photo in photos)
    # Independent table: each id has the class's name, or its singular, among its WordNet lemmas.
    table = (files("timm") / "data" / "_info" / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    lemmas = {line[:9]: {lemma.strip().lower() for lemma in line[10:].split(",")} for line in table}
    singular = {"cherries": "cherry", "grapes": "grape", "toilet": "flush toilet"}
    for name, wnid in by_class.items():
        assert singular.get(name, name).lower() in lemmas[wnid], (name, wnid)


@pytest.fixture
def stamps(tmp_path):
    """A stand-in for the stamps' folder: a small picture of its own for each row of the map."""
    root = tmp_path / "usr/share/tuxpaint/stamps"
    for number, photo in enumerate(read_class_map()):
        path = root / photo.path
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        data = rng.integers(0, 256, (5 + number % 4, 7, 4), dtype=np.uint8)
        data[..., 3] = np.where(rng.random(data.shape[:2]) < 0.5, 0, 255)
        Image.fromarray(data, "RGBA").save(path)
        if number % 2:
            path.with_suffix(".txt").write_text(f"Caption {number}.\nde.utf8=Etwas.\n")
    return tmp_path


def test_photos(stamps, tmp_path):
    out = tmp_path / "out"
    manifest = build_photos(out, given=stamps, quiet=True)
    photos = read_class_map()
    found = samples(out / "photos")
    assert len(found) == len(photos) == manifest["splits"]["photos"]["pairs"]
    classes = from_file(out / "photos" / "classes.json")
    for number, (photo, sample) in enumerate(zip(photos, found, strict=True)):
        meta = json.loads(sample["json"])
        assert (meta["class"], meta["wnid"], meta["origin"]) == (photo.name, photo.wnid, photo.path)
        assert classes.ids[int(sample["cls"])] == photo.wnid
        if number % 2:
            assert sample["txt"].decode() == f"Caption {number}."
        original = Image.open(stamps / "usr/share/tuxpaint/stamps" / photo.path)
        side = max(original.size)
        canvas = Image.new("RGB", (side, side), "white")
        canvas.paste(original, ((side - original.width) // 2, (side - original.height) // 2), original)
        assert (pixels(sample["png"]) == np.asarray(canvas)).all()
    assert {json.loads(s["json"])["starter"] for s in samples(out / "photos-starter")} == {
        photo.starter for photo in photos if photo.starter
    }
    assert build_photos(out, given=stamps, quiet=True)["built"] is False
    caption = (stamps / "usr/share/tuxpaint/stamps" / photos[1].path).with_suffix(".txt")
    caption.write_text(caption.read_text().replace("1", "2"))
    with pytest.raises(UserError, match="made from other content of tuxpaint-stamps-default"):
        build_photos(out, given=stamps, quiet=True)


def test_photo_of_odd_size_is_padded_not_scaled():
    data = np.zeros((3, 8, 4), np.uint8)
    data[..., 0], data[..., 3] = 200, 255
    stream = BytesIO()
    Image.fromarray(data, "RGBA").save(stream, "PNG")
    square = pixels(squared_photo(stream.getvalue()))
    assert square.shape == (8, 8, 3)
    assert (square[2:5] == (200, 0, 0)).all()
    assert (square[:2] == 255).all()
    assert (square[5:] == 255).all()


def test_photos_missing(stamps, tmp_path, monkeypatch):
    (stamps / "usr/share/tuxpaint/stamps" / read_class_map()[3].path).unlink()
    with pytest.raises(UserError, match="lacks 1 of 245 images"):
        build_photos(tmp_path / "out", given=stamps, quiet=True)
    with pytest.raises(UserError, match="is no folder"):
        build_photos(tmp_path / "out", given=tmp_path / "absent", quiet=True)
    monkeypatch.setenv("CLIP_LA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(debian, "which", lambda name: None)
    with pytest.raises(UserError, match=r"apt-get download no-such-package.*--from FOLDER"):
        debian.package_files("no-such-package", "usr/share/no-such-folder")


@pytest.mark.parametrize("name", ["CLIP_LA_CACHE", "XDG_CACHE_HOME"])
def test_cache_folder(monkeypatch, tmp_path, name):
    monkeypatch.delenv("CLIP_LA_CACHE", raising=False)
    monkeypatch.setenv(name, str(tmp_path))
    assert debian.cache_folder() == (tmp_path if name == "CLIP_LA_CACHE" else tmp_path / "clip_la")


def write_idx(folder, prefix, images, labels):
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz", "wb") as stream:
        stream.write(struct.pack(">IIII", 2051, *images.shape) + images.tobytes())
    with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz", "wb") as stream:
        stream.write(struct.pack(">II", 2049, len(labels)) + labels.tobytes())


def test_fashion(tmp_path):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (23, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, 23, dtype=np.uint8)
    write_idx(tmp_path / "in", "train", images, labels)
    write_idx(tmp_path / "in", "t10k", images[:9], labels[:9])
    build_fashion(tmp_path / "out", given=tmp_path / "in", quiet=True)
    found = samples(tmp_path / "out" / "train")
    assert len(found) == 23
    assert len(samples(tmp_path / "out" / "test")) == 9
    for sample, image, label in zip(found, images, labels, strict=True):
        assert (pixels(sample["png"]) == image[..., None]).all()
        assert int(sample["cls"]) == label
        assert CLASSES[label].rstrip("s") in sample["txt"].decode()
    assert build_fashion(tmp_path / "out", given=tmp_path / "in", quiet=True)["built"] is False
    write_idx(tmp_path / "in", "t10k", images[1:10], labels[1:10])
    with pytest.raises(UserError, match="made from other content of dataset-fashion-mnist"):
        build_fashion(tmp_path / "out", given=tmp_path / "in", quiet=True)


def test_fashion_damaged(tmp_path):
    images, labels = np.zeros((4, 28, 28), np.uint8), np.zeros(4, np.uint8)
    write_idx(tmp_path, "train", images, labels[:3])
    with pytest.raises(UserError, match="do not fit together"):
        build_fashion(tmp_path / "out", given=tmp_path, quiet=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(UserError, match="cannot be read"):
        build_fashion(tmp_path / "out", given=tmp_path, quiet=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(struct.pack(">IIII", 7, 1, 28, 28)))
    with pytest.raises(UserError, match="magic 7"):
        build_fashion(tmp_path / "out", given=tmp_path, quiet=True)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (3, 9, 3), (200, 300, 3)])
@pytest.mark.parametrize("level", [0, 3])
def test_png_encoder_is_read_back_exactly(shape, level):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = encode_png(array, level)
    image = Image.open(BytesIO(data))
    assert image.mode == ("L" if len(shape) == 2 else "RGB")
    assert (np.asarray(image) == array).all()
    Image.open(BytesIO(data)).verify()


def test_png_encoder_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"shape \(2, 2, 4\)"):
        encode_png(np.zeros((2, 2, 4), np.uint8))
