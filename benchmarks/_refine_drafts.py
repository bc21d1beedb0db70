"""Drafts of every kind, made from what the refiner itself would answer."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import torch
from transformers import AutoTokenizer

from ar_engine.api import Draft
from benchmarks._refine_systems import DEMO
from demo_models import store
from demo_models.tasks import Conversation, conversations
from diffusion_engine.api import DraftRequest, DraftResult, DraftSettings
from diffusion_engine.engine import DiffusionEngine
from engine_core.chat import ChatTokenizer

RIGHT, ONE_WRONG, HALF_WRONG, ELSE, DRAFTED = "right", "one token wrong", "half wrong", "something else", "drafted"
KINDS = (RIGHT, ONE_WRONG, HALF_WRONG, ELSE, DRAFTED)


class Drafts:
    """Makes drafts from answers, the same ones with the same seed."""

    def __init__(self, seed: int) -> None:
        tokenizer = AutoTokenizer.from_pretrained(DEMO)
        self._chat = ChatTokenizer(tokenizer)
        special = self._chat.silent_ids | self._chat.byte_ids
        self.ordinary = [token for token in range(len(tokenizer)) if token not in special]
        self._rng = random.Random(f"drafts:{seed}")
        self._others = conversations("combinations", seed + 1)

    def of(self, case: Conversation, answer: Sequence[int]) -> dict[str, Draft]:
        """One of each kind but `DRAFTED`; half of the tokens is rounded up."""
        length = len(answer)
        return {
            RIGHT: self._draft(answer),
            ONE_WRONG: self._draft(self._wrong(answer, self._rng.sample(range(length), min(1, length)))),
            HALF_WRONG: self._draft(self._wrong(answer, self._rng.sample(range(length), (length + 1) // 2))),
            ELSE: self._draft(self._chat.encode(self._other(case.family).answer)),
        }

    def _other(self, family: str) -> Conversation:
        """A conversation of another family."""
        return next(case for case in self._others if case.family != family)

    def _wrong(self, answer: Sequence[int], places: list[int]) -> list[int]:
        """Other ordinary tokens at these places."""
        wrong = list(answer)
        for place in places:
            while wrong[place] == answer[place]:
                wrong[place] = self._rng.choice(self.ordinary)
        return wrong

    def _draft(self, ids: Sequence[int]) -> Draft:
        return Draft(text=self._chat.decode(ids), token_ids=tuple(ids), tokenizer_fingerprint=self._chat.fingerprint)


@asynccontextmanager
async def draft_engine() -> AsyncIterator[DiffusionEngine]:
    """The demo draft model, as shipped."""
    engine = DiffusionEngine(DraftSettings(model=str(store.path("draft")), threads=torch.get_num_threads()))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def drafted(cases: Sequence[Conversation]) -> list[Draft]:
    """What the demo draft model makes of each conversation."""
    made = []
    async with draft_engine() as engine:
        for case in cases:
            request = DraftRequest(request_id="", messages=case.messages, prefix_key=None)
            results = [event async for event in engine.draft(request) if isinstance(event, DraftResult)]
            made.append(
                Draft(
                    text=results[0].text,
                    token_ids=results[0].token_ids,
                    tokenizer_fingerprint=results[0].tokenizer_fingerprint,
                )
            )
    return made
