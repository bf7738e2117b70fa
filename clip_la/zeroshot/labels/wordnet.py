"""WordNet's hierarchy of nouns, and how far a wrong class is from the right one in it.

The ids of ImageNet are those of WordNet 3.0 (Fellbaum 1998). No Python package ships its data; Debian's wordnet-base
does, and any folder with WordNet 3.0's data.noun serves (WordNet's own variables WNSEARCHDIR and WNHOME are heeded).
"""

import functools
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from clip_la.errors import UserError

FILE = "data.noun"
# Debian and Ubuntu, WordNet's own installer, Homebrew.
FOLDERS = ("/usr/share/wordnet", "/usr/local/WordNet-3.0/dict", "/opt/homebrew/opt/wordnet/dict")
# "is a kind of", and "is an instance of" for names ("Mount Everest").
HYPERNYM_POINTERS = ("@", "@i")
NOUN = "n"
HEXADECIMAL = 16


def find() -> Path | None:
    """The folder with WordNet 3.0's data.noun, or None."""
    home = os.environ.get("WNHOME")
    given = [os.environ.get("WNSEARCHDIR"), f"{home}/dict" if home else None]
    for folder in (*filter(None, given), *FOLDERS):
        if (Path(folder) / FILE).is_file():
            return Path(folder)
    return None


def read_hypernyms(path: Path) -> dict[str, tuple[str, ...]]:
    """Id -> the ids of its direct hypernyms, of all nouns; the format is described in WordNet's wndb(5)."""
    hypernyms: dict[str, tuple[str, ...]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line[:1].isdigit():
            continue  # the licence, at the top
        fields = line.split(" | ")[0].split()
        # offset, file, type, number of words (hexadecimal), words with their numbers, number of pointers, pointers.
        start = 4 + 2 * int(fields[3], HEXADECIMAL)
        pointers = [fields[i : i + 4] for i in range(start + 1, start + 1 + 4 * int(fields[start]), 4)]
        hypernyms[f"n{fields[0]}"] = tuple(
            f"n{offset}" for kind, offset, part, _ in pointers if kind in HYPERNYM_POINTERS and part == NOUN
        )
    return hypernyms


class Hierarchy:
    """Distances in a hierarchy given by each node's direct parents; a node may have several."""

    def __init__(self, parents: Mapping[str, tuple[str, ...]]) -> None:
        self.parents = parents

    @functools.cache  # noqa: B019 (one hierarchy lives as long as the program)
    def ancestors(self, node: str) -> Mapping[str, int]:
        """Ancestor -> the least number of steps up to it; the node itself is at 0."""
        steps = {node: 0}
        # Breadth first: the first way up that is found is the shortest.
        waiting = deque([node])
        while waiting:
            current = waiting.popleft()
            for parent in self.parents[current]:
                if parent not in steps:
                    steps[parent] = steps[current] + 1
                    waiting.append(parent)
        return steps

    def depth(self, node: str) -> int:
        """The number of nodes on the shortest way from a root to `node`, both counted."""
        steps = self.ancestors(node)
        return 1 + min(count for above, count in steps.items() if not self.parents[above])

    def similarity(self, a: str, b: str) -> float:
        """Wu and Palmer's similarity (1994, "Verb semantics and lexical selection", section 4): 1 for equal nodes.

        2 d / (2 d + steps from a + steps from b) for the common ancestor, at depth d, that makes it largest; 0 where
        there is none.
        """
        from_a, from_b = self.ancestors(a), self.ancestors(b)
        best = 0.0
        for common in from_a.keys() & from_b.keys():
            twice = 2 * self.depth(common)
            best = max(best, twice / (twice + from_a[common] + from_b[common]))
        return best

    def is_ancestor(self, a: str, b: str) -> bool:
        """Whether a is b or stands above it."""
        return a in self.ancestors(b)


@functools.cache
def installed() -> Hierarchy | None:
    """The hierarchy of the installed WordNet, or None."""
    folder = find()
    return None if folder is None else Hierarchy(read_hypernyms(folder / FILE))


def hierarchy_of(ids: Iterable[str]) -> Hierarchy | None:
    """The installed hierarchy, if it has all of these ids; raises UserError where it is another version of WordNet."""
    hierarchy = installed()
    if hierarchy is None:
        return None
    missing = [key for key in ids if key not in hierarchy.parents]
    if missing:
        raise UserError(f"{find()} is not WordNet 3.0: it has no {missing[0]}; Debian's wordnet-base is")
    return hierarchy


def scores(
    hierarchy: Hierarchy,
    ids: Sequence[str],
    labels: Int[np.ndarray, " samples"],
    predicted: Int[np.ndarray, " samples"],
) -> tuple[Float[np.ndarray, " samples"], np.ndarray]:
    """For each image: the similarity of its class and the predicted one, and whether the latter is that or above it.

    An image of a husky that is called "dog" is called rightly, if vaguely: the second value is True (the measure of
    Deng et al. 2012, "Hedging your bets", with their reward left out).
    """
    # Each pair of classes once: there are far fewer than images.
    pairs, places = np.unique(np.stack([labels, predicted], 1), axis=0, return_inverse=True)
    named = [(ids[truth], ids[guess]) for truth, guess in pairs.tolist()]
    similar = np.array([hierarchy.similarity(truth, guess) for truth, guess in named])
    above = np.array([hierarchy.is_ancestor(guess, truth) for truth, guess in named])
    places = places.reshape(-1)
    return similar[places], above[places]
