"""The engine without threads: requests in, steps, results out. The async engine and the library both drive one of these."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

import msgspec

from diffusion_engine.api import (
    CanvasUpdate,
    DraftDeadline,
    DraftRejected,
    DraftRequest,
    DraftResult,
    DraftTooLong,
)
from diffusion_engine.infill import Template
from diffusion_engine.results import rank, result_of
from diffusion_engine.runner import Stepped
from diffusion_engine.scheduler import Group, Plan, Scheduler
from diffusion_engine.sequence import CanvasReport, Sampling, Sequence
from engine_core.chat import ChatTokenizer, ContextExceeded, fit


class Steps(Protocol):
    """What runs a plan: `runner.Runner`, or a test's stand-in."""

    def run(self, plan: Plan, scheduler: Scheduler) -> list[Stepped]:
        """Do a plan's work; one entry for each of its canvases."""
        ...

    def report(self, sequence: Sequence, converged: bool) -> CanvasReport:
        """Read a finished canvas."""
        ...

    def look(self, sequence: Sequence) -> tuple[list[int], list[bool]]:
        """A canvas as it stands: its most likely tokens, and which positions the last step took."""
        ...

    def probe(self) -> None:
        """Raise if the device can't run a step any more."""
        ...


@dataclass(eq=False)
class Job:
    """A request in the engine, and whom to tell."""

    request: DraftRequest
    group: Group
    template: Template | None
    update: Callable[[CanvasUpdate], None]
    done: Callable[[list[DraftResult]], None]  # best first
    failed: Callable[[Exception], None]
    deadline: float | None  # of time.monotonic()
    started: float | None = None  # time.monotonic() of its first step
    left: set[Sequence] = field(default_factory=set)  # not finished yet


