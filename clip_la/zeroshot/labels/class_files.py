"""Class lists in the forms that people have: text and JSON files to ids, names and definitions in their order.

The order is what class numbers count. Where a file gives numbers (`{"3": "cat"}`, `{"cat": 3}`), these decide and must
be 0 to N - 1, each once; where it gives none, the order of the file does.
"""

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clip_la.data.corpora import imagenet_names as known
from clip_la.errors import UserError, one_line
from clip_la.zeroshot.labels.text_files import lines_of, parse_json, read_text

# What lists are wrapped in: our own files, the hub's ClassLabel and configurations, torchvision's folders.
WRAPPERS = frozenset(("classes", "names", "class_names", "classnames", "categories", "class_label"))
WRAPPERS |= {"id2label", "label2id", "idx_to_class", "class_to_idx"}
# Of a data set's features the one that is a ClassLabel.
OBJECT_WRAPPERS = frozenset(("features", "label"))
OTHER_FORMATS = (".yaml", ".yml", ".csv", ".tsv", ".jsonl", ".xml", ".pbtxt", ".toml", ".py", ".html")
MAX_DIGITS = 9
NUMBER_FIRST = re.compile(r"(\d{1,9})[\s:;,.=]+(\S.*)", re.ASCII)
NUMBER_LAST = re.compile(r"(\S.*?)[\s:;,=]+(\d{1,9})", re.ASCII)
REMARK = re.compile(r"(#|//)\s")
WORDNET_FIRST = re.compile(r"(n\d{8})[\s:;,]+(\S.*)", re.ASCII)


class ClassEntry(NamedTuple):
    """One class: its id (a WordNet id, or its name), the names of its prompts, a sentence that defines it or ""."""

    id: str
    names: tuple[str, ...]
    definition: str = ""


def read_entries(path: Path) -> list[ClassEntry]:
    """The classes of a text file of one name a line, or of a JSON file.

    Raises:
        UserError: not UTF-8, no list of classes, a class without a name, numbers that are not 0 to N - 1.
    """
    if path.suffix.lower() == ".json":
        return from_json(parse_json(read_text(path), path), path)
    if path.suffix.lower() in OTHER_FORMATS:
        raise UserError(f"{path}: a class list is JSON (.json) or one name a line (.txt), not {path.suffix}")
    text = read_text(path)
    if text.strip()[:1] + text.strip()[-1:] in ("[]", "{}"):
        try:
            # literal_eval reads literals and runs nothing. As Python prints it, such as {0: 'tench', ...}.
            content = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            content = parse_json(text, path)
        is_object = isinstance(content, dict)
        return from_json({str(key): value for key, value in content.items()} if is_object else content, path)
    lines = lines_of(text)
    blank = next((number for number, line in enumerate(lines, start=1) if not line), None)
    if blank is not None:
        raise UserError(
            f"{path}, line {blank}: blank within the list; class numbers count lines, so give the class a name or take "
            "the line out"
        )
    remarks = [number for number, line in enumerate(lines, start=1) if REMARK.match(line)]
    if 0 < len(remarks) < len(lines):
        raise UserError(f"{path}, line {remarks[0]}: a remark within the list; class numbers count lines, take it out")
    return distinct(_from_lines(lines, path))


def _from_lines(lines: Sequence[str], path: Path) -> list[ClassEntry]:
    # "n01440764 tench", as WordNet's and ImageNet's own lists have it.
    synsets = [WORDNET_FIRST.fullmatch(line) for line in lines]
    if lines and all(synsets):
        return from_list([[match[1], match[2]] for match in synsets if match], path)
    # Numbers count only where they are 0 to N - 1: "7 up" and "Boeing 747" are names.
    for pattern, number, name in ((NUMBER_FIRST, 1, 2), (NUMBER_LAST, 2, 1)):
        matches = [pattern.fullmatch(line) for line in lines]
        found = sorted((match for match in matches if match), key=lambda match: int(match[number]))
        numbers = [int(match[number]) for match in found]
        counted = len(lines) > 1 and numbers in (list(range(len(found))), list(range(1, len(found) + 1)))
        if counted and len(found) == len(lines) and numbers[0] == 0:
            return from_list([match[name] for match in found], path)
        # Names that end in 1 to N, as "type 1", are likelier than numbers; names that begin so are not.
        if counted and len(found) == len(lines) and pattern is NUMBER_FIRST:
            raise UserError(f"{path}: its lines are numbered from 1, class numbers from 0; leave the numbers out")
        if counted and len(found) == len(lines) - 1 > 1 and not matches[0]:
            raise UserError(f"{path}, line 1: not numbered as all lines below it are; a heading? take it out")
    return from_list(lines, path)


