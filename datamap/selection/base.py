"""What a selector is: the features it reads, the settings it takes, how it is registered; and what several share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, Final, TypeVar

import numpy as np

from datamap.core.errors import UserError, name_a_few, repeated

HIGHEST: Final = "highest"
LOWEST: Final = "lowest"
MIDDLE: Final = "middle"
F = TypeVar("F", bound=Callable[..., Any])
FILLED = "random fill"  # how the reason of an example begins that no selector chose


class Features:
    """What is known of n examples: ``features[name]`` is an array whose row i is about ``features.ids[i]``.

    ids are sorted; the arrays that are given go with the ids in the order given. Raises UserError for ids that occur
    twice, ValueError for arrays of other lengths.
    """

    def __init__(self, ids: Sequence[str], values: Mapping[str, np.ndarray]):
        if twice := repeated(ids):
            raise UserError(f"ids must be unique; {name_a_few(twice)} occur more than once")
        for name, array in values.items():
            if len(array) != len(ids):
                raise ValueError(f"feature {name} has {len(array):,} rows for {len(ids):,} ids")
        order = sorted(range(len(ids)), key=lambda row: ids[row])
        self.ids = [str(ids[row]) for row in order]
        # The order of the numbers in memory would change sums by their rounding.
        self._values = {name: array if np.ma.isMaskedArray(array) or array.flags.c_contiguous else array.copy()
                        for name, array in values.items()}
        self._rows = None if order == list(range(len(ids))) else np.asarray(order)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> np.ndarray:
        values = self._values[name]  # a memory map stays one as long as nobody asks for a part of it
        return values if self._rows is None else values[self._rows]

    def among(self, rows: np.ndarray) -> Features:
        """The features of some rows, which are (m,) int and come to stand in ascending order."""
        part = object.__new__(Features)
        rows = np.sort(rows)
        part.ids = [self.ids[row] for row in rows]
        part._values = self._values
        part._rows = rows if self._rows is None else self._rows[rows]
        return part

    def check(self, names: Sequence[str]) -> None:
        """UserError that names the first example whose value is NaN or infinite, in a place that is not masked."""
        from datamap.selection.diversity import check_finite

        for name in names:
            values = self[name]
            if values.ndim == 2 and not isinstance(values, np.ma.MaskedArray):
                check_finite(values, self.ids)
            elif values.dtype.kind == "f":
                bad = ~np.isfinite(np.ma.getdata(values)) & ~np.ma.getmaskarray(values)
                if bad.any():
                    place = tuple(np.argwhere(bad)[0].tolist())
                    raise UserError(f"{name} of example {self.ids[place[0]]!r} is {np.ma.getdata(values)[place]}, no "
                                    "finite number; mend the feature, or leave the example out")


# --- settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What selectors can be told by a flag of select_subset.py; a tuple as default makes it a list.

    options: of ``add_argument``, such as type and metavar.
    """

    name: str
    default: Any
    help: str
    options: Mapping[str, Any] = field(default_factory=dict)


KEEP = Setting("keep", None, "which end to choose, or the middle of the distribution (default: see --list)",
               {"choices": (HIGHEST, LOWEST, MIDDLE)})
SETTINGS = {KEEP.name: KEEP}  # and those of the selectors


class Settings(SimpleNamespace):
    """The values of SETTINGS, each its default where none is given.

    members: names with shares (pipeline) or weights (fusion). fill: top up at random a selector, or the last one of a
    pipeline, that leaves fewer than were asked for.
    """

    def __init__(self, members: tuple[tuple[str, float], ...] = (), fill: bool = False, **given: Any):
        if unknown := given.keys() - SETTINGS.keys():
            raise TypeError(f"no setting {name_a_few(sorted(unknown))}")
        defaults = {name: setting.default for name, setting in SETTINGS.items()}
        super().__init__(**defaults | given, members=members, fill=fill)

    def replace(self, **changes: Any) -> Settings:
        return Settings(**vars(self) | changes)


