"""What other thresholds would have done to the traffic in a log: route mix, latency and quality, with intervals.

A log shows what one policy did. Another one differs from it in three ways, and each is told apart here:

* known: where it would do what was done, its cost and answer are in the log; that a draft of quality q would be accepted at q or below is
  known of every draft that was made, and so is the latency of accepting it.
* randomised: where the log's policy drew the route at random (a band around the threshold, a share of accepted drafts refined all the same),
  rows of the route that the other policy takes stand for those of the route that it doesn't: each is weighted with 1 / propensity
  (Horvitz and Thompson 1952), and the weights are scaled to the known number of rows they stand for (self-normalised, SNIPS: Swaminathan and
  Joachims 2015).
* unsupported: where the log never took that route. No estimator can tell; the share of such requests is reported, and the interval is widened
  by all they might be (worst-case bounds, Manski 1990): 0 to 1 for a share or for quality, 0 to the log's slowest for a latency.

Within one route labels may be missing, but not because of what they would have said: the mean over labelled rows stands for the rest.

Intervals are normal, of the estimates' influence functions (the delta method); where there are bounds, from the lower end's interval to the upper
end's (Imbens and Manski 2004, whose interval is a little shorter). For the width of shares and of quality one row
more of each kind is imagined, so that three good labels, or no request of a rare route, don't make a certainty. Rows are taken as independent; give one row a conversation where turns hang together.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import ArrayLike, NDArray
from scipy import stats

MOST_CELLS = 100_000  # of a table over complexity and quality; more thresholds are taken in parts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Probability = Annotated[float, Meta(gt=0, le=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0)]


class DecisionsError(ValueError):
    """Logged decisions that can't be read, or contradict themselves; or thresholds and options that make no sense."""


class LoggedDecision(Struct, frozen=True, kw_only=True):
    """One request of a log, as a line of JSON. Leave out those whose route no threshold chose: explicit, cached, an engine that was down."""

    route: Literal["draft", "refine", "direct"]  # draft: accepted; refine: drafted and rejected; direct: none judged
    complexity: Share | None  # None: scoring broke, a draft was made
    quality: Share | None = None  # of the draft; None: there was none, or checking it broke
    propensity: Probability = (
        1.0  # with which a draft was made, or not made, as it was; 1: the thresholds alone said so
    )
    acceptance_propensity: Probability = 1.0  # with which the draft was accepted, or rejected, as it was
    latency_s: Seconds  # of the whole request
    draft_latency_s: Seconds | None = None  # until the draft was judged; None: there was none
    good: bool | None = None  # was the answer that left right? None: no label


class Decisions(NamedTuple):
    """A log in columns, (n,) each."""

    complexity: Floats  # -inf: unknown
    quality: Floats  # -inf: unknown
    drafted: Bools
    accepted: Bools
    propensity: Floats
    acceptance_propensity: Floats
    latency_s: Floats
    draft_latency_s: Floats  # nan: no draft
    good: Floats  # 1, 0, or nan: no label

    @classmethod
    def of(cls, rows: Iterable[LoggedDecision]) -> "Decisions":
        """Columns of rows.

        Raises:
            DecisionsError: no rows, or a draft without its latency.
        """
        rows = list(rows)
        if not rows:
            raise DecisionsError("expected logged decisions, got none")

        def column(name: str, missing: float) -> Floats:
            values = (getattr(row, name) for row in rows)
            return np.array([missing if value is None else value for value in values], dtype=np.float64)

        drafted = np.array([row.route != "direct" for row in rows])
        draft_latency_s = column("draft_latency_s", np.nan)
        if np.isnan(draft_latency_s[drafted]).any():
            at = int(np.flatnonzero(drafted & np.isnan(draft_latency_s))[0])
            raise DecisionsError(f"decision {at + 1}: expected draft_latency_s with route {rows[at].route!r}, got none")
        return cls(
            complexity=column("complexity", -np.inf),
            quality=column("quality", -np.inf),
            drafted=drafted,
            accepted=np.array([row.route == "draft" for row in rows]),
            propensity=column("propensity", 1.0),
            acceptance_propensity=column("acceptance_propensity", 1.0),
            latency_s=column("latency_s", np.nan),
            draft_latency_s=draft_latency_s,
            good=column("good", np.nan),
        )


class Estimate(NamedTuple):
    """One number per pair of thresholds, in their shape."""

    value: Floats  # unsupported requests taken to be like the supported ones of the same route; nan: there are none of a route
    low: Floats
    high: Floats
    unsupported: Floats  # share of requests that the log can't speak for, and that the interval is wider for
    effective: (
        Floats  # sample size, Kish's (sum of weights)^2 / sum of squared weights, of the rows that the value comes from
    )