class Core:
    """A scheduler and a runner, and the requests they work on.

    Args:
        runner: does the work.
        scheduler: chooses it; with the runner's budget.
        tokenizer: the checkpoint's.
        defaults: of every request.
        canvas: positions of one.
        context: positions that prompt and answer may have together.
    """

    def __init__(
        self,
        runner: Steps,
        scheduler: Scheduler,
        tokenizer: ChatTokenizer,
        defaults: Sampling,
        canvas: int,
        context: int,
    ) -> None:
        self.runner = runner
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._defaults = defaults
        self._canvas = canvas
        self._jobs: dict[Sequence, Job] = {}
        self.context_tokens = context

    @property
    def running(self) -> int:
        """Canvases that have a slot."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return self._scheduler.waiting

    @property
    def canvas_tokens(self) -> int:
        """Positions of a canvas."""
        return self._canvas

    @property
    def background(self) -> int:
        """Of those that run and wait, how many are background."""
        return self._scheduler.background

    @property
    def background_waiting(self) -> int:
        """Of those that wait, how many are background."""
        return self._scheduler.background_waiting

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._jobs)

    def add(
        self,
        request: DraftRequest,
        *,
        update: Callable[[CanvasUpdate], None],
        done: Callable[[list[DraftResult]], None],
        failed: Callable[[Exception], None],
        deadline: float | None = None,
    ) -> Job:
        """Put a request in line; one of `done` and `failed` will be called, unless it is dropped before.

        Raises:
            DraftRejected: it can never be served; says expected and got.
        """
        try:
            most = self._scheduler.budget.slots
            if not 1 <= request.candidates <= most:
                raise ValueError(f"expected 1 to {most} candidates, got {request.candidates}")
            prompt = self._tokenizer.prompt(request.messages)
            template = (
                Template.of(request.template, self._tokenizer, self._canvas, self._defaults.end_ids)
                if request.template
                else None
            )
            sampling = self._sampling(request, len(prompt), template)
            group = Group(
                [
                    Sequence(_seeded(sampling, i), prompt, self._canvas, template.given if template else [], i)
                    for i in range(request.candidates)
                ],
                request.priority,
                request.prefix_key,
            )
            self._scheduler.add(group)
        except ContextExceeded as error:
            raise DraftTooLong(str(error)) from error
        except ValueError as error:  # TooLong among them
            raise DraftRejected(str(error)) from error
        job = Job(request, group, template, update, done, failed, deadline, left=set(group.sequences))
        self._jobs |= dict.fromkeys(group.sequences, job)
        return job

    def drop(self, job: Job) -> None:
        """Forget a request; its slots and pages are free for the next step."""
        self._scheduler.forget(job.group)
        for sequence in job.group.sequences:
            self._jobs.pop(sequence, None)

    def step(self) -> None:
        """One step of all that can run.

        Raises:
            Exception: the step failed. Its requests have been told and dropped, the others are as they were.
        """
        self._end_late()
        jobs = list(dict.fromkeys(self._jobs.values()))
        try:
            plan = self._scheduler.plan()
            jobs = list(dict.fromkeys(self._jobs[sequence] for sequence in plan.sequences()))
            if jobs:
                self._run(plan, jobs)
        except Exception as error:
            left = set(self._jobs.values())
            for job in jobs:
                if job in left:
                    self.drop(job)
                    job.failed(error)
            raise

    def _run(self, plan: Plan, jobs: list[Job]) -> None:
        now = monotonic()
        for job in jobs:
            job.started = job.started or now
        stepped = self.runner.run(plan, self._scheduler)
        self._scheduler.encoded(plan)
        for one in stepped:
            self._take_in(one)

    def probe(self) -> None:
        """Raise if the device can't run a step any more."""
        self.runner.probe()

    def _take_in(self, one: Stepped) -> None:
        sequence, job = one.sequence, self._jobs.get(one.sequence)
        if job is None:
            return  # dropped while others were told
        state = sequence.after_step(one.settled, one.mean_entropy)
        if job.request.updates:
            try:
                update = self._update(sequence)
            except Exception as error:  # noqa: BLE001 - as in _finish
                self.drop(job)
                job.failed(error)
                return
            job.update(update)
        if state == "go on" or sequence not in self._jobs:
            return
        sequence.end_canvas(self.runner.report(sequence, state == "converged"), state == "given up")
        if sequence.finish is None:
            return
        self._scheduler.remove([sequence])
        job.left.discard(sequence)
        if not job.left:
            self._finish(job, job.group.sequences)

    def _finish(self, job: Job, finished: list[Sequence]) -> None:
        elapsed = 0.0 if job.started is None else monotonic() - job.started
        self.drop(job)
        try:
            results = rank([result_of(one, self._tokenizer, job.template, elapsed) for one in finished])
        except Exception as error:  # noqa: BLE001 - whatever a tokenizer makes of a text, the others have nothing to do with it
            job.failed(error)
            return
        job.done(results)

    def _end_late(self) -> None:
        now = monotonic()
        for job in [
            job for job in dict.fromkeys(self._jobs.values()) if job.deadline is not None and now >= job.deadline
        ]:
            finished = [sequence for sequence in job.group.sequences if sequence.reports]
            for sequence in finished:
                sequence.finish = sequence.finish or "deadline"
            if finished:
                self._finish(job, finished)
            else:
                self.drop(job)
                limit = job.request.deadline_s
                job.failed(DraftDeadline(f"expected a draft within {limit} s, got no finished canvas"))

    def _update(self, sequence: Sequence) -> CanvasUpdate:
        ids, taken = self.runner.look(sequence)
        room = sequence.sampling.max_tokens - len(sequence.tokens) + len(sequence.prompt)
        end = next((i for i, token in enumerate(ids) if token in sequence.sampling.end_ids), room)
        ids, taken = ids[: min(end, room)], taken[: min(end, room)]
        return CanvasUpdate(
            candidate=sequence.candidate,
            canvas=len(sequence.reports),
            step=sequence.step,
            text=self._tokenizer.decode(ids),
            token_ids=tuple(ids),
            settled=tuple(taken),
        )

    def _sampling(self, request: DraftRequest, prompt_tokens: int, template: Template | None) -> Sampling:
        """The request's own wishes over the defaults. Raises ValueError: out of range, or more than the context holds."""
        default = self._defaults
        most = template.length if template else request.max_tokens
        if template and template.length > default.max_tokens:
            raise ValueError(f"expected a template of at most {default.max_tokens} tokens, got {template.length}")
        if most is not None and most < 1:
            raise ValueError(f"expected max_tokens of at least 1, got {most}")
        wishes = {
            "max_steps": request.max_steps and min(request.max_steps, default.max_steps),
            "t_min": request.t_min,
            "t_max": request.t_max,
            "entropy_bound": request.entropy_bound,
            "confidence": request.confidence,
            "stability": request.stability,
        }
        sampling = msgspec.structs.replace(
            default,
            **{name: wish for name, wish in wishes.items() if wish is not None},
            max_tokens=fit(self.context_tokens, prompt_tokens, most, default.max_tokens),
            end_ids=() if template else default.end_ids + request.stop_token_ids,
            seed=request.seed,
            give_up=default.give_up and request.give_up,
        )
        sampling.check()
        return sampling


def _seeded(sampling: Sampling, candidate: int) -> Sampling:
    """The first candidate has the request's seed, so that it is the draft that it would be alone."""
    if candidate == 0:
        return sampling
    digest = hashlib.blake2b(f"{sampling.seed} {candidate}".encode(), digest_size=8).digest()
    return msgspec.structs.replace(sampling, seed=int.from_bytes(digest, signed=True))
