"""One request, as an async generator: cache, complexity, policy, draft, check, refine, answer.

No request is lost while an engine can serve it: a draft that fails is replaced by a direct answer,
and a refiner that fails before its first word by a draft, if that passes its check. A draft that
was rejected is never shown in place of an error.

Closing the generator closes the engine's iterator, which frees its slot.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from msgspec.structs import replace

from ar_engine import api as ar
from classifiers.api import ComplexityModel, QualityModel
from diffusion_engine import api as diffusion
from router.errors import BadRequest, wire_of
from router.policy import (
    DecisionRecord,
    DraftProblem,
    Features,
    Outcome,
    Policy,
    RefineProblem,
    Wanted,
    decide,
    judge,
    may_fall_back,
)
from router.serving.drafting import Drafter
from router.serving.kept import kept_of, outcome_of, settle
from router.serving.messages import Ask, Delta, Event, Kept, Provisional, Texts
from router.serving.pace import Expected
from router.serving.protocols import DraftEngine, RefineEngine
from router.serving.refining import Refiner, check_format
from router.serving.run import Run, answer_of, told
from router.state.cache import AnswerCache

logger = logging.getLogger("draftgate")

CLIENT_GONE = 499
# An automatic draft may use this share of the time left, so that a hanging draft engine leaves
# the refiner the rest.
DRAFT_SHARE = 0.5

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
        observe: Callable[[DecisionRecord, Texts], None],
    ) -> None:
        self._draft_engine = draft
        self._refine_engine = refine
        self._drafter = Drafter(draft, quality)
        self._refiner = Refiner(refine, quality)
        self._complexity = complexity
        self._quality = quality
        self._cache = cache
        self._policy = policy
        self._observe = observe

    def expect(self, wanted: Wanted) -> Expected:
        """Seconds until a new request would be begun, and then done, by the engine that is through with it first."""
        engines = {"draft": self._drafter, "refine": self._refiner}
        return min((engine.expect() for route, engine in engines.items() if wanted in ("auto", route)), key=sum)

    @property
    def canvas_tokens(self) -> int:
        """Positions of the draft engine's canvas; 0: it doesn't say."""
        return self._draft_engine.load().canvas_tokens

    async def answer(self, ask: Ask, timeout_s: float) -> AsyncGenerator[Event, None]:
        """Perhaps Provisional, then Decided, Delta and ChoiceEnd of each choice, Finished.

        Raises:
            BadRequest: no answer could be held to the response_format.
            FormatUnmet: no answer had the format that was asked for.
            DraftError, RefineError: no engine could serve the request.
        """
        if ask.response_format:  # off the event loop: a schema takes a while to read
            why = await asyncio.to_thread(self._quality.unverifiable, ask.response_format)
            if why:
                raise BadRequest(f"response_format: {why}", param="response_format")
        if ask.candidates is None:
            ask = replace(ask, candidates=self._policy.candidates)
        run = Run.of(ask, timeout_s)
        status = CLIENT_GONE  # unless it ends by itself
        try:
            async with aclosing(self._stages(run)) as events:
                async for event in events:
                    if run.first_token_s is None and isinstance(event, Delta):
                        run.first_token_s = run.elapsed_s
                    yield event
            status = 200
        except Exception as error:
            status = wire_of(error).status
            raise
        finally:
            versions = (self._complexity.version, self._quality.version)
            self._observe(run.record(self._policy, status, versions), run.texts())

    async def _stages(self, run: Run) -> AsyncGenerator[Event, None]:
        async with self._cache.board(run.ask, lambda kept: self._settle(run, kept), run.left_s) as flight:
            if not flight.leads:
                assert run.answer is not None, "what is enough was settled"
                for event in told(run, run.answer):
                    yield event
                return
            async with aclosing(self._make(run, flight.kept)) as events:
                async for event in events:
                    yield event
            await flight.land(kept_of(run, flight.kept, self._complexity.version, self._quality.version))

    def _settle(self, run: Run, kept: Kept) -> bool:
        """Is the answer there? Then it becomes the run's."""
        settled = settle(run.ask, kept, self._policy, self._score(run.ask, kept), self._quality.version)
        if settled is None:
            return False
        run.answer, run.choice, run.features, run.outcome = settled
        run.cached_route = run.choice.route
        return True

    async def _make(self, run: Run, kept: Kept | None) -> AsyncGenerator[Event, None]:
        """Answer with the engines, but for what is known already."""
        run.features = features = self._look(run.ask, kept)
        run.choice = choice = decide(self._policy, features)
        run.propensity = choice.propensity
        if choice.route == "draft":
            async with aclosing(self._try_draft(run, features, kept)) as seen:
                async for event in seen:
                    yield event
        elif choice.reason in ("complexity", "load", "explore") and run.ask.n == 1:
            await self._drafter.sketch(run, self._policy.sketch_steps)
        async with aclosing(self._speak(run, features)) as events:
            async for event in events:
                yield event

    def _look(self, ask: Ask, kept: Kept | None) -> Features:
        draft, refine = self._draft_engine.load(), self._refine_engine.load()
        draft_expected, refine_expected = self._drafter.expect(), self._refiner.expect()
        return Features(
            wanted=ask.wanted,
            needs=ask.needs,
            prompt_chars=ask.prompt_chars,
            draft_state=draft.state,
            draft_context_tokens=draft.context_tokens,
            refine_state=refine.state,
            complexity=self._score(ask, kept),
            quality_target=ask.quality_target,
            draft_wait_s=draft_expected.wait_s,
            draft_work_s=draft_expected.work_s,
            refine_wait_s=refine_expected.wait_s,
            refine_work_s=refine_expected.work_s,
            coin=random.random(),
        )

    def _score(self, ask: Ask, kept: Kept | None) -> float | None:
        if kept and kept.complexity_version == self._complexity.version:
            return kept.complexity
        try:  # also where the route is explicit: people compare routes by it
            return self._complexity.score(ask.messages)  # what it reads is bounded
        except Exception:
            logger.exception("complexity could not be scored; drafting")
            return None

    async def _try_draft(
        self, run: Run, features: Features, kept: Kept | None, refiner: RefineProblem | None = None
    ) -> AsyncGenerator[Provisional, None]:
        """Draft and judge: sets the run's drafts and outcome, and what to do next; `refiner`: why it comes to a draft only now."""
        explicit, began = features.wanted == "draft", time.perf_counter()
        try:
            if kept and len(kept.drafts) == run.ask.n:
                run.drafts = kept.drafts
            else:
                candidates = max(run.ask.n, run.ask.candidates or 1)
                time_s = run.left_s * (1 if explicit else DRAFT_SHARE)
                async with aclosing(self._drafter.draft(run, candidates, time_s)) as seen:
                    async for event in seen:
                        yield event
        except Exception as error:
            if explicit:
                raise
            problem = _problem(DRAFT_PROBLEMS, error)
            if problem == "failed":
                logger.exception("the draft failed; the refiner answers alone")
            run.outcome = Outcome(problem=problem, refiner=refiner)
        else:
            judged = outcome_of(kept, self._quality.version) if kept else None
            run.outcome = judged or await self._drafter.check(run, refiner)
        run.draft_s = time.perf_counter() - began
        run.choice = judge(self._policy, features, run.outcome)

    async def _speak(self, run: Run, features: Features) -> AsyncGenerator[Event, None]:
        """The accepted draft, or the refiner's answer, or else a draft in its place."""
        assert run.choice is not None, "decided before"
        if run.choice.route != "draft":
            try:
                async with aclosing(self._refiner.speak(run)) as events:
                    async for event in events:
                        yield event
                return
            except tuple(REFINE_PROBLEMS) as error:
                if run.told or run.outcome is not None or not may_fall_back(features):
                    raise
                problem = _problem(REFINE_PROBLEMS, error)
                logger.warning("the refiner failed (%s); trying a draft", problem)
                async with aclosing(self._try_draft(run, features, None, problem)) as seen:
                    async for event in seen:
                        yield event
                if not run.drafts_accepted:
                    raise
        if run.outcome:
            check_format(run.outcome.failed_checks, cut=False)  # an explicit draft is shown whatever else failed
        answer = answer_of(run.ask, run.drafts)
        run.usage = answer.usage
        for event in told(run, answer):
            yield event


def _problem(words: dict[type[Exception], T], error: Exception) -> T:
    return next(word for kind, word in words.items() if isinstance(error, kind))
