"""The learning rate at which a kind is compared: of several rates for one model and budget the best."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, TypeVar

from clip_la.errors import unknown
from clip_la.scaling.points import OPTIONS, LeftOut, Point, Selection, by_flops

BEST, ALL = "best", "all"
RATES = (BEST, ALL)
# Points alike in these, and in their FLOPs a pair, differ in learning rate and seed alone.
PLACE_FIELDS = (
    *("attention", "image_attention", "text_attention", "model", "image_size", "tokens"),
    *("train_data", "schedule", "batch_size", "samples_seen"),
    *OPTIONS,
)
WORSE = "another learning rate is better for its kind, model and number of samples"
NOT_COMPARED = "its learning rate shares no seed with the one that most seeds have: it is not compared"


def rate_text(rate: float | None) -> str:
    """A learning rate for a person."""
    return "no rate recorded" if rate is None else f"{rate:g}"


Rate = TypeVar("Rate", float, float | None)
Behind = dict[Rate, tuple[float, int]]


def compared(runs: Mapping[Rate, Mapping[Any, Sequence[float]]]) -> tuple[Rate, Behind[Rate]]:
    """RateChoice's `fullest` and `behind`, from the errors of each seed's runs at each rate; repeats count as their
    mean."""
    fullest = max(runs, key=lambda rate: len(runs[rate]))
    behind: Behind[Rate] = {}
    for rate, own in runs.items():
        if shared := own.keys() & runs[fullest].keys():
            mean, other = (fmean(fmean(each[seed]) for seed in shared) for each in (own, runs[fullest]))
            behind[rate] = (mean - other, len(shared))
    return fullest, behind


@dataclass(frozen=True)
class RateChoice:
    """The rates tried at one place (kind, model, data, samples).

    Attributes:
        points: all of them, of every rate and seed.
        fullest: the rate with most seeds (of equals the lowest), which the others are compared with.
        behind: rate -> (mean error minus that of the fullest rate over the seeds that both have, number of these),
            lowest rate first; a rate that shares no seed is absent: it was not compared.
        best: the rate whose error is lowest in this sense.
    """

    points: tuple[Point, ...]
    fullest: float | None
    behind: Mapping[float | None, tuple[float, int]]
    best: float | None

    @classmethod
    def of(cls, points: Sequence[Point]) -> "RateChoice":
        """Chooses among the rates of points that are alike in `PLACE_FIELDS` and their FLOPs a pair.

        Seeds differ by more than rates near the best do: rates are compared over seeds that both have, by how far each
        is from the fullest rate there. With the same seeds at every rate that is the lowest mean.
        """
        runs: dict[float | None, dict[int | None, list[float]]] = defaultdict(lambda: defaultdict(list))
        for point in sorted(points, key=lambda point: point.learning_rate or 0.0):
            runs[point.learning_rate][point.seed].append(point.error)
        fullest, behind = compared(runs)
        return cls(tuple(points), fullest, behind, min(behind, key=lambda rate: behind[rate][0]))

    @property
    def is_at_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest of several: a better one may lie beyond."""
        rates = list(self.behind)
        return len(rates) > 1 and self.best in (rates[0], rates[-1])


def rate_choices(points: Iterable[Point]) -> list[RateChoice]:
    """The choice at each place that holds several rates, in the order of the points."""
    places: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for point in points:
        places[tuple(getattr(point, name) for name in PLACE_FIELDS)].append(point)
    alike = (own for place in places.values() for own in by_flops(place))
    return [RateChoice.of(own) for own in alike if len({point.learning_rate for point in own}) > 1]


def at_rate(selection: Selection, rate: str) -> Selection:
    """The selection with each kind at its best rate at each place ("best"), or as it is ("all").

    Points at other rates become `tried`, and are left out with the reason. Points with an error of 0 or 1, which no law
    takes, count in the choice. Raises UserError for another `rate`.
    """
    if rate not in RATES:
        raise unknown("rate", rate, RATES)
    # What was not kept before stays a candidate: choosing again changes nothing.
    choices = rate_choices((*selection.points, *selection.off_law, *selection.tried)) if rate == BEST else []
    worse = {
        point: WORSE if point.learning_rate in choice.behind else NOT_COMPARED
        for choice in choices
        for point in choice.points
        if point.learning_rate != choice.best
    }
    tried = [point for point in (*selection.points, *selection.off_law) if point in worse]
    if not tried:
        return selection
    out = [
        # What lies on no law is left out for that reason already.
        LeftOut(point.where, f"{point.source} (learning rate {rate_text(point.learning_rate)})", worse[point])
        for point in selection.points
        if point in worse
    ]
    return replace(
        selection,
        points=tuple(point for point in selection.points if point not in worse),
        off_law=tuple(point for point in selection.off_law if point not in worse),
        left_out=(*selection.left_out, *out),
        tried=(*selection.tried, *tried),
    )
