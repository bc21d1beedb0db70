"""The draft engine's part of a request: drafts, what is thought of them, sketches."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from classifiers.api import DraftEvidence, QualityModel, Verdict
from diffusion_engine.api import (
    DraftDeadline,
    DraftError,
    DraftEvent,
    DraftFailed,
    DraftRequest,
    DraftResult,
)
from router.policy import Outcome, RefineProblem
from router.serving.messages import Provisional
from router.serving.pace import Expected, Pace
from router.serving.protocols import DraftEngine
from router.serving.run import Run, evidence_of
from router.serving.within import sooner, within

logger = logging.getLogger("draftgate")

SHORT_CHARS = (
    500  # of drafts that are checked at once: 1 ms as a rule, 7 for what was made to be slow; code takes twice that
)
SKETCH_SHARE = 0.1  # of the time left that a sketch may use


class Drafter:
    """Drafts and judges; knows the engine and the check only by their protocols."""

    def __init__(self, engine: DraftEngine, quality: QualityModel) -> None:
        self._engine = engine
        self._quality = quality
        self._pace = Pace()

    def expect(self) -> Expected:
        """Seconds until a new draft is begun, and then until it is done."""
        return self._pace.expect(self._engine.load())

    async def draft(self, run: Run, candidates: int, time_s: float) -> AsyncGenerator[Provisional, None]:
        """Yield the draft as it settles, if that was asked for; sets the run's drafts, at least one.

        Raises:
            DraftError: there is none.
        """
        drafts: list[DraftResult] = []
        async with aclosing(self._events(run.draft_request(candidates, sooner(time_s)), time_s)) as events:
            async for event in events:
                if isinstance(event, DraftResult):
                    drafts.append(event)
                elif run.ask.provisional and event.candidate == 0:
                    settled = (sum(event.settled), len(event.settled))
                    yield Provisional(text=event.text, canvas=event.canvas, step=event.step, settled=settled)
        if not drafts:
            raise DraftFailed("the engine ended without a draft")
        self._pace.observe(max(draft.signals.forwards for draft in drafts), max(draft.elapsed_s for draft in drafts))
        run.drafts = tuple(drafts)

    async def check(self, run: Run, refiner: RefineProblem | None) -> Outcome:
        """What is thought of the run's drafts: the best of them are all it keeps, as many as answers are asked for, and of these the worst counts."""
        found = [evidence_of(run.ask, draft) for draft in run.drafts]
        try:  # parsers take a while with some texts: not on the event loop
            chosen, verdicts = (
                self._judge(run, found) if _quick(found) else await asyncio.to_thread(self._judge, run, found)
            )
            run.drafts = tuple(run.drafts[at] for at in chosen)
        except Exception:
            logger.exception("the draft could not be checked; refining it")
            run.drafts = run.drafts[: run.ask.n]
            return Outcome(refiner=refiner)
        return _outcome(verdicts, refiner)

    def _judge(self, run: Run, found: list[DraftEvidence]) -> tuple[Sequence[int], list[Verdict]]:
        """Which drafts are the answers, the best of them all, and what is thought of these."""
        if run.ask.n == 1:
            best, verdict = self._quality.choose(found)
            return (best,), [verdict]
        verdicts = [self._quality.judge(one) for one in found]
        best_first = sorted(range(len(found)), key=lambda at: -verdicts[at].quality)
        chosen = sorted(best_first[: run.ask.n])
        return chosen, [verdicts[at] for at in chosen]

    async def sketch(self, run: Run, steps: int) -> None:
        """A few denoising steps for a complex request: a draft that nobody sees, but much of which the refiner needn't write one by one."""
        load = self._engine.load()
        # behind drafts that wait it would be passed by all that come later, and the refiner wait for it
        if not steps or load.waiting or load.running >= load.capacity:
            return
        time_s = SKETCH_SHARE * run.left_s
        try:
            async with aclosing(self._events(run.sketch_request(steps, sooner(time_s)), time_s)) as events:
                async for event in events:
                    if isinstance(event, DraftResult):
                        run.sketch = event
        except DraftError as error:
            logger.debug("no sketch for %s: %s", run.ask.request_id, error)
        except Exception:
            logger.exception("the sketch failed; the refiner answers alone")

    def _events(self, request: DraftRequest, time_s: float) -> AsyncGenerator[DraftEvent, None]:
        return within(time_s, DraftDeadline(f"no draft within {time_s:.1f} s"), self._engine.draft(request))


def _quick(found: Sequence[DraftEvidence]) -> bool:
    """Would the way to a thread and back take longer than the check?"""
    text = "".join(one.text for one in found)
    return len(text) <= SHORT_CHARS and "```" not in text and "~~~" not in text and not found[0].response_format


def _outcome(verdicts: list[Verdict], refiner: RefineProblem | None) -> Outcome:
    failed = dict.fromkeys(check.verifier for verdict in verdicts for check in verdict.failed)
    return Outcome(quality=min(verdict.quality for verdict in verdicts), failed_checks=tuple(failed), refiner=refiner)