class WhatIf(NamedTuple):
    """What to expect of each pair of thresholds."""

    direct: Estimate  # share of requests
    draft: Estimate  # share of requests
    refine: Estimate  # share of requests
    latency_s: Estimate  # mean
    quality: Estimate  # share of good answers


def read_decisions(path: Path) -> Decisions:
    """Read JSON lines of LoggedDecision. Raises DecisionsError naming file, line and field."""
    decoder, rows = msgspec.json.Decoder(LoggedDecision), list[LoggedDecision]()
    try:
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if line.strip():
                try:
                    rows.append(decoder.decode(line))
                except msgspec.DecodeError as error:
                    raise DecisionsError(f"{path.name}, line {number}: {error}") from error
        return Decisions.of(rows)
    except OSError as error:
        raise DecisionsError(f"{path.name}: can't be read: {error.strerror}") from error


def whatif(
    decisions: Decisions,
    complexity_thresholds: ArrayLike,
    quality_thresholds: ArrayLike,
    *,
    confidence: float = 0.95,
    estimator: Literal["snips", "ips"] = "snips",
) -> WhatIf:
    """What a policy would have done: go direct at or above a complexity, else draft, and accept at or above a quality.

    Thresholds broadcast: two arrays (P,) give P pairs, (I, 1) and (J,) a grid (I, J). Time is linear in the decisions and in the number of
    distinct thresholds of each kind, not in the pairs.

    Args:
        decisions: n of them.
        complexity_thresholds: broadcasts with the other; above 1 nothing goes direct.
        quality_thresholds: above 1 no draft is accepted.
        confidence: of each interval alone, above 0 and below 1.
        estimator: ips leaves weights unscaled: unbiased, and wider in most logs.

    Raises:
        DecisionsError: thresholds that aren't numbers or don't broadcast, or an unknown estimator.
    """
    if estimator not in ("snips", "ips"):
        raise DecisionsError(f"expected the estimator snips or ips, got {estimator!r}")
    if not 0 < confidence < 1:
        raise DecisionsError(f"expected a confidence above 0 and below 1, got {confidence}")
    try:
        complexity, quality = np.broadcast_arrays(
            np.asarray(complexity_thresholds, dtype=np.float64), np.asarray(quality_thresholds, dtype=np.float64)
        )
    except ValueError as error:
        raise DecisionsError(f"expected thresholds that broadcast: {error}") from error
    if np.isnan(complexity).any() or np.isnan(quality).any():
        raise DecisionsError("expected thresholds that are numbers, got nan")
    z = float(stats.norm.ppf((1 + confidence) / 2))
    found = _in_parts(decisions, complexity.ravel(), quality.ravel(), z, estimator == "snips")
    return WhatIf(*(Estimate(*(column.reshape(complexity.shape) for column in estimate)) for estimate in found))


# Requests fall into three segments by what the other policy does with them: direct, accepted, refined. The first choice, to draft or not, is one
# group of segments or the other. What a row says of a segment are six numbers z, and every estimate is a mean over rows of something linear in z, so
# sums of z and of its products give all estimates and their variances. The sums are looked up in cumulative tables over binned scores.

DIRECT, ACCEPTED, REFINED = range(3)
SAME_GROUP = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
REST, NEVER, MATCHED, BLIND, SEEN, OUTCOME = range(6)
ROUTES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))  # the mean of "went this way" in each segment


class _Rows(NamedTuple):
    """What n rows say of a segment."""

    z: Floats  # (6, n): see _rows
    random: Bools  # (n,) was the first choice random?


class _Sums(NamedTuple):
    """Sums over the rows of a segment, for each of P pairs of thresholds."""

    z: Floats  # (P, 6)
    products: Floats  # (P, 6, 6)
    random: Floats  # (P, 2) of matched and blind, over rows whose first choice was random


def _rows(log: Decisions, first: Bools, could: Bools | bool, seen: Bools, outcome: Floats, second: Floats) -> _Rows:
    """A segment's rows.

    A row stands for 1/propensity requests if its first choice is the segment's; they are `matched` if the segment's route could have followed
    there, else `blind`. `rest` is what is left of the row's own request, 1 less that number, or nothing where the log never makes that choice, which
    is `never`. `seen` is the weight of a row whose route and outcome were the segment's; then comes its product with the outcome.

    Args:
        log: n decisions.
        first: (n,) is the first choice the segment's?
        could: (n,) could its route have followed?
        seen: (n,) did it, and is the outcome known?
        outcome: (n,)
        second: (n,) probability of the route given the first choice.
    """
    random = log.propensity < 1
    weight = np.where(first, 1 / log.propensity, 0.0)
    never = ~first & ~random
    shown = np.where(seen & first, weight / second, 0.0)
    outcomes = np.where(shown > 0, outcome, 0.0)
    matched = np.where(could, weight, 0.0)
    rest = np.where(never, 0.0, 1 - weight)
    return _Rows(np.stack([rest, never.astype(np.float64), matched, weight - matched, shown, shown * outcomes]), random)


