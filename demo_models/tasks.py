"""Seeded conversations with the demo shop whose right answers are known, in three splits that never mix."""

import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Literal

from msgspec import Struct

from demo_models.complex import COMPLEX
from demo_models.families import Case, Family
from demo_models.grammar import SYSTEM_PROMPTS, dress, expand, misspell
from demo_models.shop import CATALOGUE, MONTHS, NOT_SOLD
from demo_models.simple import SIMPLE

Split = Literal["train", "combinations", "wordings"]
FAMILIES = {family.name: family for family in (*SIMPLE, *COMPLEX)}
TYPO_SHARE = 0.08
SYSTEM_SHARE = 0.1
MOST_REJECTED = 10_000  # in a row, before a split counts as empty
HELD_OUT = 8  # one combination in eight is never trained on

_PROTECTED = frozenset(
    [i.name for i in CATALOGUE] + [i.plural for i in CATALOGUE] + [i.material for i in CATALOGUE]
    + list(NOT_SOLD) + [month.lower() for month, _ in MONTHS]
)  # fmt: skip


class Conversation(Struct, frozen=True, kw_only=True):
    """A conversation that ends with a user's turn, and the one right answer to it."""

    family: str
    is_complex: bool
    messages: tuple[dict[str, str], ...]
    answer: str

    def is_right(self, answer: str) -> bool:
        """Whether an answer is word for word the right one (white space aside)."""
        return answer.split() == self.answer.split()


def conversations(
    split: Split,
    seed: int,
    complex_share: float = 0.3,
    families: tuple[str, ...] | None = None,
    emphasis: Mapping[str, int] = {},
) -> Iterator[Conversation]:
    """Endless conversations of one split; the same seed gives the same ones.

    Args:
        split: `train`; `combinations`: trained wordings, facts (or facts with wording) never trained on;
            `wordings`: sentences no training example uses, over any facts.
        seed: any integer.
        complex_share: share of complex families, families of one kind being equally likely.
        families: only these, equally likely.
        emphasis: families that come this many times as often as the others of their kind.

    Raises:
        ValueError: the families have nothing in this split.
    """
    rng = random.Random(f"{split}:{seed}")
    chosen = [FAMILIES[name] for name in families] if families else None
    simple, complex_ = ([f for f in kind for _ in range(emphasis.get(f.name, 1))] for kind in (SIMPLE, COMPLEX))
    rejected = 0
    while rejected < MOST_REJECTED:
        family = rng.choice(chosen or (complex_ if rng.random() < complex_share else simple))
        case = family.sample(rng)
        wording = rng.choice(family.unseen_wordings if split == "wordings" else family.wordings)
        question = expand(expand(wording, rng, **case.slots), rng)  # slots may hold choices of their own
        if split != "wordings" and _is_held_out(family, case, question) != (split == "combinations"):
            rejected += 1
            continue
        rejected = 0
        yield _converse(family, case, question, rng)
    raise ValueError(f"expected families that have {split}, got {families}")


def _is_held_out(family: Family, case: Case, question: str) -> bool:
    combination = (family.name, case.key, question if family.small else "")
    return hashlib.sha256(repr(combination).encode()).digest()[0] % HELD_OUT == 0


def _converse(family: Family, case: Case, question: str, rng: random.Random) -> Conversation:
    question = question if family.name in ("greeting", "thanks") else dress(question, rng)
    if rng.random() < TYPO_SHARE:
        question = misspell(question, rng, _PROTECTED)
    if case.document:
        question = f"{case.document}\n{question}" if rng.random() < 0.5 else f"{question}\n{case.document}"
    turns = [*case.before, ("user", question[0].upper() + question[1:] if rng.random() < 0.8 else question)]
    if rng.random() < SYSTEM_SHARE:
        turns.insert(0, ("system", rng.choice(SYSTEM_PROMPTS)))
    return Conversation(
        family=family.name,
        is_complex=family.is_complex,
        messages=tuple({"role": role, "content": text} for role, text in turns),
        answer=case.answer,
    )
