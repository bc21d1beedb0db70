"""Groups of numbers that describe a finished draft. Each is there or missing as a whole; a stored acceptor names their version.

TEXT       the draft's text, how it relates to the request, and hints of the verifiers; always there
DENOISER   what the diffusion model thought of its tokens, and how long it took
SCORE      what the refiner thinks of the draft's tokens
AGREEMENT  how far other candidates of the same request say the same
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from classifiers import conversation
from classifiers.api import Check, DraftEvidence
from classifiers.draft_text import TEXT, text_features
from classifiers.labels import normalised
from classifiers.tasks import Task
from classifiers.working import bounded, numbers_in

Vector = NDArray[np.float32]

VERSION = f"draft-2/{conversation.VERSION}"  # TEXT holds the conversation's counts
DENOISER = (
    "mean entropy", "median entropy", "third quartile of entropy", "ninth decile of entropy", "largest entropy", "second largest entropy",
    "third largest entropy", "share of tokens above 0.1 nat", "share of tokens above 0.01 nat", "smallest log-probability",
    "first decile of log-probability", "mean log-probability", "steps a canvas", "most steps of a canvas", "steps a token", "share converged",
    "late flips", "late flips a token", "tokens",
)  # fmt: skip
SCORE = (
    "smallest log-probability", "second smallest log-probability", "first decile of log-probability", "first quartile of log-probability",
    "mean log-probability", "share of first choices", "tokens that are no first choice", "largest rank", "share of agreeing prefix",
    "agreeing prefix", "log-probability behind the prefix", "tokens",
)  # fmt: skip
AGREEMENT = (
    "candidates", "share of equal texts", "share of equal numbers", "share of equal last numbers", "mean share of common words",
    "least share of common words", "spread of lengths", "length over the mean length",
)  # fmt: skip

_WORD = re.compile(r"\w+")


def denoiser_features(evidence: DraftEvidence) -> Vector | None:
    """DENOISER, (len(DENOISER),), or None when the draft came without steps or entropies. Entropies and log-probabilities in nats."""
    if not evidence.steps or not evidence.token_entropy:
        return None
    rising = np.sort(np.asarray(evidence.token_entropy))
    falling = rising[::-1]
    entropy = falling.tolist()
    logprobs = np.sort(np.asarray(evidence.token_logprobs or (0.0,)))
    logprob = logprobs.tolist()
    tokens, last = len(entropy), len(entropy) - 1
    values = (
        falling.sum() / tokens,
        *(_at(entropy, share) for share in (0.5, 0.25, 0.1)),
        *(entropy[min(place, last)] for place in range(3)),
        np.count_nonzero(rising > 0.1) / tokens,
        np.count_nonzero(rising > 0.01) / tokens,
        logprob[0],
        _at(logprob, 0.1),
        logprobs.sum() / len(logprob),
        sum(evidence.steps) / len(evidence.steps),
        max(evidence.steps),
        sum(evidence.steps) / tokens,
        sum(evidence.converged) / max(1, len(evidence.converged)),
        np.log1p(evidence.late_flips),
        evidence.late_flips / tokens,
        np.log1p(tokens),
    )
    return np.array(values, np.float32)


def score_features(evidence: DraftEvidence) -> Vector | None:
    """SCORE, (len(SCORE),), or None when the refiner has not scored the draft. Log-probabilities in nats."""
    score = evidence.score
    if score is None or not score.token_logprobs or len(score.token_ranks) != len(score.token_logprobs):
        return None
    logprobs, ranks = np.asarray(score.token_logprobs), np.asarray(score.token_ranks)
    ordered = np.sort(logprobs)
    tokens, prefix = len(ordered), min(score.agreeing_prefix, len(ordered))
    values = (
        ordered[0],
        ordered[min(1, tokens - 1)],
        _at(ordered, 0.1),
        _at(ordered, 0.25),
        ordered.mean(),
        (ranks == 0).mean(),
        np.count_nonzero(ranks),
        np.log1p(ranks.max()),
        prefix / tokens,
        np.log1p(prefix),
        logprobs[prefix] if prefix < tokens else 0.0,
        np.log1p(tokens),
    )
    return np.array(values, np.float32)


def agreement_features(evidence: DraftEvidence) -> Vector | None:
    """AGREEMENT, (len(AGREEMENT),), or None without other candidates. Common words: Jaccard index of the sets of words."""
    if not evidence.others:
        return None
    text, others = bounded(evidence.text), [bounded(other) for other in evidence.others]
    mine, numbers = normalised(text), numbers_in(text)
    words, theirs = set(_WORD.findall(mine)), [numbers_in(other) for other in others]
    equal = [normalised(other) for other in others]
    common = [_jaccard(words, set(_WORD.findall(other))) for other in equal]
    lengths = np.array([len(text), *map(len, others)], dtype=float)
    values = (
        len(others),
        sum(other == mine for other in equal) / len(others),
        sum(other == numbers for other in theirs) / len(others),
        sum(other[-1:] == numbers[-1:] for other in theirs) / len(others),
        sum(common) / len(common),
        min(common),
        lengths.std() / max(1.0, lengths.mean()),
        lengths[0] / max(1.0, lengths.mean()),
    )
    return np.array(values, np.float32)


OPTIONAL: dict[str, tuple[tuple[str, ...], Callable[[DraftEvidence], Vector | None]]] = {
    "score": (SCORE, score_features),
    "denoiser": (DENOISER, denoiser_features),
    "agreement": (AGREEMENT, agreement_features),
}  # by group, the most telling first: the names of its features and the function that finds them
SIZES = {"text": len(TEXT)} | {group: len(names) for group, (names, _) in OPTIONAL.items()}


def draft_features(evidence: DraftEvidence, checks: Sequence[Check], task: Task | None = None) -> dict[str, Vector]:
    """The groups that are there, "text" first, in the order of SIZES; the task is that of the evidence's messages."""
    found = {group: find(evidence) for group, (_, find) in OPTIONAL.items()}
    return {"text": text_features(evidence, checks, task)} | {
        group: row for group, row in found.items() if row is not None
    }


def _at(ordered: Sequence[float] | NDArray[np.float64], share: float) -> float:
    """The order statistic at a share of the way: an empirical quantile without interpolation."""
    return ordered[int(share * (len(ordered) - 1))]


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0
