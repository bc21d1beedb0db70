"""The pipeline with scripted engines: what is asked of them, what is kept, what is judged again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest

from ar_engine import api as ar
from router.errors import BadRequest, FormatUnmet
from router.policy import DecisionRecord, Policy, QualityTarget, replay
from router.serving.messages import Ask, ChoiceEnd, Decided, Delta, Finished, Kept, Provisional, Texts
from router.serving.pipeline import Pipeline
from tests.fakes import HANG, FakeComplexity, FakeDraftEngine, FakeQuality, FakeRefineEngine, draft_result

pytestmark = pytest.mark.anyio


class FakeFlight:
    def __init__(self, cache: "FakeCache", kept: Kept | None, leads: bool) -> None:
        self.cache, self.kept, self.leads = cache, kept, leads

    async def land(self, kept: Kept) -> None:
        self.cache.kept = kept


class FakeCache:
    """Holds one entry, whatever is asked."""

    def __init__(self) -> None:
        self.kept: Kept | None = None

    @asynccontextmanager
    async def board(self, ask: Ask, enough: Any, wait_s: float) -> AsyncIterator[FakeFlight]:
        enough = self.kept is not None and enough(self.kept)
        yield FakeFlight(self, self.kept, not enough)


class House:
    """A pipeline and all around it."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.draft, self.refine, self.cache = FakeDraftEngine(), FakeRefineEngine(), FakeCache()
        self.records: list[DecisionRecord] = []
        self.texts: list[Texts] = []
        self.quality = FakeQuality()
        self.use(policy or Policy())

    def use(self, policy: Policy) -> None:
        cache: Any = self.cache
        self.pipeline = Pipeline(
            draft=self.draft,
            refine=self.refine,
            complexity=FakeComplexity(),
            quality=self.quality,
            cache=cache,
            policy=policy,
            observe=self.observe,
        )

    def observe(self, record: DecisionRecord, texts: Texts) -> None:
        self.records.append(record)
        self.texts.append(texts)

    async def ask(self, question: str, **fields: Any) -> list[Any]:
        ask = Ask(request_id="r", model="draftgate", messages=({"role": "user", "content": question},), **fields)
        async with aclosing(self.pipeline.answer(ask, 10.0)) as events:
            return [event async for event in events]


def texts(events: list[Any], choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta) and event.choice == choice)


def route(events: list[Any]) -> tuple[str, str]:
    decision = events[-1].decision
    return decision.route, decision.reason


async def test_events_come_in_order() -> None:
    events = await House().ask("hello")
    assert [type(event) for event in events] == [Decided, Delta, ChoiceEnd, Finished]
    assert events[0].decision == events[-1].decision


async def test_several_choices_are_as_many_drafts_of_which_the_worst_counts() -> None:
    house = House()
    events = await house.ask("hello", n=3)
    assert [texts(events, at) for at in range(3)] == ["draft of hello", "draft of hello (1)", "draft of hello (2)"]
    assert [event.choice for event in events if isinstance(event, ChoiceEnd)] == [0, 1, 2]
    assert events[-1].usage.completion_tokens == 3 + 4 + 4
    good, bad = draft_result("fine"), draft_result("bad")
    house.draft.enqueue([good, bad])
    house.cache.kept = None
    events = await house.ask("hello", n=2)
    assert route(events) == ("refine", "quality")
    assert [texts(events, at) for at in range(2)] == ["answer to hello "] * 2
    assert house.refine.requests[-1].n == 2


async def test_of_several_candidates_the_best_is_shown_and_kept() -> None:
    house = House(Policy(candidates=2))
    house.draft.enqueue([draft_result("bad one"), draft_result("fine one")])
    events = await house.ask("hello")
    assert texts(events) == "fine one"
    assert house.draft.requests[0].candidates == 2
    assert house.cache.kept is not None
    assert [draft.text for draft in house.cache.kept.drafts] == ["fine one"]
    house.cache.kept = None
    await house.ask("again", candidates=4)
    assert house.draft.requests[1].candidates == 4


