"""One answer in the making: what is asked for, what stands in the cache, what is tried next. Plain Python: no torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from ar_engine.speculate import Guide

MOST_ALTERNATIVES = 20


class Sampling(Struct, frozen=True, kw_only=True):
    """How tokens are chosen and when an answer ends."""

    max_tokens: int
    end_ids: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: int | None = None  # alternatives to tell of

    def check(self) -> None:
        """Raise ValueError unless every number is in its range; says expected and got."""
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"expected a temperature of at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"expected 0 < top_p <= 1, got {self.top_p}")
        if not 0 <= self.top_k < 2**31:
            raise ValueError(f"expected top_k of at least 0 and of 31 bits, got {self.top_k}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ValueError(f"expected {name} of -2 to 2, got {getattr(self, name)}")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ValueError(f"expected a repetition_penalty of 0.01 to 100, got {self.repetition_penalty}")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"expected a seed of 64 bits, got {self.seed}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_ALTERNATIVES:
            raise ValueError(f"expected logprobs of 0 to {MOST_ALTERNATIVES}, got {self.logprobs}")

    @property
    def penalises(self) -> bool:
        """Whether what has been said makes a token more or less likely."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


class Row(NamedTuple):
    """What is asked of one row of logits: which token comes next, and what is thought of the one that is tried there."""

    sampling: Sampling
    position: int  # of the token to be chosen; the random number is drawn for it
    tried: int = -1  # -1: nothing is
    told: bool = False  # whether the log-probabilities and ranks are wanted
    lenient: bool = False  # whether it is wanted if the tried token is likely enough
    prompt: tuple[int, ...] | list[int] = ()  # for penalties: ...
    answer: tuple[int, ...] | list[int] = ()  # ... what was said before


class Choice(NamedTuple):
    """What a row of logits says. Log-probabilities are those of the model itself, before temperature and penalties."""

    token: int
    likely: bool = False  # the tried token is likely enough
    logprob: float = 0.0  # natural log, of `token`
    tried_logprob: float = 0.0  # of the tried one
    tried_rank: int = 0  # of the tried one; 0: the most likely
    best: int = -1  # the most likely token
    top: tuple[tuple[int, float], ...] = ()  # the most likely tokens and their log-probabilities