def _segments(log: Decisions) -> tuple[tuple[_Rows, ...], ...]:
    """The three segments as routes, latency and quality see them."""
    every, one = np.ones(len(log.drafted), dtype=bool), np.ones(len(log.drafted))
    direct, drafted, nothing = ~log.drafted, log.drafted, ~every
    labelled, free, second = ~np.isnan(log.good), log.acceptance_propensity < 1, log.acceptance_propensity
    accepting, refining = log.accepted | free, ~log.accepted | free
    sure = log._replace(propensity=one)  # who goes direct is known of every request
    return (
        (
            _rows(sure, every, True, nothing, one, one),
            _rows(log, drafted, True, nothing, one, one),
            _rows(log, drafted, True, nothing, one, one),
        ),
        (
            _rows(log, direct, True, direct, log.latency_s, one),
            _rows(log, drafted, True, drafted, log.draft_latency_s, one),
            _rows(log, drafted, refining, ~log.accepted, log.latency_s, second),
        ),
        (
            _rows(log, direct, True, labelled, log.good, one),
            _rows(log, drafted, accepting, log.accepted & labelled, log.good, second),
            _rows(log, drafted, refining, ~log.accepted & labelled, log.good, second),
        ),
    )


def _in_parts(log: Decisions, complexity: Floats, quality: Floats, z: float, scaled: bool) -> list[Estimate]:
    """Estimates (P,) of pairs (P,), in halves where their table would be too large."""
    rows, columns = np.unique(complexity), np.unique(quality)
    if (len(rows) + 1) * (len(columns) + 1) > MOST_CELLS and len(complexity) > 1:
        order = np.argsort(complexity, kind="stable")
        halves = [_in_parts(log, complexity[half], quality[half], z, scaled) for half in np.array_split(order, 2)]
        back = np.argsort(order, kind="stable")
        joined = [zip(first, second, strict=True) for first, second in zip(*halves, strict=True)]
        return [Estimate(*(np.concatenate(pair)[back] for pair in estimate)) for estimate in joined]
    bins = np.searchsorted(rows, log.complexity, side="right"), np.searchsorted(columns, log.quality, side="right")
    pairs = np.searchsorted(rows, complexity), np.searchsorted(columns, quality)
    shape = len(rows) + 1, len(columns) + 1
    routes, latency, answers = (
        [_sums(one, segment, bins, pairs, shape) for segment, one in enumerate(segments)] for segments in _segments(log)
    )
    n, slowest = len(log.drafted), float(log.latency_s.max())
    return [
        *(
            _estimate(routes, n, z, scaled, highest=float(way != DIRECT), binary=True, means=mean)
            for way, mean in enumerate(ROUTES)
        ),
        _estimate(latency, n, z, scaled, highest=slowest),
        _estimate(answers, n, z, scaled, highest=1.0, binary=True),
    ]


def _sums(
    rows: _Rows, segment: int, bins: tuple[Ints, Ints], pairs: tuple[Ints, Ints], shape: tuple[int, int]
) -> _Sums:
    """Look up the sums of one segment for all pairs. A score at or above i thresholds is in bin i."""
    upper = np.triu_indices(6)
    cells = np.ravel_multi_index(bins, shape)
    weights = [*rows.z, *(rows.z[i] * rows.z[j] for i, j in zip(*upper, strict=True))]
    weights += [rows.z[MATCHED] * rows.random, rows.z[BLIND] * rows.random]
    table = np.stack([np.bincount(cells, w, shape[0] * shape[1]) for w in weights], axis=-1).reshape(*shape, -1)
    j, k = pairs
    if segment == DIRECT:
        found = table.sum(axis=1)[::-1].cumsum(axis=0)[::-1][j + 1]
    elif segment == ACCEPTED:
        found = table.cumsum(axis=0)[:, ::-1].cumsum(axis=1)[:, ::-1][j, k + 1]
    else:
        found = table.cumsum(axis=0).cumsum(axis=1)[j, k]
    products = np.zeros((len(j), 6, 6))
    products[:, upper[0], upper[1]] = products[:, upper[1], upper[0]] = found[:, 6:-2]
    return _Sums(found[:, :6], products, found[:, -2:])


