"""The refiner's part of a request: its answers, cut at stop sequences and held to the format that was asked for."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from ar_engine.api import RefineDeadline, RefineDelta, RefineFailed, RefineResult
from classifiers.api import DraftEvidence, QualityModel
from router.errors import FormatUnmet
from router.policy import FORMAT_CHECK
from router.serving.messages import Answer, AnswerChoice, Ask, ChoiceEnd, Decided, Delta, Event, Finished
from router.serving.pace import Expected, Pace
from router.serving.protocols import RefineEngine
from router.serving.run import Run, refined_usage, told
from router.serving.stop import StopCutter
from router.serving.within import within


class Refiner:
    """Lets the refiner speak; knows the engine only by its protocol."""

    def __init__(self, engine: RefineEngine, quality: QualityModel) -> None:
        self._engine = engine
        self._quality = quality
        self._pace = Pace()

    def expect(self) -> Expected:
        """Seconds until a new answer is begun, and then until it is done."""
        return self._pace.expect(self._engine.load())

    async def speak(self, run: Run) -> AsyncGenerator[Event, None]:
        """Decided, then the answers as they are written, or at once when a format has to be checked first. Sets the run's answer.

        Raises:
            RefineError: there is none.
            FormatUnmet: an answer hasn't the format; nothing of it was shown.
        """
        ask, results = run.ask, list[RefineResult]()
        voices = [_Voice(at, ask.stop) for at in range(ask.n)]
        request = run.refine_request(self._engine.load().formats)
        late = RefineDeadline("no answer before the deadline")
        async with aclosing(within(run.left_s, late, self._engine.refine(request))) as events:
            async for event in events:
                if isinstance(event, RefineResult):
                    results.append(event)
                shown = voices[event.choice].take(event)
                if ask.response_format is not None:
                    continue
                if not run.told:
                    run.told = True
                    yield Decided(run.decision())
                for piece in shown:
                    yield piece
        if len(results) < ask.n:
            raise RefineFailed(f"the engine ended with {len(results)} of {ask.n} answers")
        self._pace.observe(max(result.forwards for result in results), max(result.elapsed_s for result in results))
        choices = tuple(voice.choice for voice in voices)
        run.usage = refined_usage(run, results)
        run.answer = Answer(choices=choices, usage=run.usage, decision=run.decision())
        if ask.response_format is None:
            yield Finished(usage=run.usage, decision=run.decision())
            return
        await self._hold(ask, choices)
        for event in told(run, run.answer):
            yield event

    async def _hold(self, ask: Ask, choices: tuple[AnswerChoice, ...]) -> None:
        """Raise FormatUnmet unless every answer has the format; calls of tools have none."""
        for choice in choices:
            if choice.tool_calls:
                continue
            evidence = DraftEvidence(messages=ask.messages, text=choice.text, response_format=ask.response_format)
            verdict = await asyncio.to_thread(self._quality.judge, evidence)
            check_format(tuple(check.verifier for check in verdict.failed), cut=choice.finish_reason == "length")


def check_format(failed_checks: tuple[str, ...], *, cut: bool) -> None:
    """Raise FormatUnmet when the verifier of formats is among the failed."""
    if FORMAT_CHECK in failed_checks:
        why = "it was cut off at max_tokens" if cut else "the model's answer did not have it"
        raise FormatUnmet(f"response_format could not be met: {why}.", param="response_format")


class _Voice:
    """One of the answers as it is written."""

    def __init__(self, at: int, stops: tuple[str, ...]) -> None:
        self._at = at
        self._cutter = StopCutter(stops)
        self._text: list[str] = []
        self.choice = AnswerChoice(finish_reason="stop")

    def take(self, event: RefineDelta | RefineResult) -> list[Event]:
        """What can be shown now."""
        if isinstance(event, RefineResult):
            return self._end(event)
        if self._cutter.hit:
            return []
        text = self._cutter.feed(event.text)
        self._text.append(text)
        if not (text or event.reasoning or event.tool_calls or event.logprobs):
            return []
        delta = Delta(
            choice=self._at,
            text=text,
            reasoning=event.reasoning,
            tool_calls=event.tool_calls,
            logprobs=event.logprobs,
        )
        return [delta]

    def _end(self, result: RefineResult) -> list[Event]:
        rest = self._cutter.rest()
        reason = "stop" if self._cutter.hit and result.finish_reason == "length" else result.finish_reason
        self.choice = AnswerChoice(
            text="".join(self._text) + rest,
            reasoning=result.reasoning,
            tool_calls=result.tool_calls,
            logprobs=result.logprobs,
            finish_reason=reason,
        )
        end = ChoiceEnd(choice=self._at, finish_reason=reason)
        return [Delta(choice=self._at, text=rest), end] if rest else [end]
