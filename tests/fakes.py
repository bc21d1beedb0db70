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


class FakeEngine:
    """What both fakes share: a script, the requests seen, and who left early."""

    def __init__(self) -> None:
        self.script: deque[Any] = deque()
        self.requests: list[Any] = []
        self.state: Any = "ready"
        self.context_tokens = 0
        self.running = 0
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
            waiting=0,
            capacity=4,
            context_tokens=self.context_tokens,
        )

    async def draft(self, request: diffusion.DraftRequest) -> AsyncGenerator[diffusion.DraftEvent, None]:
        yield diffusion.CanvasUpdate(candidate=0, canvas=0, step=1, text="dr", token_ids=(0,), settled=(True,))
        default = f"draft of {request.messages[-1]['content']}"
        async with aclosing(self._play(request, default)) as items:
            async for item in items:
                yield draft_result(item) if isinstance(item, str) else item


class FakeRefineEngine(FakeEngine):
    """Answers "answer to <question>" word by word unless scripted; keeps one draft token."""

    def load(self) -> ar.RefineLoad:
        return ar.RefineLoad(
            state=self.state,
            running=self.running,
            waiting=0,
            capacity=4,
            context_tokens=self.context_tokens,
        )

    async def refine(self, request: ar.RefineRequest) -> AsyncGenerator[ar.RefineEvent, None]:
        text = ""
        default = f"answer to {request.messages[-1]['content']}"
        async with aclosing(self._play(request, default)) as items:
            async for item in items:
                for piece in item.split(" "):
                    text += piece + " "
                    yield ar.RefineDelta(text=piece + " ")
        yield ar.RefineResult(
            text=text,
            token_ids=tuple(range(len(text.split()))),
            finish_reason="stop",
            prompt_tokens=9,
            completion_tokens=len(text.split()),
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
        if "unscorable" in messages[-1]["content"]:
            raise ValueError("unscorable")
        return 0.9 if "hard" in messages[-1]["content"] else 0.1


class FakeQuality:
    """Bad drafts say so."""

    version = "fake-quality-1"
    thread = 0  # that made the last choice

    def choose(self, evidences: Sequence[DraftEvidence]) -> tuple[int, Verdict]:
        self.thread = threading.get_ident()
        verdicts = [self.judge(evidence) for evidence in evidences]
        best = max(range(len(verdicts)), key=lambda at: verdicts[at].quality)
        return best, verdicts[best]

    def judge(self, evidence: DraftEvidence) -> Verdict:
        if "uncheckable" in evidence.text:
            raise ValueError("uncheckable")
        if "1+1=3" in evidence.text:
            wrong = Check(verifier="arithmetic", passed=False, reason="1+1 is 2")
            return Verdict(quality=0.0, checks=(wrong,))
        fine = Check(verifier="arithmetic", passed=True, reason="")
        return Verdict(quality=0.2 if "bad" in evidence.text else 0.95, checks=(fine,))
