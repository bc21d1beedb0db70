"""Small engines for the tests: a tiny checkpoint in a core, spoken to in token ids."""

from collections.abc import Sequence as Listed
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from diffusion_engine.api import CanvasUpdate, DraftRequest, DraftResult, DraftSettings
from diffusion_engine.config import ModelConfig
from diffusion_engine.core import Core, Job
from diffusion_engine.memory import budget_of
from diffusion_engine.model import Model
from diffusion_engine.runner import Runner
from diffusion_engine.scheduler import Scheduler
from diffusion_engine.sequence import Sampling
from diffusion_engine.weights import load_weights

SAMPLING = Sampling(
    max_steps=5, t_min=0.4, t_max=0.8, entropy_bound=0.5, confidence=0.005, stability=1, max_tokens=16, give_up=False
)


class IdTokenizer:
    """Text is token ids with spaces between: "3 17 5"."""

    fingerprint = "ids"

    def prompt(self, messages: Listed[dict[str, Any]]) -> list[int]:
        return self.encode(" ".join(message["content"] for message in messages))

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Listed[int]) -> str:
        return " ".join(str(token) for token in ids)


def load_model(folder: Path, dtype: torch.dtype = torch.float32, *, quantize: bool = False) -> Model:
    """A checkpoint as the engine would load it."""
    config = ModelConfig.load(folder)
    return Model(config, load_weights(folder, config, torch.device("cpu"), dtype, quantize=quantize))


def make_core(model: Model, sampling: Sampling = SAMPLING, **settings: Any) -> Core:
    """A core with slots and a cache of its own."""
    budget = budget_of(model.config, DraftSettings(**settings))
    tokenizer: Any = IdTokenizer()
    config = model.config
    return Core(Runner(model, budget), Scheduler(budget), tokenizer, sampling, config.canvas, config.context)


class Inbox:
    """Takes what a core says of one request."""

    def __init__(self) -> None:
        self.updates: list[CanvasUpdate] = []
        self.results: list[DraftResult] = []
        self.error: Exception | None = None
        self.job: Job | None = None

    def failed(self, error: Exception) -> None:
        assert self.error is None
        self.error = error

    def done(self, results: list[DraftResult]) -> None:
        assert not self.results
        self.results = results


def submit(core: Core, prompt: Listed[int], **options: Any) -> Inbox:
    """Put a request in line."""
    inbox = Inbox()
    messages = ({"role": "user", "content": " ".join(map(str, prompt))},)
    request = DraftRequest(request_id="r", messages=messages, **options)
    inbox.job = core.add(request, update=inbox.updates.append, done=inbox.done, failed=inbox.failed)
    return inbox


def run(core: Core, *inboxes: Inbox) -> list[list[DraftResult]]:
    """Step until nothing is left to do."""
    while core.busy:
        core.step()
    return [inbox.results for inbox in inboxes]


def alone(model: Model, prompt: Listed[int], sampling: Sampling = SAMPLING, **options: Any) -> DraftResult:
    """What a request gets in an engine of its own."""
    core = make_core(model, sampling)
    return run(core, submit(core, prompt, **options))[0][0]


def essence(result: DraftResult) -> tuple[Any, ...]:
    """What must not depend on company: ids, finish, steps and convergence."""
    signals = replace(result.signals, forwards=0, reused_tokens=0)
    return result.token_ids, result.finish_reason, signals.steps, signals.converged, signals.late_flips
