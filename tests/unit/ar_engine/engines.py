"""Small engines for the tests: a tiny model in a core, spoken to in token ids, and a runner that stands in for a model."""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Listed
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ar_engine import attention
from ar_engine.api import Draft, DraftScore, RefineDelta, RefineRequest, RefineResult, RefineSettings, ScoreRequest
from ar_engine.core import Core
from ar_engine.load import core_of
from ar_engine.prompts import Prompts
from ar_engine.sampler import choose
from ar_engine.scheduler import Scheduler, Work
from ar_engine.sequence import Choice, Sequence
from engine_core.chat import ChatTokenizer
from engine_core.loop import Ticket
from tests.tiny_causal import EOS, tiny_model


class Ids(ChatTokenizer):
    """Text is token ids with spaces between: "3 17 5"."""

    fingerprint = "ids"

    def __init__(self) -> None:
        pass

    def prompt(self, messages: Iterable[Mapping[str, Any]], tools: Any = (), **variables: Any) -> list[int]:
        return self.encode(" ".join(message["content"] for message in messages))

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Listed[int], special: bool = False) -> str:
        return "".join(f"{token} " for token in ids)

    def token_id(self, token: str) -> None:
        return None


class Pair(NamedTuple):
    """The same model as transformers runs it and as ours does."""

    theirs: PreTrainedModel
    ours: PreTrainedModel

    def core(self, **settings: Any) -> Core:
        return make_core(self.ours, **settings)

    def generate(self, prompt: list[int], most: int, **inputs: Any) -> list[int]:
        """What transformers' greedy `generate` answers, without the token that ends it."""
        ids = torch.tensor([prompt])
        known = {
            "attention_mask": torch.ones_like(ids),
            "do_sample": False,
            "max_new_tokens": most,
        }  # else 0 is padding
        with torch.no_grad():
            found = self.theirs.generate(ids, **known, **inputs)  # pyright: ignore[reportCallIssue]
        answer = found[0, len(prompt) :].tolist()
        return answer[:-1] if answer[-1] in EOS else answer


@cache
def pair(name: str, **changes: Any) -> Pair:
    """Of `tests.tiny_causal`, by name."""
    theirs, ours = (tiny_model(name, **changes) for _ in range(2))
    attention.use_in(ours)
    return Pair(theirs, ours)


def make_core(model: PreTrainedModel, prompts: Prompts | None = None, **settings: Any) -> Core:
    """A core with slots and a cache of its own."""
    return core_of(model, prompts or Prompts(Ids()), RefineSettings(**settings))


class Inbox(Ticket):
    """Takes what a core says of one request."""

    def __init__(self, deadline: float | None = None) -> None:  # without an event loop
        self.deadline = deadline
        self.told: list[Any] = []
        self.error: Exception | None = None
        self.ended = False

    def send(self, *events: Any) -> None:
        assert not self.over, "nothing is told after the end"
        self.told += events

    def end(self, *events: Any) -> None:
        self.send(*events)
        self.ended = True

    def fail(self, error: Exception) -> None:
        assert not self.over, "nothing is told after the end"
        self.error = error

    @property
    def over(self) -> bool:
        return self.ended or self.error is not None

    @property
    def results(self) -> list[RefineResult]:
        """In the order of the choices; checked against the deltas."""
        assert self.error is None, self.error
        assert self.ended
        results = sorted((one for one in self.told if isinstance(one, RefineResult)), key=lambda one: one.choice)
        for result in results:
            check_deltas([one for one in self.told if isinstance(one, RefineDelta)], result)
        return results

    @property
    def result(self) -> RefineResult:
        (result,) = self.results
        return result

    @property
    def score(self) -> DraftScore:
        assert self.ended, self.error
        (score,) = self.told
        return score


def check_deltas(deltas: list[RefineDelta], result: RefineResult) -> None:
    """The deltas of a choice add up to its result."""
    deltas = [one for one in deltas if one.choice == result.choice]
    assert "".join(one.text for one in deltas) == result.text
    assert "".join(one.reasoning for one in deltas) == result.reasoning
    assert [one for delta in deltas for one in delta.logprobs] == list(result.logprobs)


