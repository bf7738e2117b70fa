"""The text classifier: one unit vector a class, the mean over its prompts, built in a stream and cached on disk.

A class's vector is the normalised mean of its prompts' normalised text features (Radford et al. 2021, section 3.1.4, as
open_clip and CLIP_benchmark do). Unlike there, texts of equal length go together: prompts of one chunk of classes are
sorted by length and cut into batches trimmed to their longest. Chunks, and so batches, do not depend on the number of
ranks or workers: any number of them gives the same digits.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from clip_la import distributed as ranks
from clip_la.atomic import atomic_write
from clip_la.data.text.tokenizer import caption_lengths, trim
from clip_la.zeroshot.labels.classes import ClassSet, content_hash
from clip_la.zeroshot.labels.prompts import PromptSet
from clip_la.zeroshot.model.eval_model import EvalModel, Tokenize, matmul_precision

# Prompts tokenised and sorted together: enough for long runs of equal length, little enough to share over ranks.
PROMPTS_PER_CHUNK = 8192
# Tokens in one batch of texts on an accelerator and on a CPU, where larger batches only cost memory.
TOKENS_PER_BATCH = {"cuda": 65536, "cpu": 8192}
# Raised when the way a classifier is computed changes: older files are then stale.
FORMAT = "2"
ROWS = "classifier"
# Below this many prompts starting worker processes costs more than they save.
PROMPTS_WORTH_WORKERS = 20000


@dataclass(frozen=True)
class Chunk:
    """The prompts of consecutive classes: their tokens, class by class, and how many each class has."""

    classes: range
    tokens: Int[Tensor, "prompts tokens"]
    counts: Int64[Tensor, " classes"]


class ChunkedPrompts(Dataset):
    """Item i is the i-th of the given ranges of classes, tokenised when asked for: worker processes share the work.

    `trims` says whether the tokens are CLIP's, whose end shows; those of other tokenizers keep their full length.
    """

    def __init__(
        self, classes: ClassSet, prompts: PromptSet, tokenize: Tokenize, chunks: Sequence[range], trims: bool
    ) -> None:
        self.classes, self.prompts, self.tokenize, self.chunks, self.trims = classes, prompts, tokenize, chunks, trims

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> Chunk:
        names, definitions = self.classes.names, self.classes.definitions
        texts = [self.prompts.prompts(names[i], definitions[i]) for i in self.chunks[index]]
        tokens = self.tokenize([text for own in texts for text in own])
        # int32 and trimmed: a tenth of the bytes between processes.
        tokens = (trim(tokens) if self.trims else tokens).int()
        return Chunk(self.chunks[index], tokens, torch.tensor([len(own) for own in texts]))


def plan_chunks(classes: ClassSet, prompts: PromptSet) -> list[range]:
    """Consecutive classes with about PROMPTS_PER_CHUNK prompts together; depends on names and templates alone."""
    # Whole classes, so that each class's mean is taken in one place.
    chunks, start, count = [], 0, 0
    for position, own in enumerate(classes.names):
        count += len(own) * len(prompts.templates)
        if count >= PROMPTS_PER_CHUNK:
            chunks.append(range(start, position + 1))
            start, count = position + 1, 0
    if start < len(classes):
        chunks.append(range(start, len(classes)))
    return chunks


def length_sorted_batches(
    lengths: Int64[Tensor, " prompts"], tokens_per_batch: int
) -> Iterator[tuple[Int64[Tensor, " batch"], int]]:
    """Batches of prompts, the longest first: (positions, length to trim to), each within the budget of tokens."""
    # Longest first: memory runs out at once or not at all.
    order = lengths.argsort(stable=True, descending=True)
    ordered = lengths[order].tolist()
    start = 0
    while start < len(ordered):
        longest = ordered[start]
        size = max(1, tokens_per_batch // longest)
        yield order[start : start + size], longest
        start += size


def encode_tokens(
    eval_model: EvalModel, tokens: Int64[Tensor, "texts tokens"], precision: str
) -> Float[Tensor, "texts embed_dim"]:
    """Unit features of texts in their order, on the model's device; encoded in length-sorted batches."""
    # Tokenizers other than CLIP's pad in ways of their own: their texts keep the full length.
    budget = TOKENS_PER_BATCH["cpu" if eval_model.device.type == "cpu" else "cuda"]
    lengths = caption_lengths(tokens) if eval_model.trims_text else torch.full((len(tokens),), tokens.shape[1])
    features: Tensor | None = None
    for rows, longest in length_sorted_batches(lengths, budget):
        encoded = eval_model.encode_texts(tokens[rows, :longest], precision)
        if features is None:
            features = encoded.new_empty(len(tokens), encoded.shape[1])
        features[rows.to(encoded.device)] = encoded
    assert features is not None
    return features


