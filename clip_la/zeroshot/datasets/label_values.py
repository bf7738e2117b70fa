"""From a label as it stands in a file to positions in a class set; shards and Parquet files share it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clip_la.data.shards.problems import BadSample
from clip_la.errors import UserError, one_line
from clip_la.zeroshot.datasets.records import NO_LABEL, NOT_IN_SET
from clip_la.zeroshot.labels.class_files import whole_number
from clip_la.zeroshot.labels.classes import ClassSet
from clip_la.zeroshot.options import ERROR, SKIP

Where = tuple[str, str]
"""A file, and the sample in it that a label is of; for errors."""
# The hub's mark of a label that is withheld.
WITHHELD = -1
NUMBER_TEXT = re.compile(r"-?\d{1,9}(\.\d{0,9})?", re.ASCII)


@dataclass(frozen=True)
class Labels:
    """How the labels of a test set are read.

    Attributes:
        classes: what a label must be one of.
        numbers: `numbers[n]` is the position of class number n, -1 where `classes` lacks it; None where numbers mean
            nothing, since they count in another list.
        unknown: what becomes of an image whose class `classes` lacks: skipped and counted, or a UserError.
    """

    classes: ClassSet
    numbers: tuple[int, ...] | None
    unknown: str = SKIP

    def of_value(self, value: Any, where: Where) -> tuple[int, ...]:
        """The positions of a label: a number, a name, a WordNet id, or a list of these, each of which is accepted.

        Args:
            where: for errors.

        Raises:
            BadSample: no label (null, NaN, "", [], -1), or a class that the set lacks.
            UserError: a number outside the classes, or nothing that a label can be.
        """
        if not isinstance(value, list | tuple):
            return (self._one(value, where),)
        # [0, 0, 1] could be three class numbers or one class among three.
        self._check_one_hot(value, where)
        found, reason = [], NO_LABEL
        for each in value:
            try:
                found.append(self._one(each, where, strict=False))
            except BadSample as bad:
                # That a class is unknown says more than that a label is empty.
                reason = bad.reason if reason == NO_LABEL else reason
        if not found:
            raise self.lacking(value, where) if reason == NOT_IN_SET else BadSample(reason)
        return tuple(dict.fromkeys(found))

    def of_names(self, named: Sequence[str]) -> tuple[int, ...]:
        """The positions of those names and ids that the set has."""
        return tuple(dict.fromkeys(place for place in self.classes.positions(named) if place >= 0))

    def lacking(self, value: Any, where: Where) -> Exception:
        """What is raised for a class that the set lacks."""
        if self.unknown == ERROR:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            return UserError(
                f"{where[0]}: class '{one_line(text)}' of {where[1]} is not in {self.classes.label}; "
                f"--unknown-classes {SKIP} leaves such out"
            )
        return BadSample(NOT_IN_SET)

    def of_number(self, number: int, where: Where) -> int:
        """The position of a class number. Raises as `of_value` does."""
        if number == WITHHELD:
            raise BadSample(NO_LABEL)
        if self.numbers is None:
            raise UserError(
                f"{where[0]}: {where[1]} has only a class number, which counts in the set's own list, not in "
                f"{self.classes.label}; leave out --classes, or give samples a json with 'wnid' or 'class'"
            )
        size = len(self.numbers)
        if not 0 <= number < size:
            raise UserError(
                f"{where[0]}: label {one_line(number)} of {where[1]} is outside the {size} classes (0 to N - 1)"
            )
        if self.numbers[number] < 0:
            raise self.lacking(number, where)
        return self.numbers[number]

    def _one(self, value: Any, where: Where, strict: bool = True) -> int:
        """The position of a single label; `strict` is False within a list, where one unknown class is skipped."""
        # webdataset and Parquet files of some writers have names as bytes.
        if isinstance(value, bytes):
            value = value.decode("utf-8-sig", errors="replace")
        # NaN, which a missing number becomes in tables, differs from itself.
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            raise BadSample(NO_LABEL)
        if isinstance(value, str):
            return self._text(value.strip(), where, strict)
        return self._number(value, where)

    def _number(self, value: Any, where: Where) -> int:
        number = whole_number(value)
        if number is None:
            raise UserError(f"{where[0]}: label {one_line(value)} of {where[1]} is neither a class number nor a name")
        return self.of_number(number, where)

    def _text(self, text: str, where: Where, strict: bool) -> int:
        position, number = self.classes.positions([text])[0], number_in(text)
        if position < 0 and number is None:
            raise self.lacking(text, where) if strict else BadSample(NOT_IN_SET)
        if position < 0:
            return self._number(number, where)
        # A class may be called "7" and another be number 7: then the label could be either.
        numbers = self.numbers or ()
        if isinstance(number, int) and 0 <= number < len(numbers) and numbers[number] != position:
            raise UserError(
                f"{where[0]}: label '{one_line(text)}' of {where[1]} is the name of class {position}, another's number"
            )
        return position

    def _check_one_hot(self, value: Sequence[Any], where: Where) -> None:
        size = len(self.classes) if self.numbers is None else len(self.numbers)
        if size == len(value) > 1 and all(isinstance(each, int | float) and each in (0, 1) for each in value):
            raise UserError(
                f"{where[0]}: {where[1]} has {size} zeros and ones for a label; write the numbers of its classes"
            )


def number_in(text: str) -> int | float | None:
    """The number that a text is: whole for "3", "3.0" and "-1"; None for any other text."""
    if NUMBER_TEXT.fullmatch(text.strip()) is None:
        return None
    number = float(text)
    return int(number) if number.is_integer() else number


def numbers_in(own: ClassSet | None, chosen: ClassSet) -> tuple[int, ...] | None:
    """`Labels.numbers` of a set with the class list `own` (None: it has none, so numbers count in `chosen`)."""
    # The same classes under other ids are matched by their names alone: both lists have these in the same order.
    same = own is None or own.ids == chosen.ids or (len(own) == len(chosen) and own.names == chosen.names)
    return tuple(range(len(chosen))) if same else None
