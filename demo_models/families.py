"""What families of questions have in common: a name, a sampler, and wordings kept apart for testing."""

import random
from collections.abc import Callable

from msgspec import Struct

Turn = tuple[str, str]  # role, text


class Case(Struct, frozen=True):
    """One question with its facts fixed and its wording still open."""

    slots: dict[str, object]  # what the wordings may mention
    answer: str
    key: tuple[object, ...]  # the combination of facts, for the held-out split
    before: tuple[Turn, ...] = ()  # earlier turns of the conversation
    document: str = ""  # pasted text that comes with the question


class Family(Struct, frozen=True):
    """A family of questions that are answered the same way."""

    name: str
    is_complex: bool
    sample: Callable[[random.Random], Case]
    wordings: tuple[str, ...]  # used in training
    unseen_wordings: tuple[str, ...]  # never used in training
    small: bool = False  # few facts: the combination held out is facts with wording, not facts alone
