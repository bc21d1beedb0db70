"""Stand-ins for engines and classifiers, scripted by the test, and smaller than the real ones."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from ar_engine import api as ar
from classifiers.api import Check, DraftEvidence, Verdict
from diffusion_engine import api as diffusion
from router.policy import DecisionRecord, Policy
from router.serving.messages import text_of

HANG = object()  # scripted: never answer
FINGERPRINT = "fake-tokenizer"


def draft_result(text: str, **changes: Any) -> diffusion.DraftResult:
    """A draft of one token per word."""
    words = text.split()
    fields: dict[str, Any] = {
        "text": text,
        "token_ids": tuple(range(len(words))),
        "token_logprobs": (-0.1,) * len(words),
        "tokenizer_fingerprint": FINGERPRINT,
        "finish_reason": "stop",
        "prompt_tokens": 7,
        "signals": diffusion.DraftSignals(
            steps=(5,), converged=(True,), token_entropy=(0.1,) * len(words), late_flips=0
        ),
        "elapsed_s": 0.01,
    }
    return diffusion.DraftResult(**fields | changes)


def question_of(request: diffusion.DraftRequest | ar.RefineRequest) -> str:
    """The text of the last turn."""
    return text_of(request.messages[-1].get("content"))


def logprobs_of(token: str, alternatives: int | None) -> tuple[ar.TokenLogprob, ...]:
    """A token with as many alternatives as were asked for; none if none were."""
    if alternatives is None:
        return ()
    top = tuple((f"alt{at}", -1.0 - at) for at in range(alternatives))
    return (ar.TokenLogprob(token=token, logprob=-0.1, top=top),)


def decision_record(**changes: Any) -> DecisionRecord:
    """The record of an accepted draft."""
    fields: dict[str, Any] = {
        "request_id": "r",
        "at_unix_s": 1.0,
        "model": "draftgate",
        "status": 200,
        "route": "draft",
        "reason": "accepted",
        "policy": Policy(),
        "features": None,
        "outcome": None,
        "complexity_version": "c",
        "quality_version": "q",
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "kept_tokens": None,
        "elapsed_s": 0.1,
    }
    return DecisionRecord(**fields | changes)


class FakeEngine:
    """What both fakes share: a script, the requests seen, and who left early."""

    def __init__(self) -> None:
        self.script: deque[Any] = deque()
        self.requests: list[Any] = []
        self.state: Any = "ready"
        self.context_tokens = 0
        self.images = True
        self.formats = False
        self.running = 0
        self.waiting = 0
        self.cancelled = 0
        self.closed = False
        self.start_error: Exception | None = None

    def enqueue(self, *items: Any) -> None:
        """Script the next answers: a text, an exception, HANG, an event to wait for, a list."""
        self.script.extend(items)

    async def start(self) -> None:
        if self.start_error is not None:
            self.state = "failed"
            raise self.start_error

    async def close(self) -> None:
        self.closed = True

    async def _play(self, request: Any, default: str) -> AsyncGenerator[Any, None]:
        self.requests.append(request)
        self.running += 1
        finished = False
        try:
            item = self.script.popleft() if self.script else default
            for step in item if isinstance(item, list) else [item]:
                await asyncio.sleep(0)
                if isinstance(step, Exception):
                    finished = True
                    raise step
                if step is HANG:
                    await asyncio.Event().wait()
                if isinstance(step, threading.Event):
                    while not step.is_set():
                        await asyncio.sleep(0.01)
                    continue
                yield step
            finished = True
        finally:
            self.running -= 1
            self.cancelled += not finished


class FakeDraftEngine(FakeEngine):
    """Drafts "draft of <question>" unless scripted."""

    def load(self) -> diffusion.DraftLoad:
        return diffusion.DraftLoad(
            state=self.state,
            running=self.running,
            waiting=self.waiting,
            capacity=4,
            context_tokens=self.context_tokens,
        )

    async def draft(self, request: diffusion.DraftRequest) -> AsyncGenerator[diffusion.DraftEvent, None]:
        if request.updates:
            yield diffusion.CanvasUpdate(candidate=0, canvas=0, step=1, text="dr", token_ids=(0,), settled=(True,))
        scripted = bool(self.script) and isinstance(self.script[0], list)  # each candidate by itself
        default = f"draft of {question_of(request)}"
        async with aclosing(self._play(request, default)) as items:
            async for item in items:
                for result in self._candidates(request, item, scripted) if isinstance(item, str) else [item]:
                    yield result

    def _candidates(self, request: diffusion.DraftRequest, text: str, scripted: bool) -> list[diffusion.DraftResult]:
        """One candidate as scripted, the others numbered, unless all are scripted."""
        texts = [text] + [f"{text} ({at})" for at in range(1, 1 if scripted else request.candidates)]
        filled = (text,) if request.template else ()
        return [draft_result(text, candidate=at, filled=filled) for at, text in enumerate(texts)]


class FakeRefineEngine(FakeEngine):
    """Answers "answer to <question>" word by word unless scripted; keeps one draft token."""

    def load(self) -> ar.RefineLoad:
        return ar.RefineLoad(
            state=self.state,
            running=self.running,
            waiting=self.waiting,
            capacity=4,
            context_tokens=self.context_tokens,
            images=self.images,
            formats=self.formats,
        )

    async def refine(self, request: ar.RefineRequest) -> AsyncGenerator[ar.RefineEvent, None]:
        texts = [""] * request.n
        calls: list[tuple[ar.ToolCall, ...]] = [()] * request.n
        default = f"answer to {question_of(request)}"
        async with aclosing(self._play(request, default)) as items:
            async for item in items:
                if isinstance(item, ar.RefineDelta):
                    texts[item.choice] += item.text
                    calls[item.choice] += item.tool_calls
                    yield item
                    continue
                for piece in item.split(" "):
                    for choice in range(request.n):
                        texts[choice] += piece + " "
                        logprobs = logprobs_of(piece + " ", request.logprobs)
                        yield ar.RefineDelta(choice=choice, text=piece + " ", logprobs=logprobs)
        for choice, text in enumerate(texts):
            words = text.split()
            yield ar.RefineResult(
                choice=choice,
                text=text,
                tool_calls=calls[choice],
                token_ids=tuple(range(len(words))),
                logprobs=tuple(one for word in words for one in logprobs_of(word + " ", request.logprobs)),
                finish_reason="tool_calls" if calls[choice] else "stop",
                prompt_tokens=9,
                completion_tokens=len(words),
                kept_tokens=1 if request.draft else 0,
                forwards=3,
                first_token_s=0.01,
                elapsed_s=0.02,
            )

    async def score(self, request: ar.ScoreRequest) -> ar.DraftScore:
        raise NotImplementedError


class FakeComplexity:
    """Hard questions say so."""

    version = "fake-complexity-1"

    def score(self, messages: tuple[dict[str, Any], ...]) -> float:
        question = text_of(messages[-1].get("content"))
        if "unscorable" in question:
            raise ValueError("unscorable")
        return 0.9 if "hard" in question else 0.1


class FakeQuality:
    """Bad drafts say so."""

    version = "fake-quality-1"
    thread = 0  # that made the last choice

    def unverifiable(self, response_format: dict[str, Any]) -> str | None:
        return "expected another schema" if "impossible" in str(response_format) else None

    def choose(self, evidences: Sequence[DraftEvidence]) -> tuple[int, Verdict]:
        self.thread = threading.get_ident()
        verdicts = [self.judge(evidence) for evidence in evidences]
        best = max(range(len(verdicts)), key=lambda at: verdicts[at].quality)
        return best, verdicts[best]

    def judge(self, evidence: DraftEvidence) -> Verdict:
        if "uncheckable" in evidence.text:
            raise ValueError("uncheckable")
        if evidence.response_format and not evidence.text.strip().startswith("{"):
            unformed = Check(verifier="json_format", passed=False, reason="expected an object")
            return Verdict(quality=0.0, checks=(unformed,))
        if "1+1=3" in evidence.text:
            wrong = Check(verifier="arithmetic", passed=False, reason="1+1 is 2")
            return Verdict(quality=0.0, checks=(wrong,))
        fine = Check(verifier="arithmetic", passed=True, reason="")
        return Verdict(quality=0.2 if "bad" in evidence.text else 0.95, checks=(fine,))