@dataclass(eq=False)
class Sequence:
    """A prompt and its growing answer.

    Attributes:
        tokens: the prompt, and after it the answer.
        encoded: how many of `tokens` stand in the cache; of a running sequence never all, because the next token follows from the last row.
        reused: how many of these another request had encoded.
        slot: its place on the device, while it runs.
        forwards: forward passes it took part in.
        guide: to the draft, if there is one.
        lenient: whether the draft's beginning is kept as long as it is likely enough.
        images: of the prompt, as `prompts` made them.
        whole_images: whether an image's tokens see each other, so that they have to be encoded together.
        details: of each token of the answer, where they are wanted.
    """

    sampling: Sampling
    prompt: list[int]
    guide: Guide | None = None
    lenient: bool = False
    images: tuple[Any, ...] = ()
    whole_images: bool = False
    choice: int = 0
    tokens: list[int] = field(default_factory=list)
    encoded: int = 0
    reused: int = 0
    slot: int = -1
    forwards: int = 0
    details: list[tuple[float, tuple[tuple[int, float], ...]]] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    ended: bool = False  # by a token of its own, which is not part of the answer

    def __post_init__(self) -> None:
        self.tokens = self.tokens or list(self.prompt)

    @property
    def longest(self) -> int:
        """The most positions it will ever hold."""
        return len(self.prompt) + self.sampling.max_tokens

    @property
    def pending(self) -> int:
        """Tokens that are not encoded yet; at least the last one, until the end."""
        return len(self.tokens) - self.encoded

    @property
    def answer(self) -> list[int]:
        """The tokens of the answer so far."""
        return self.tokens[len(self.prompt) :]

    @property
    def kept(self) -> int:
        """Leading tokens of the draft that stand in the answer."""
        draft = self.guide.draft if self.guide else []
        return leading(theirs == ours for theirs, ours in zip(draft, self.answer, strict=False))

    def whole(self, count: int) -> int:
        """How many tokens to encode, about `count`, so that no image is cut that must not be."""
        if not self.whole_images or not count:
            return count
        end = self.encoded + count
        for image in self.images:
            if image.start < end < image.start + image.count:
                before = image.start - self.encoded
                return before if before > 0 else image.start + image.count - self.encoded
        return count

    def propose(self, rows: int) -> list[int]:
        """Tokens to try behind the last one, at most `rows`. One less than the answer may have, since each step adds one."""
        room = self.sampling.max_tokens - len(self.answer) - 1
        return self.guide.propose(self.answer, min(rows, room)) if self.guide else []

    def rows(self, tried: list[int]) -> list[Row]:
        """What is asked of the rows of logits behind the last token and behind each one that is tried."""
        sampling, answer = self.sampling, self.answer
        following = self._following(tried)
        lenient = self.lenient and self.guide is not None and answer == self.guide.draft[: len(answer)]
        told, penalises = sampling.logprobs is not None, sampling.penalises
        return [
            Row(
                sampling,
                len(self.tokens) + i,
                token,
                told,
                lenient and token >= 0,
                self.prompt if penalises else (),
                answer + tried[:i] if penalises else (),
            )
            for i, token in enumerate([*tried, following])
        ]

    def _following(self, tried: list[int]) -> int:
        """Where drafts are kept leniently, the draft's token behind those tried, else -1: the last row judges it without a forward for it."""
        draft, at = self.guide.draft if self.guide and self.lenient else [], len(self.answer) + len(tried)
        return draft[at] if at < len(draft) else -1

    def commit(self, tried: list[int], choices: list[Choice]) -> int:
        """Take in what the model chose: tried tokens as long as they are right, then one of its own.

        Returns:
            How many of the tried tokens were taken.
        """
        right = leading(token == choice.token or choice.likely for token, choice in zip(tried, choices, strict=False))
        if self.guide:
            self.guide.learn(len(tried), right)
        taken = [
            (token, choice.tried_logprob, choice.top) for token, choice in zip(tried[:right], choices, strict=False)
        ]
        own = choices[right]
        next_one = (own.token, own.logprob, own.top)
        if right == len(tried) and own.likely:  # so that what is kept doesn't depend on how many were tried at once
            next_one = (self._following(tried), own.tried_logprob, own.top)
        for token, logprob, top in [*taken, next_one]:
            if token in self.sampling.end_ids:
                self.finish, self.ended = "stop", True
                break
            self.tokens.append(token)
            if self.sampling.logprobs is not None:
                self.details.append((logprob, top))
            if len(self.tokens) == self.longest:
                self.finish = "length"
                break
        return right

    def cut(self, length: int) -> None:
        """End the answer after so many tokens, at a stop string."""
        del self.tokens[len(self.prompt) + length :], self.details[length:]
        self.finish, self.ended = "stop", False


@dataclass(eq=False)
class Scored(Sequence):
    """A draft that is read and judged, not rewritten: all of it is tried, and all of it is taken.

    Attributes:
        draft: token ids, all of which are to be scored.
        scores: of those read so far.
    """

    draft: list[int] = field(default_factory=list)
    scores: list[Choice] = field(default_factory=list)

    def propose(self, rows: int) -> list[int]:
        """The next tokens of the draft, at least one even if that is a row too many."""
        return self.draft[len(self.scores) :][: max(rows, 1)]

    def rows(self, tried: list[int]) -> list[Row]:
        """Log-probabilities and ranks of what is tried."""
        return [Row(self.sampling, len(self.tokens) + i, token, told=True) for i, token in enumerate([*tried, -1])]

    def commit(self, tried: list[int], choices: list[Choice]) -> int:
        """Take in what the model thinks of some more of the draft."""
        self.scores += choices[: len(tried)]
        self.tokens += tried
        if len(self.scores) == len(self.draft):
            self.finish = "length"
        return len(tried)


def leading(conditions: Iterable[bool]) -> int:
    """How many hold before the first that doesn't."""
    count = 0
    for condition in conditions:
        if not condition:
            break
        count += 1
    return count