async def test_of_more_candidates_than_choices_the_best_are_the_choices() -> None:
    house = House()
    house.draft.enqueue([draft_result(text) for text in ("fine one", "bad one", "good one")])
    events = await house.ask("hello", n=2, candidates=3)
    assert house.draft.requests[0].candidates == 3
    assert route(events) == ("draft", "accepted")
    assert [event.choice for event in events if isinstance(event, ChoiceEnd)] == [0, 1]
    assert [texts(events, at) for at in range(2)] == ["fine one", "good one"]
    assert route(await house.ask("hello", n=2, candidates=3)) == ("cache", "hit")


async def test_what_only_the_refiner_can_do_goes_to_it_with_everything_it_needs() -> None:
    house = House()
    tools = ({"type": "function", "function": {"name": "price"}},)
    call = ar.ToolCall(index=0, id="call_1", name="price", arguments="{}")
    house.refine.enqueue([ar.RefineDelta(tool_calls=(call,))])
    events = await house.ask("hello", needs=("tools",), tools=tools, tool_choice="auto")
    assert route(events) == ("direct", "tools")
    assert not house.draft.requests
    assert house.refine.requests[0].tools == tools
    assert house.refine.requests[0].tool_choice == "auto"
    assert [event.tool_calls for event in events if isinstance(event, Delta)] == [(call,)]
    assert [event.finish_reason for event in events if isinstance(event, ChoiceEnd)] == ["tool_calls"]


async def test_logprobs_pass_through() -> None:
    events = await House().ask("hard", logprobs=2, needs=("logprobs",))
    first = next(event for event in events if isinstance(event, Delta))
    assert first.logprobs[0].token == first.text
    assert len(first.logprobs[0].top) == 2


OBJECT = {"type": "json_object"}


async def test_a_draft_in_the_asked_format_is_accepted_and_another_is_refined() -> None:
    house = House(Policy(quality_threshold=0.0))
    house.draft.enqueue('{"a": 1}')
    assert route(await house.ask("hello", response_format=OBJECT)) == ("draft", "accepted")
    house.cache.kept = None
    house.refine.enqueue('{"b": 2}')
    events = await house.ask("hello", response_format=OBJECT)
    assert route(events) == ("refine", "verifier:json_format")
    assert texts(events) == '{"b": 2} '
    assert house.refine.requests[-1].response_format is None  # this engine can't hold an answer to one


async def test_an_engine_that_can_is_told_the_format() -> None:
    house = House()
    house.refine.formats = True
    house.refine.enqueue('{"b": 2}')
    await house.ask("hard", response_format=OBJECT)
    assert house.refine.requests[-1].response_format == OBJECT


@pytest.mark.parametrize("wanted", ["auto", "draft", "refine"])
async def test_an_answer_without_the_asked_format_is_refused_and_nothing_of_it_shown(wanted: str) -> None:
    house = House()
    ask = Ask(
        request_id="r",
        model="draftgate",
        messages=({"role": "user", "content": "hello"},),
        response_format=OBJECT,
        wanted=wanted,  # type: ignore[arg-type]
    )
    async with aclosing(house.pipeline.answer(ask, 10.0)) as events:
        with pytest.raises(FormatUnmet):
            await anext(events)
    assert house.cache.kept is None
    assert house.records[-1].status == 422


async def test_a_format_no_answer_could_be_held_to_is_refused_at_once() -> None:
    house = House()
    with pytest.raises(BadRequest, match="another schema"):
        await house.ask("hello", response_format={"type": "json_schema", "json_schema": {"schema": {"impossible": 1}}})
    assert not house.draft.requests
    assert not house.refine.requests


async def test_a_provisional_draft_is_shown_as_it_settles_before_the_route_is_known() -> None:
    house = House()
    events = await house.ask("hello", provisional=True)
    assert [type(event) for event in events] == [Provisional, Decided, Delta, ChoiceEnd, Finished]
    assert events[0] == Provisional(text="dr", canvas=0, step=1, settled=(1, 1))
    assert not any(isinstance(event, Provisional) for event in await House().ask("hello"))


async def test_infilling_answers_with_what_was_filled_in() -> None:
    house = House()
    house.draft.enqueue([draft_result("one two three", filled=("two",))])
    events = await house.ask("fill", wanted="draft", template=("one ", 4, " three"))
    assert texts(events) == "two"
    assert house.draft.requests[0].template == ("one ", 4, " three")