# --- selectors ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picks:
    """rows: (m,) int, the best first, m at most the k that was asked for; scores: (m,) float, NaN where there is none;
    reasons: m short texts."""

    rows: np.ndarray
    scores: np.ndarray
    reasons: list[str]


def without_scores(rows: np.ndarray, reasons: list[str]) -> Picks:
    return Picks(rows, np.full(len(rows), np.nan), reasons)


Pick = Callable[[Features, int, np.random.Generator, Settings], Picks]
Score = Callable[[Features, Settings], np.ma.MaskedArray | None]
Reasons = Callable[[Features, Settings, np.ndarray], list[str]]  # of rows, (m,) int


@dataclass(frozen=True)
class Selector:
    """One way to choose. needs: features; more: features that depend on the settings. settings: those that it reads.

    It either ranks by one number per example, ``score`` (n,), of which the end ``keep`` comes first and which is
    taken over all examples even where strata are chosen from; or it picks, one with regard to the others, as a fusion
    does where its members make its score None. reason: of
    those that it chooses, or a function that gives it for rows; by default score and place. seeded: whether another
    seed makes another choice, beyond the order of equal scores. check: says what is wrong with the settings, if
    anything.
    """

    name: str
    kind: str
    what: str
    needs: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    pick: Pick | None = None
    score: Score | None = None
    keep: str = HIGHEST
    reason: str | Reasons = ""
    more: Callable[[Settings], Sequence[str]] = lambda settings: ()
    seeded: bool = False
    check: Callable[[Settings], str | None] = lambda settings: None

    def run(
        self, features: Features, values: np.ma.MaskedArray | None, k: int, rng: np.random.Generator,
        settings: Settings,
    ) -> Picks:
        """k picks, or fewer where there are not as many and they are not to be filled up. values: scores, if any."""
        if values is None:
            assert self.pick is not None
            chosen = self.pick(features, k, rng, settings)
        else:
            keep = settings.keep or self.keep
            order = ranked(values, rng, keep)[:k]
            scores = np.ma.filled(values.astype(float), np.nan)[order]
            if callable(self.reason):
                reasons = self.reason(features, settings, order)
            else:
                reasons = [self.reason] * len(order) if self.reason else places(self.name, values, keep, order)
            chosen = Picks(order, scores, reasons)
        if settings.fill and len(chosen.rows) < k:
            rest = rng.permutation(np.setdiff1d(np.arange(len(features)), chosen.rows))[: k - len(chosen.rows)]
            reasons = chosen.reasons + [f"{FILLED}, not chosen by {self.name}"] * len(rest)
            return Picks(np.append(chosen.rows, rest), np.append(chosen.scores, np.full(len(rest), np.nan)), reasons)
        return chosen


SELECTORS: dict[str, Selector] = {}


def register(selector: Selector, function: F) -> F:
    SELECTORS[selector.name] = selector
    for setting in selector.settings:
        if SETTINGS.setdefault(setting.name, setting) != setting:
            raise ValueError(f"{selector.name}: there is another setting {setting.name}")
    return function


def picks(name: str, kind: str, what: str, **more: Any) -> Callable[[Pick], Pick]:
    """Register the decorated function as a selector that picks; ``more`` are fields of ``Selector``."""
    return lambda function: register(Selector(name, kind, what, pick=function, **more), function)


def ranks(name: str, kind: str, what: str, **more: Any) -> Callable[[Score], Score]:
    """Register the decorated function as a selector that ranks by its scores; ``more`` are fields of ``Selector``."""
    return lambda function: register(Selector(name, kind, what, score=function, **more), function)


def ranks_by(name: str, kind: str, what: str, feature: str = "", keep: str = HIGHEST) -> None:
    """Register a selector that ranks by one feature, by default that of its own name."""
    feature = feature or name
    add = ranks(name, kind, what, needs=(feature,), settings=(KEEP,), keep=keep)
    add(lambda features, settings: np.ma.asarray(features[feature]))


def needed(name: str, settings: Settings) -> tuple[str, ...]:
    """The features that a selector reads."""
    selector = SELECTORS[name]
    return tuple(dict.fromkeys((*selector.needs, *selector.more(settings))))