def _estimate(
    sums: Sequence[_Sums],
    n: int,
    z: float,
    scaled: bool,
    *,
    highest: float,
    means: tuple[float, ...] | None = None,
    binary: bool = False,
) -> Estimate:
    """One outcome's estimates.

    With weights w, means mu of the segments and M of a group's random rows, the mean outcome is that of

        psi = M rest + b (never + blind) + mu matched + kappa seen (outcome - mu)

    over all rows, b being what is assumed of unsupported requests: 0 for the lower end, `highest` for the upper. The last term is 0 in the mean
    and brings in how uncertain mu is, kappa being the segment's number of requests by its seen weight. psi is the estimate's influence function, so its
    variance over n is the estimate's.

    Args:
        sums: of the three segments.
        n: decisions.
        z: normal quantile of the interval.
        scaled: SNIPS, else IPS, where M is 0.
        highest: that an unsupported request can have; 0 where none can matter.
        means: of the segments, where they are known.
        binary: are outcomes 0 or 1?
    """
    total, products, random = (np.stack(parts) for parts in zip(*sums, strict=True))  # (3, P, ...)
    group = np.tensordot(SAME_GROUP, total, 1)  # (3, P, 6)
    seen = total[..., SEEN]
    known = np.full(seen.shape, means is not None) | (seen > 0)
    mean = _ratio(total[..., OUTCOME], seen) if means is None else np.broadcast_to(np.array([means]).T, seen.shape)

    # The rest is shared out as the random rows of the group are: (3, P, 2) of these matched and blind.
    randoms = np.tensordot(SAME_GROUP, random.sum(axis=-1), 1)
    parts = _ratio(random, randoms[..., None]) * scaled
    shared = group[..., REST, None] * parts
    meant = total[..., MATCHED] + shared[..., 0]  # requests that the mean speaks for
    counted = meant + total[..., BLIND] + shared[..., 1]
    kappa = _ratio(meant, seen)

    ends: list[tuple[Floats, Floats]] = []
    for assumed in (0.0, highest):
        told = np.where(known, mean, assumed)
        rest = np.tensordot(SAME_GROUP, parts[..., 0] * told + parts[..., 1] * assumed, 1)
        rest = np.where((randoms == 0) & scaled, assumed, rest)
        bound = np.full(rest.shape, assumed)
        beta = np.stack([rest, bound, told, bound, -kappa * mean, kappa], axis=-1)
        value = np.einsum("spi,spi->p", beta, total) / n
        variance = np.einsum("spi,spij,spj->p", beta, products, beta) / n - value**2
        ends.append((value, np.maximum(variance, 0.0) / n))
    (low, low_variance), (high, high_variance) = ends
    weight = SEEN if means is None else MATCHED
    scale = kappa if means is None else np.ones_like(kappa)
    effective = _ratio(
        (scale * total[..., weight]).sum(axis=0) ** 2, (scale**2 * products[..., weight, weight]).sum(axis=0)
    )
    if binary:  # one good and one bad answer more in each segment; of a route, one request more that takes it and one that doesn't
        if means is None:
            of_segment = _ratio(meant / n, _ratio(seen**2, products[..., SEEN, SEEN])) ** 2
            more = (of_segment * (mean**2 + (1 - mean) ** 2)).sum(axis=0)
        else:
            more = _ratio(np.ones(len(low)), effective) ** 2 * (low**2 + (1 - low) ** 2)
        low_variance, high_variance = low_variance + more, high_variance + more

    together = np.tensordot(SAME_GROUP, counted, 1)
    everyone = group[..., NEVER] + (group[..., [REST, MATCHED, BLIND]].sum(axis=-1) if scaled else together)
    like = counted * _ratio(everyone, together)
    missing = ((like > 0) & ~known) | ((everyone > 0) & (together == 0) & (highest > 0))
    value = np.where(missing.any(axis=0), np.nan, (like * mean).sum(axis=0) / n)
    return Estimate(
        value=value,
        low=np.maximum(low - z * np.sqrt(low_variance), 0.0),
        high=np.minimum(high + z * np.sqrt(high_variance), 1.0 if binary else np.inf),
        unsupported=_ratio(high - low, np.asarray(highest)),
        effective=effective,
    )


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Their quotient, and 0 where that has no value."""
    return np.divide(
        numerator, denominator, out=np.zeros(np.broadcast(numerator, denominator).shape), where=denominator != 0
    )
