"""Numbers that describe a conversation or a draft. A stored model names the version it was trained on."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer

from classifiers.api import DraftEvidence

CONVERSATION_VERSION = "conversation-1"
DRAFT_VERSION = "draft-1"
HASHED = 4096

_VECTORIZER: Any = HashingVectorizer(n_features=HASHED, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", norm="l2")
_NUMBER = re.compile(r"\d+")
COUNTS = ("turns", "words", "numbers", "commas", "signs", "questions", "lines", "longest number")
DRAFT_FEATURES = (
    "mean entropy", "largest entropy", "second largest entropy", "ninth decile of entropy", "share of tokens above 0.1 nat",
    "smallest log-probability", "mean log-probability", "steps a canvas", "share converged", "late flips", "tokens", "digits",
)  # fmt: skip


def text_of(message: Mapping[str, Any]) -> str:
    """A message's text, its parts joined."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def conversation_features(messages: Sequence[Mapping[str, Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sparse features of a whole conversation: columns and values, `HASHED + len(COUNTS)` columns in all.

    Words and pairs of words (numbers as "0") of the last user turn and, marked apart, of the turn before it are hashed;
    system prompts are left out, since they say nothing about one request's difficulty. Counts are log(1 + n).
    """
    spoken = [text_of(message) for message in messages if message.get("role") != "system"] or [""]
    last = spoken[-1]
    before = " ".join(f"before_{word}" for word in spoken[-2].split()[:40]) if len(spoken) > 1 else ""
    hashed = _VECTORIZER.transform([_NUMBER.sub("0", f"{last} {before}")])
    numbers = _NUMBER.findall(last)
    counts = np.log1p(
        np.array(
            [
                len(spoken),
                len(last.split()),
                len(numbers),
                last.count(",") + last.count(" and "),
                sum(last.count(sign) for sign in "$%+=<>"),
                last.count("?"),
                last.count("\n"),
                max(map(len, numbers), default=0),
            ],
            dtype=np.float32,
        )
    )
    columns = np.concatenate([hashed.indices, np.arange(HASHED, HASHED + len(COUNTS), dtype=np.int32)])
    return columns, np.concatenate([hashed.data, counts])


def draft_features(evidence: DraftEvidence) -> NDArray[np.float32]:
    """`DRAFT_FEATURES` of a finished draft; an empty draft has zeros where its tokens would speak."""
    entropy = np.sort(np.asarray(evidence.token_entropy or (0.0,)))[::-1]
    logprob = np.asarray(evidence.token_logprobs or (0.0,))
    values = (
        entropy.mean(),
        entropy[0],
        entropy[min(1, len(entropy) - 1)],
        np.quantile(entropy, 0.9),
        (entropy > 0.1).mean(),
        logprob.min(),
        logprob.mean(),
        np.mean(evidence.steps or (0,)),
        np.mean(evidence.converged or (False,)),
        np.log1p(evidence.late_flips),
        np.log1p(len(evidence.token_entropy)),
        np.log1p(sum(character.isdigit() for character in evidence.text)),
    )
    return np.array(values, dtype=np.float32)