async def test_engines_share_prefixes_within_a_tenant_only_and_are_told_the_class() -> None:
    house = House()
    await house.ask("hello", tenant="acme", priority=2)
    house.cache.kept = None
    await house.ask("hard", tenant="acme", refine_mode="polish", presence_penalty=0.5, frequency_penalty=0.25)
    assert house.draft.requests[0].prefix_key == house.refine.requests[-1].prefix_key == "acme"
    assert house.draft.requests[0].priority == 2
    assert house.refine.requests[-1].presence_penalty == 0.5
    assert house.refine.requests[-1].frequency_penalty == 0.25


async def test_a_changed_threshold_judges_again_what_is_kept() -> None:
    house = House(Policy(quality_threshold=0.9))
    assert route(await house.ask("hello")) == ("draft", "accepted")
    assert route(await house.ask("hello")) == ("cache", "hit")
    house.use(Policy(quality_threshold=0.99))  # no longer enough: refined, without another draft
    events = await house.ask("hello")
    assert route(events) == ("refine", "quality")
    assert len(house.draft.requests) == 1
    assert house.refine.requests[-1].draft.text == "draft of hello"
    events = await house.ask("hello")  # and both are kept
    assert route(events) == ("cache", "hit")
    assert events[-1].decision.cached_route == "refine"
    house.use(Policy(quality_threshold=0.9))
    events = await house.ask("hello")
    assert (texts(events), events[-1].decision.cached_route) == ("draft of hello", "draft")
    assert len(house.draft.requests) == len(house.refine.requests) == 1


async def test_a_quality_target_judges_again_too() -> None:
    house = House(Policy(quality_targets=(QualityTarget(bad=0.05, threshold=0.9),)))
    assert route(await house.ask("hello", quality_target=0.05)) == ("draft", "accepted")
    assert route(await house.ask("hello", quality_target=0.1)) == ("cache", "hit")
    assert route(await house.ask("hello", quality_target=0.01)) == ("refine", "quality_target")


async def test_another_acceptor_judges_the_kept_draft_anew() -> None:
    house = House()
    await house.ask("hello")
    house.quality.version = "fake-quality-2"
    house.use(Policy())
    assert route(await house.ask("hello")) == ("draft", "accepted")
    assert len(house.draft.requests) == 1
    assert house.cache.kept is not None
    assert house.cache.kept.quality_version == "fake-quality-2"


async def test_a_draft_cut_short_by_its_deadline_is_not_kept() -> None:
    house = House(Policy(quality_threshold=0.0))
    house.draft.enqueue([draft_result("half a", finish_reason="deadline")])
    await house.ask("hello")
    assert house.cache.kept is not None
    assert house.cache.kept.drafts == ()


async def test_records_replay_also_those_of_cached_answers() -> None:
    house = House()
    for question in ("hello", "hello", "hard", "hard"):
        if len(house.records) == 2:
            house.cache.kept = None
        await house.ask(question)
    for record in house.records:
        again = msgspec.json.decode(msgspec.json.encode(record), type=DecisionRecord)
        choice = replay(again)
        assert choice is not None
        assert choice.route == (record.cached_route or record.route)
    assert [record.route for record in house.records] == ["draft", "cache", "direct", "cache"]
    assert house.records[0].first_token_s is not None
    assert house.records[0].draft_s is not None


async def test_what_was_said_is_told_beside_the_record_and_never_in_it() -> None:
    house = House()
    await house.ask("hello canary-42")
    assert house.texts == [Texts("hello canary-42", "draft of hello canary-42")]
    assert b"canary" not in msgspec.json.encode(house.records[0])


async def test_closing_the_events_frees_the_engine() -> None:
    house = House()
    house.draft.enqueue(HANG)
    ask = Ask(request_id="r", model="draftgate", messages=({"role": "user", "content": "hello"},))
    events = house.pipeline.answer(ask, 10.0)
    first = asyncio.ensure_future(anext(events))
    while not house.draft.running:
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await events.aclose()
    assert house.draft.running == 0
    assert house.records[-1].status == 499
