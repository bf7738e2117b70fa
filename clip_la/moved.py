"""Modules that scripts import under their old names: each import says the new one, and gives the same objects."""

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "clip_la.data.augment": "clip_la.data.images.augment",
    "clip_la.data.captions": "clip_la.data.text.captions",
    "clip_la.data.corpora.tiny_imagenet": "clip_la.data.corpora.imagenet_photos",
    "clip_la.data.corpora.tiny_imagenet_folder": "clip_la.data.corpora.photo_folders",
    "clip_la.data.problems": "clip_la.data.shards.problems",
    "clip_la.data.rows": "clip_la.data.stream.samples",
    "clip_la.data.tokenizer": "clip_la.data.text.tokenizer",
    "clip_la.zeroshot.cache": "clip_la.zeroshot.model.classifier",
    "clip_la.zeroshot.classes": "clip_la.zeroshot.labels.classes",
    "clip_la.zeroshot.classifier": "clip_la.zeroshot.model.classifier",
    "clip_la.zeroshot.evaluate": "clip_la.zeroshot.tasks.classification",
    "clip_la.zeroshot.metrics": "clip_la.zeroshot.tasks.metrics",
    "clip_la.zeroshot.load": "clip_la.zeroshot.model.load",
    "clip_la.zeroshot.prompts": "clip_la.zeroshot.labels.prompts",
    "clip_la.zeroshot.tasks.entries": "clip_la.zeroshot.suite",
}
NAMES = {
    "NUM_DRAWS": "NUM_UNIFORMS",
    "Picture": "FolderImage",
    "StreamedRows": "SampleDecoder",
    "Subject": "EvalModel",
    "TestSet": "EvalDataset",
    "load_subject": "load_eval_model",
    "pictures_below": "images_below",
    "read_picture": "read_image",
}


def _with_dotted_parts(decoder: type) -> type:
    """A SampleDecoder under its earlier name and with its earlier method, whose samples called their parts ".png"."""

    def picture(self: Any, sample: Mapping[str, Any], uniforms: Sequence[float]) -> Any:
        return self._image({name.removeprefix("."): part for name, part in sample.items()}, uniforms)

    return type("StreamedRows", (decoder,), {"_picture": picture})


class _Moved(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        home = MODULES[module.__name__]
        warnings.warn(f"{module.__name__} is now {home}", DeprecationWarning, stacklevel=2)
        new = importlib.import_module(home)

        def attribute(name: str) -> Any:
            found = getattr(new, NAMES.get(name, name))
            return _with_dotted_parts(found) if name == "StreamedRows" else found

        module.__getattr__ = attribute  # type: ignore[method-assign]


def install() -> None:
    """Lets the old names be imported; once is enough. They are looked for last."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
