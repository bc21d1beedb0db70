"""One request, as an async generator: cache, complexity, policy, draft, check, refine, answer.

No request is lost while an engine can serve it: a draft that fails is replaced by a direct answer,
and a refiner that fails before its first word by a draft, if that passes its check. A draft that
was rejected is never shown in place of an error.

Closing the generator closes the engine's iterator, which frees its slot.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from ar_engine import api as ar
from classifiers.api import ComplexityModel, QualityModel
from diffusion_engine import api as diffusion
from router.errors import wire_of
from router.policy import (
    Choice,
    DecisionRecord,
    DraftProblem,
    Features,
    Outcome,
    Policy,
    RefineProblem,
    decide,
    judge,
    may_fall_back,
)
from router.serving.messages import Answer, Ask, Decided, Event, Finished, TextDelta
from router.serving.protocols import DraftEngine, RefineEngine
from router.serving.run import Run, drafted, evidence_of, refined_usage, remembered
from router.serving.stop import StopCutter
from router.state.cache import AnswerCache

logger = logging.getLogger("draftgate")

CLIENT_GONE = 499
# An automatic draft may use this share of the time left, so that a hanging draft engine leaves
# the refiner the rest.
DRAFT_SHARE = 0.5
SKETCH_SHARE = 0.1  # and a sketch this much

DRAFT_PROBLEMS: dict[type[Exception], DraftProblem] = {
    diffusion.DraftOverloaded: "overloaded",
    diffusion.DraftRejected: "rejected",
    diffusion.DraftDeadline: "late",
    Exception: "failed",
}
REFINE_PROBLEMS: dict[type[Exception], RefineProblem] = {
    ar.RefineOverloaded: "overloaded",
    ar.RefineRejected: "rejected",
    ar.RefineUnavailable: "failed",
    ar.RefineFailed: "failed",
}

T = TypeVar("T")


class Pipeline:
    """Answers requests; knows engines and classifiers only by their protocols."""

    def __init__(
        self,
        *,
        draft: DraftEngine,
        refine: RefineEngine,
        complexity: ComplexityModel,
        quality: QualityModel,
        cache: AnswerCache,
        policy: Policy,
        timeout_s: float,
        observe: Callable[[DecisionRecord], None],
    ) -> None:
        self._draft_engine = draft
        self._refine_engine = refine
        self._complexity = complexity
        self._quality = quality
        self._cache = cache
        self._policy = policy
        self._timeout_s = timeout_s
        self._observe = observe

    async def answer(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """Decided, then text, then Finished.

        Raises:
            DraftError, RefineError: no engine could serve the request.
        """
        run = Run(ask, self._timeout_s)
        status = CLIENT_GONE  # unless it ends by itself
        try:
            async with aclosing(self._stages(run)) as events:
                async for event in events:
                    yield event
            status = 200
        except Exception as error:
            status = wire_of(error).status
            raise
        finally:
            versions = (self._complexity.version, self._quality.version)
            self._observe(run.record(self._policy, status, versions))

    async def _stages(self, run: Run) -> AsyncGenerator[Event, None]:
        if (kept := await self._cache.get(run.ask)) is not None:
            for event in remembered(run, kept):
                yield event
            return
        run.features = features = await self._score(run.ask)
        run.choice = decide(self._policy, features)
        if run.choice.route == "draft":
            run.choice = await self._try_draft(run, features)
        elif run.choice.reason == "complexity":
            run.sketch = await self._sketch(run)
        text: list[str] = []
        async with aclosing(self._speak(run, features)) as events:
            async for event in events:
                match event:
                    case TextDelta(piece):
                        text.append(piece)
                    case Finished():
                        await self._keep(run.ask, "".join(text), event)
                    case Decided():
                        pass
                yield event

    async def _score(self, ask: Ask) -> Features:
        draft, refine = self._draft_engine.load(), self._refine_engine.load()
        complexity = None
        try:  # also where the route is explicit: people compare routes by it
            complexity = self._complexity.score(ask.messages)  # what it reads is bounded
        except Exception:
            logger.exception("complexity could not be scored; drafting")
        return Features(
            wanted=ask.wanted,
            prompt_chars=ask.prompt_chars,
            draft_state=draft.state,
            draft_context_tokens=draft.context_tokens,
            refine_state=refine.state,
            complexity=complexity,
        )

    async def _try_draft(self, run: Run, features: Features) -> Choice:
        """Draft and judge: sets the run's draft and outcome, returns what to do next."""
        explicit = features.wanted == "draft"
        refiner = run.outcome.refiner if run.outcome else None
        try:
            drafts = await self._draft(run, run.left_s * (1 if explicit else DRAFT_SHARE))
        except Exception as error:
            if explicit:
                raise
            problem = _problem(DRAFT_PROBLEMS, error)
            if problem == "failed":
                logger.exception("the draft failed; the refiner answers alone")
            run.outcome = Outcome(problem=problem, refiner=refiner)
        else:
            run.draft, run.outcome = await self._check(run.ask, drafts, refiner)
        return judge(self._policy, features, run.outcome)

    async def _draft(self, run: Run, time_s: float) -> list[diffusion.DraftResult]:
        return await self._drafted(run.draft_request(self._policy.candidates, _sooner(time_s)), time_s)

    async def _drafted(self, request: diffusion.DraftRequest, time_s: float) -> list[diffusion.DraftResult]:
        """All candidates, at least one."""
        iterator = self._draft_engine.draft(request)
        late = diffusion.DraftDeadline(f"no draft within {time_s:.1f} s")
        async with aclosing(_within(time_s, late, iterator)) as events:
            drafts = [event async for event in events if isinstance(event, diffusion.DraftResult)]
        if not drafts:
            raise diffusion.DraftFailed("the engine ended without a draft")
        return drafts

    async def _check(
        self, ask: Ask, drafts: list[diffusion.DraftResult], refiner: RefineProblem | None
    ) -> tuple[diffusion.DraftResult, Outcome]:
        """The best draft, and what is thought of it."""
        found = [evidence_of(ask, draft) for draft in drafts]
        try:  # parsers take a while with some texts: not on the event loop
            best, verdict = await asyncio.to_thread(self._quality.choose, found)
        except Exception:
            logger.exception("the draft could not be checked; refining it")
            return drafts[0], Outcome(refiner=refiner)
        return drafts[best], Outcome(
            quality=verdict.quality,
            failed_checks=tuple(check.verifier for check in verdict.failed),
            refiner=refiner,
        )

    async def _speak(self, run: Run, features: Features) -> AsyncGenerator[Event, None]:
        """The accepted draft, or the refiner's answer, or else a draft in its place."""
        assert run.choice is not None, "decided before"
        if run.choice.route != "draft":
            try:
                async with aclosing(self._refine(run)) as events:
                    async for event in events:
                        yield event
                return
            except tuple(REFINE_PROBLEMS) as error:
                if run.told or run.outcome is not None or not may_fall_back(features):
                    raise
                problem = _problem(REFINE_PROBLEMS, error)
                logger.warning("the refiner failed (%s); trying a draft", problem)
                run.outcome = Outcome(refiner=problem)
                run.choice = choice = await self._try_draft(run, features)
                if choice.route != "draft":
                    raise
        for event in drafted(run):
            yield event

    async def _sketch(self, run: Run) -> diffusion.DraftResult | None:
        """A few denoising steps for a complex request: a draft that nobody sees, but much of which the refiner needn't write one by one."""
        steps, load = self._policy.sketch_steps, self._draft_engine.load()
        if not steps or load.running + load.waiting >= load.capacity:
            return None
        time_s = SKETCH_SHARE * run.left_s
        try:
            return (await self._drafted(run.sketch_request(steps, _sooner(time_s)), time_s))[0]
        except diffusion.DraftError as error:
            logger.debug("no sketch for %s: %s", run.ask.request_id, error)
        except Exception:
            logger.exception("the sketch failed; the refiner answers alone")
        return None

    async def _refine(self, run: Run) -> AsyncGenerator[Event, None]:
        cutter = StopCutter(run.ask.stop)
        result = None
        iterator = self._refine_engine.refine(run.refine_request())
        late = ar.RefineDeadline("no answer before the deadline")
        async with aclosing(_within(run.left_s, late, iterator)) as events:
            async for event in events:
                if not run.told:
                    run.told = True
                    yield Decided(run.decision())
                if isinstance(event, ar.RefineDelta):
                    if shown := cutter.feed(event.text):
                        yield TextDelta(shown)
                else:
                    result = event
        if result is None:
            raise ar.RefineFailed("the engine ended without an answer")
        if rest := cutter.rest():
            yield TextDelta(rest)
        run.usage = refined_usage(result, run.draft, run.sketch)
        yield Finished(
            finish_reason="length" if result.finish_reason == "length" and not cutter.hit else "stop",
            usage=run.usage,
            decision=run.decision(),
        )

    async def _keep(self, ask: Ask, text: str, end: Finished) -> None:
        answer = Answer(text=text, finish_reason=end.finish_reason, usage=end.usage, decision=end.decision)
        await self._cache.put(ask, answer)


async def _within(time_s: float, late: Exception, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """`events` until the time is up, then `late`. Always closes `events`.

    The timeout is entered and left between two yields: a generator may be resumed by another
    task than the one that started it, and a timeout cancels the task that entered it.
    """
    deadline = asyncio.get_running_loop().time() + time_s
    async with aclosing(events):
        while True:
            scope = asyncio.timeout_at(deadline)
            try:
                async with scope:
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if not scope.expired():
                    raise
                raise late from None
            yield event


def _sooner(time_s: float) -> float:
    """A little less time for the engine, so that it can hand over what is finished when its own deadline comes."""
    return time_s - min(0.5, 0.1 * time_s)


def _problem(words: dict[type[Exception], T], error: Exception) -> T:
    return next(word for kind, word in words.items() if isinstance(error, kind))