def from_json(content: Any, path: Path) -> list[ClassEntry]:
    """The classes of what a JSON file holds; `path` only names it in errors.

    Known are a list of names, of lists of names (`["n01440764", "tench"]`), of objects with name or names and id; and
    objects number -> any of these, name or WordNet id -> number, id -> name or names.
    """
    # Wrappers lie in each other: {"features": {"label": {"names": [...]}}}.
    while isinstance(content, dict):
        inner = [
            own
            for key, own in content.items()
            if (key in WRAPPERS and isinstance(own, list | dict)) or (key in OBJECT_WRAPPERS and isinstance(own, dict))
        ]
        if not inner:
            break
        content = inner[0]
    if isinstance(content, list):
        return from_list(content, path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no list of classes")
    numbers = [whole_number(key) for key in content]
    values = [whole_number(value) for value in content.values()]
    # {"0": "7"} names class 0 "7"; {"7": 0} says the same of the class "7".
    are_names = any(isinstance(value, str) for value in content.values())
    if all(number is not None for number in numbers) and (are_names or None in values):
        keys = in_order(dict(zip(content, numbers, strict=True)), path)
        return distinct(from_list([content[key] for key in keys], path))
    # label2id: {"cat": 3}.
    if content and None not in values:
        return from_list(in_order(dict(zip(content, values, strict=True)), path), path)
    # Half numbered is a slip, and the order of the rest would be a guess.
    if any(number is not None for number in [*numbers, *values]):
        raise UserError(f"{path} has class numbers for some of its classes only; write a list of names")
    entries: list[dict[str, Any]] = []
    for key, own in content.items():
        if not isinstance(own, dict | str | list):
            raise _no_class(own, path)
        named = own if isinstance(own, dict) else {"names": [own] if isinstance(own, str) else own}
        entries.append({"id": key, **named})
    return from_list(entries, path)


def in_order(places: Mapping[str, int | None], path: Path) -> list[str]:
    """The keys by their numbers; raises UserError unless these are 0 to N - 1, each once."""
    keys = sorted(places, key=lambda key: places[key] or 0)
    numbers = [places[key] for key in keys]
    if numbers == list(range(1, len(keys) + 1)):
        raise UserError(f"{path}: its class numbers run from 1 to {len(keys)}; they must begin at 0")
    # The first place whose number is not its own: one is missing there, or the one before comes twice.
    wrong = next((place for place, number in enumerate(numbers) if place != number), None)
    if wrong is not None:
        twice = wrong > 0 and numbers[wrong] == numbers[wrong - 1]
        what = f"{numbers[wrong]} comes twice" if twice else f"{wrong} is missing"
        raise UserError(f"{path}: class numbers must be 0 to {len(keys) - 1}, each once; {what}")
    return keys


def whole_number(value: object) -> int | None:
    """The whole number that a JSON value or a text is ("3", 3, 3.0), else None; true and false are none."""
    if isinstance(value, str):
        text = value.strip()
        digits = text.removeprefix("-")
        return int(text) if digits.isascii() and digits.isdecimal() and len(digits) <= MAX_DIGITS else None
    # To Python, True is 1.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if math.isfinite(value) and value == int(value) else None


def from_list(content: Sequence[Any], path: Path) -> list[ClassEntry]:
    """The classes of a list in its order; objects with numbers for ids are put in the order of these."""
    ids = [value.get("id") if isinstance(value, dict) else None for value in content]
    numbers = [whole_number(key) for key in ids]
    # Texts of digits may be somebody's codes; as numbers they count only where they are 0 to N - 1.
    are_numbers = not any(isinstance(key, str) for key in ids)
    if (
        content
        and None not in numbers
        and (are_numbers or sorted(number or 0 for number in numbers) == list(range(len(content))))
    ):
        numbered = {str(place): number for place, number in enumerate(numbers)}
        content = [{**content[int(key)], "id": None} for key in in_order(numbered, path)]
    entries = [_entry(value, path) for value in content]
    if entries and all(isinstance(value, str) and known.is_wordnet_id(value) for value in content):
        # Listed by WordNet ids alone: under OpenAI's name for each, else WordNet's first lemma.
        lemmas, curated, definitions = known.lemmas(), known.curated(), known.definitions()
        nameless = next((entry.id for entry in entries if entry.id not in lemmas), None)
        if nameless is not None:
            raise UserError(f"{path}: no name is known for {nameless}; list names")
        keys = [entry.id for entry in entries]
        return [ClassEntry(key, (curated.get(key, lemmas[key][0]),), definitions[key]) for key in keys]
    return entries


def _entry(value: Any, path: Path) -> ClassEntry:
    """One class: a name, a list of names or of a WordNet id and names, or an object with name or names."""
    fields: dict[str, Any] = value if isinstance(value, dict) else {}
    if isinstance(value, str | list):
        fields = {"names": value}
    if isinstance(value, list) and len(value) > 1 and isinstance(value[0], str) and known.is_wordnet_id(value[0]):
        fields = {"id": value[0], "names": value[1:]}
    names = fields.get("names", fields.get("name"))
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _no_class(value, path)
    key = next((own for own in (fields.get("id"), fields.get("wnid"), *names[:1]) if own not in (None, "")), "")
    # Pairs of number and name are not two names.
    is_pair = isinstance(value, list) and len(names) > 1 and whole_number(names[0]) is not None
    if is_pair or isinstance(key, bool | list | dict):
        raise _no_class(value, path)
    entry = ClassEntry(str(key), tuple(names), str(fields.get("definition") or ""))
    if not names or not all(name.strip() for name in names):
        raise UserError(f"{path}: class '{one_line(entry.id)}' has an empty name")
    if any("\ud800" <= sign <= "\udfff" for text in (entry.id, *names, entry.definition) for sign in text):
        raise UserError(f"{path}: {entry.id!a} holds half a sign (a lone surrogate); write the name in UTF-8")
    return entry


def _no_class(value: Any, path: Path) -> UserError:
    return UserError(
        f"{path}: a class is a name, or an object with 'name' or 'names' (and 'id'), not {one_line(json.dumps(value))}"
    )


def distinct(entries: Sequence[ClassEntry]) -> list[ClassEntry]:
    """The same classes; a name of several without another id is the id of none: only numbers tell them apart.

    ImageNet's own names have some twice ("missile"), in CLIP_benchmark's classnames.txt too.
    """
    ids = [entry.id for entry in entries if entry.id == entry.names[0]]
    counts = {key: ids.count(key) for key in ids} if len(set(ids)) < len(ids) else {}
    return [
        entry._replace(id=f"{entry.id} (class {number})") if counts.get(entry.id, 1) > 1 else entry
        for number, entry in enumerate(entries)
    ]