def told(content: Iterable[int] | str) -> tuple[dict[str, Any], ...]:
    """A conversation of one question."""
    return ({"role": "user", "content": content if isinstance(content, str) else spoken(content)},)


def spoken(ids: Iterable[int]) -> str:
    """Token ids as `Ids` writes and reads them."""
    return " ".join(map(str, ids))


def draft_of(ids: Iterable[int], fingerprint: str = "ids") -> Draft:
    """A draft in the refiner's own tokens."""
    ids = tuple(ids)
    return Draft(text=spoken(ids), token_ids=ids, tokenizer_fingerprint=fingerprint)


def request(prompt: Iterable[int] | str, draft: Iterable[int] | None = None, **wishes: Any) -> RefineRequest:
    """A question, perhaps with a draft."""
    told_draft = None if draft is None else draft_of(draft)
    return RefineRequest(request_id="r", messages=told(prompt), draft=told_draft, **wishes)


def score_request(prompt: Iterable[int] | str, draft: Iterable[int], **wishes: Any) -> ScoreRequest:
    """A draft to be scored."""
    return ScoreRequest(request_id="s", messages=told(prompt), draft=draft_of(draft), **wishes)


def put(core: Core, asked: RefineRequest | ScoreRequest, deadline: float | None = None) -> Inbox:
    """Put a request in line."""
    inbox = Inbox(deadline)
    core.add(asked, inbox)
    return inbox


def run(core: Core) -> int:
    """Step until nothing is left to do, and see that nothing stays behind; how many steps it took."""
    steps = 0
    while core.running or core.waiting:
        core.step()
        steps += 1
        assert steps < 10_000, "it never ends"
    check_empty(core)
    return steps


def check_empty(core: Core) -> None:
    """No slot and no page is in use, and nobody is remembered."""
    assert (core.running, core.waiting, core._jobs, core._job_of) == (0, 0, {}, {})
    scheduler = core._scheduler
    assert sorted(scheduler._free_slots) == list(range(scheduler.budget.slots))
    for kind, pool in scheduler.pools.items():
        assert (pool.in_use(), pool.available) == (0, scheduler.budget.pages[kind] - 1)


def answer(core: Core, prompt: Iterable[int], draft: Iterable[int] | None = None, **wishes: Any) -> RefineResult:
    """What an idle core answers."""
    inbox = put(core, request(prompt, draft, **wishes))
    run(core)
    return inbox.result


def essence(result: RefineResult) -> tuple[Any, ...]:
    """What must depend neither on company nor on the draft."""
    return result.choice, result.token_ids, result.text, result.finish_reason, result.completion_tokens


class ToyRunner:
    """Takes its logits (V,) from a function of a sequence and the tokens before; keeps to the rules that a real runner relies on."""

    def __init__(
        self, logits: Callable[[Sequence, list[int]], Tensor], typical_floor: float = 0.1, typical_share: float = 0.3
    ) -> None:
        self._logits = logits
        self._typical = typical_floor, typical_share
        self.steps: list[list[Work]] = []
        self.fails: Exception | None = None
        self.broken: Exception | None = None

    def run(self, works: list[Work], scheduler: Scheduler) -> list[list[Choice]]:
        slots = [work.sequence.slot for work in works]
        assert len(set(slots)) == len(slots)
        assert set(slots) <= set(range(scheduler.budget.slots))
        self.steps.append(works)
        if self.fails:
            raise self.fails
        said = []
        for sequence, start, length, tried, answers in works:
            sequence.forwards += 1
            assert start == sequence.encoded
            assert length > 0
            for pages in scheduler.pages(sequence).values():
                assert len(pages.table) * 16 >= start + length + len(tried)
            rows = sequence.rows(tried) if answers else []
            ids = sequence.tokens + tried
            seen = [ids[: len(sequence.tokens) + i] for i in range(len(rows))]
            logits = [self._logits(sequence, before) for before in seen]
            said.append(choose(torch.stack(logits), rows, *self._typical) if rows else [])
        return said

    def probe(self) -> None:
        if self.broken:
            raise self.broken