class ClassifierCache:
    """A folder of classifiers, each under the hash of all that it depends on; stale or damaged ones are built anew.

    Keys are small dictionaries of strings; they stand in the file, beside its checksum.

    Args:
        folder: by default $XDG_CACHE_HOME/clip_la/classifiers, or ~/.cache/clip_la/classifiers.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.folder = Path(base) / "clip_la" / "classifiers" if folder is None else Path(folder)

    def path(self, key: Mapping[str, str]) -> Path:
        """Where the classifier of `key` lies or would lie."""
        return self.folder / f"{content_hash(dict(key))}.safetensors"

    def load(self, key: Mapping[str, str]) -> Float[Tensor, "classes embed_dim"] | None:
        """The rows of `key`, float32 on the CPU, or None; says in one line on stderr why a file is not used."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                notes = file.metadata() or {}
                rows = file.get_tensor(ROWS)
            wrong = None
            # The name is a hash of the key; the key itself tells other content under the same name.
            if notes.get("key") != self._notes(key, rows)["key"]:
                wrong = "stale: made from other weights, names or templates, or by another version"
            elif notes.get("checksum") != self._notes(key, rows)["checksum"]:
                wrong = "damaged (checksum)"
        except (SafetensorError, OSError) as error:
            wrong = f"damaged ({error})"
        if wrong is None:
            return rows
        print(f"cached classifier {path} is {wrong}; building it anew", file=sys.stderr)
        return None

    def store(self, key: Mapping[str, str], rows: Float[Tensor, "classes embed_dim"]) -> Path:
        """Writes the rows of `key`, whole or not at all."""
        path = self.path(key)
        data = save({ROWS: rows.contiguous()}, self._notes(key, rows))
        with atomic_write(path) as stream:
            stream.write(data)
        return path

    def _notes(self, key: Mapping[str, str], rows: Tensor) -> dict[str, str]:
        """What stands in the file beside the rows."""
        checksum = hashlib.blake2b(rows.contiguous().numpy().tobytes()).hexdigest()
        return {"key": json.dumps({**key, "format": FORMAT}, sort_keys=True), "checksum": checksum}


def build_classifier(
    eval_model: EvalModel,
    classes: ClassSet,
    prompts: PromptSet,
    *,
    precision: str = "float32",
    num_workers: int = 0,
    cache: ClassifierCache | None = None,
    progress: bool = True,
) -> Float[Tensor, "classes embed_dim"]:
    """Float32 unit vectors on the model's device; read from `cache` where it has them. All ranks must call it.

    Raises:
        UserError: templates that want definitions which the classes lack.
    """
    prompts.check(classes)
    key = {
        "text_tower": eval_model.text_hash if cache else "",
        "names": classes.hash,
        "templates": prompts.hash,
        "precision": precision,
        "device": eval_model.device.type,
    }
    # Rank 0 alone looks, so that all ranks take the same way.
    found = ranks.all_gather(lambda: cache.load(key) if cache and ranks.rank() == 0 else None)[0]
    if found is not None:
        return found.to(eval_model.device)
    chunks = plan_chunks(classes, prompts)
    mine = chunks[ranks.rank() :: ranks.world_size()]
    num_prompts = sum(map(len, classes.names)) * len(prompts.templates)
    workers = min(num_workers, len(mine)) if num_prompts >= PROMPTS_WORTH_WORKERS else 0
    chunked = ChunkedPrompts(classes, prompts, eval_model.tokenize, mine, eval_model.trims_text)
    # A generator of its own: a loader draws a number, and an evaluation must not move a training's random state.
    loader = DataLoader(chunked, batch_size=None, num_workers=workers, generator=torch.Generator())

    @torch.inference_mode()
    def work() -> list[tuple[int, Tensor]]:
        hidden = not progress or ranks.rank() != 0
        bar = tqdm(total=sum(map(len, mine)), desc="text classifier", unit="class", disable=hidden or None, leave=False)
        rows = []
        with bar, matmul_precision(precision):
            for chunk in loader:
                features = encode_tokens(eval_model, chunk.tokens.long(), precision)
                # One segment a class, summed in order: unlike a scatter-add, the same digits every time.
                means = torch.segment_reduce(features, "mean", lengths=chunk.counts.to(features.device))
                rows.append((chunk.classes.start, nn.functional.normalize(means, dim=-1).cpu()))
                bar.update(len(chunk.classes))
        return rows

    parts = [part for own in ranks.all_gather(work) for part in own]
    built = torch.cat([rows for _, rows in sorted(parts, key=lambda part: part[0])])
    if cache and ranks.rank() == 0:
        cache.store(key, built)
    return built.to(eval_model.device)
