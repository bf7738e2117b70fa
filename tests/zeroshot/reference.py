"""An evaluation that is independent of ours: open_clip's own module, transform and tokenizer on the same weights."""

import io
from collections.abc import Sequence

import open_clip
import torch
from PIL import Image
from torch import Tensor

from clip_la.models.clip import CLIP
from clip_la.models.interop import to_open_clip, to_open_clip_config
from clip_la.zeroshot.datasets.records import EvalDataset
from clip_la.zeroshot.labels.classes import ClassSet


class Reference:
    """open_clip's module with the weights of one of our models."""

    def __init__(self, model: CLIP) -> None:
        self.module = open_clip.CLIP(**to_open_clip_config(model.spec)).eval()
        self.module.load_state_dict(to_open_clip(model), strict=False)
        self.transform = open_clip.image_transform(model.spec.image_size, is_train=False)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=model.spec.context_length)

    @torch.no_grad()
    def images(self, pictures: Sequence[bytes]) -> Tensor:
        pixels = [self.transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures]
        return self.module.encode_image(torch.stack(pixels), normalize=True)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        return self.module.encode_text(self.tokenizer(list(texts)), normalize=True)

    def predictions(self, pictures: Sequence[bytes], names: Sequence[str], template: str) -> list[int]:
        """The class of each picture."""
        classifier = self.texts([template.replace("{c}", name) for name in names])
        return (self.images(pictures) @ classifier.T).argmax(1).tolist()

    def recall(self, pictures: Sequence[bytes], captions: Sequence[Sequence[str]], k: int) -> tuple[float, float]:
        """Recall at k of pictures by caption, and of captions by picture, of which any counts."""
        owners = torch.tensor([number for number, own in enumerate(captions) for _ in own])
        scores = self.texts([text for own in captions for text in own]) @ self.images(pictures).T
        by_text = (scores.topk(min(k, scores.shape[1]), 1).indices == owners[:, None]).any(1)
        found = owners[scores.T.topk(min(k, len(scores)), 1).indices]
        by_image = (found == torch.arange(len(pictures))[:, None]).any(1)
        return by_text.float().mean().item(), by_image.float().mean().item()


def as_test_set(classes: ClassSet) -> EvalDataset:
    """A test set of these classes and no pictures."""
    return EvalDataset("x", classes, (), "")