def settings_of(name: str, settings: Settings) -> set[str]:
    """The names of the settings that a selector and its members read."""
    own = {each.name for each in SELECTORS[name].settings}
    of_members = {each.name for member, _ in settings.members for each in SELECTORS[member].settings}
    return own | of_members - {KEEP.name}  # each member has an end of its own


# --- pieces -------------------------------------------------------------------------------------------------------


def count_of(share: float, n: int) -> int:
    """How many of n examples a share of them is: the nearest whole number, halves up, at least 1."""
    return max(1, math.floor(Fraction(str(share)) * n + Fraction(1, 2)))


def largest_remainder(sizes: np.ndarray, total: int) -> np.ndarray:
    """(m,) quotas proportional to ``sizes`` that add up to ``total`` <= sum(sizes) exactly; none exceeds its size.

    Hamilton's method; among equal remainders the larger group, then the earlier, comes first.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    whole = max(1, int(sizes.sum()))
    quotas, remainders = sizes * total // whole, sizes * total % whole
    order = np.lexsort((np.arange(len(sizes)), -sizes, -remainders))
    quotas[order[: total - int(quotas.sum())]] += 1
    return quotas


def ranked(values: np.ma.MaskedArray, rng: np.random.Generator, keep: str = HIGHEST) -> np.ndarray:
    """Rows from the best to the worst, the masked ones left out; equal values in an order that the seed decides."""
    behind = _behind(values, keep)
    order = np.lexsort((rng.permutation(len(behind)), behind))
    return order[~np.ma.getmaskarray(values)[order]]


def _behind(values: np.ma.MaskedArray, keep: str) -> np.ndarray:
    """(n,) float, the lowest for what comes first, infinite where masked. Of the middle it is the distance, in ranks,
    from the median: the first k of n are the middle k/n of the distribution, whatever its shape."""
    from scipy.stats import rankdata

    known = ~np.ma.getmaskarray(values)
    behind = np.full(len(values), np.inf)
    plain = np.ma.getdata(values)[known].astype(float)
    if keep == MIDDLE:
        plain = abs(2 * rankdata(plain) - (len(plain) + 1))  # whole numbers: the two sides tie exactly
    behind[known] = -plain if keep == HIGHEST else plain
    return behind


def places(name: str, values: np.ma.MaskedArray, keep: str, rows: np.ndarray) -> list[str]:
    """``aum -1.23, 5 of 1,000 from the lowest`` of each of the rows; equal values share the first place.

    An example that ``values`` masks has no place: what is said is that the selector leaves it out.
    """
    known = ~np.ma.getmaskarray(values)
    plain = np.ma.getdata(values).astype(float)
    behind = _behind(values, keep)
    ordered = np.sort(behind[known])
    found = 1 + np.searchsorted(ordered, behind[rows])
    return [f"{name} {plain[row]:.4g}, {place:,} of {len(ordered):,} from the {keep}" if known[row]
            else f"{name} leaves it out" for row, place in zip(rows, found.tolist(), strict=True)]


def rank_normalised(values: np.ma.MaskedArray) -> np.ma.MaskedArray:
    """Ranks as 0 (lowest) .. 1 (highest), of equal values the mean, 0.5 where all are equal; masked stays masked."""
    from scipy.stats import rankdata

    known = ~np.ma.getmaskarray(values)
    result = np.ma.masked_all(len(values), dtype=float)
    positions = rankdata(np.ma.getdata(values)[known])
    result[known] = (positions - 1) / (len(positions) - 1) if len(positions) > 1 else 0.5
    return result


def interleaved(groups: Sequence[np.ndarray]) -> np.ndarray:
    """One order of the members of several ordered groups, such that every part from its start on takes from each
    about in proportion; returns places in the concatenation of the groups."""
    position = np.concatenate([(np.arange(len(group)) + 0.5) / max(1, len(group)) for group in groups])
    return np.argsort(position, kind="stable")


def members_of(group: np.ndarray) -> list[np.ndarray]:
    """The rows of each group, ascending; group: (n,) int from 0."""
    return np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
