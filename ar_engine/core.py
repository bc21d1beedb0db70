"""The engine without threads: requests in, steps, events out. What `engine_core.loop` drives."""

import hashlib
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

from msgspec.structs import replace

from ar_engine.answers import Answer, AnswerFormat
from ar_engine.api import (
    Draft,
    DraftScore,
    RefineDeadline,
    RefineDelta,
    RefineRejected,
    RefineRequest,
    RefineResult,
    RefineSettings,
    RefineTooLong,
    ScoreRequest,
    TokenLogprob,
)
from ar_engine.polish import polished
from ar_engine.prompts import Prompt, Prompts
from ar_engine.scheduler import Group, Scheduler, Work
from ar_engine.sequence import Choice, Sampling, Scored, Sequence, leading
from ar_engine.speculate import Guide
from engine_core.chat import ContextExceeded, fit
from engine_core.loop import Ticket

Request = RefineRequest | ScoreRequest

COLDEST = 1e-5  # below this temperature a draw is the greedy choice, unless its quotients leave float32


class Steps(Protocol):
    """What runs a step's work: `runner.Runner`, or a test's stand-in."""

    def run(self, works: list[Work], scheduler: Scheduler) -> list[list[Choice]]:
        """Do it; what the rows of each work say."""
        ...

    def probe(self) -> None:
        """Raise if the device can't run a step any more."""
        ...


@dataclass(eq=False)
class Job:
    """A request in the engine, and whom to tell."""

    request: Request
    group: Group
    ticket: Ticket
    answers: dict[Sequence, Answer] = field(default_factory=dict)
    told: dict[Sequence, int] = field(default_factory=dict)  # tokens whose log-probabilities have been sent
    first_token_s: dict[Sequence, float] = field(default_factory=dict)
    started: float = 0.0  # time.monotonic() of its first step
    left: int = 0  # sequences not finished yet


class Core:
    """A scheduler and a runner, and the requests they work on.

    Args:
        runner: does the work.
        scheduler: chooses it.
        prompts: of the checkpoint.
        settings: for requests that don't say.
        end_ids: tokens that end an answer.
        context: positions that prompt and answer may have together.
        vocab: tokens that the model has embeddings for.
        whole_images: whether an image's tokens see each other.
    """

    def __init__(
        self,
        runner: Steps,
        scheduler: Scheduler,
        prompts: Prompts,
        settings: RefineSettings,
        end_ids: frozenset[int],
        context: int,
        *,
        vocab: int,
        whole_images: bool = False,
    ) -> None:
        self.prompts = prompts
        self.context_tokens = context
        self._runner = runner
        self._scheduler = scheduler
        self._settings = settings
        self._vocab = vocab
        self._whole_images = whole_images
        self._format = AnswerFormat.of(prompts.tokenizer)
        self._end_ids = end_ids | self._format.end_ids
        self._jobs: dict[Sequence, Job] = {}
        self._job_of: dict[Ticket, Job] = {}

    @property
    def running(self) -> int:
        """Answers that are being written."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return self._scheduler.waiting

    @property
    def background(self) -> int:
        """Of those that run and wait, how many are background."""
        return self._scheduler.background

    @property
    def background_waiting(self) -> int:
        """Of those that wait, how many are background."""
        return self._scheduler.background_waiting

    def add(self, request: Request, ticket: Ticket) -> None:
        """Put a request in line.

        Raises:
            RefineRejected: it can never be served; says expected and got.
        """
        try:
            job = self._score(request, ticket) if isinstance(request, ScoreRequest) else self._refine(request, ticket)
            if job.left:
                self._scheduler.add(job.group)
        except ContextExceeded as error:
            raise RefineTooLong(str(error)) from error
        except ValueError as error:  # TooLong among them
            raise RefineRejected(str(error)) from error
        if not job.left:  # a score of nothing
            ticket.end(_score_of([], []))
            return
        self._jobs |= dict.fromkeys(job.group.sequences, job)
        self._job_of[ticket] = job

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request, if it is still there; its slots and pages are free for the next step."""
        if job := self._job_of.pop(ticket, None):
            self._scheduler.forget(job.group)
            for sequence in job.group.sequences:
                self._jobs.pop(sequence, None)

    def step(self) -> bool:
        """One step of all that can run; says whether there is more to do.

        Raises:
            Exception: the step failed. Its requests have been told and dropped, the others are as they were.
        """
        self._end_late()
        jobs = list(self._job_of.values())
        try:
            works = self._scheduler.plan()
            jobs = list(dict.fromkeys(self._jobs[work.sequence] for work in works))
            if works:
                self._run(works, jobs)
        except Exception as error:
            for job in jobs:
                if job.ticket in self._job_of:
                    self.cancel(job.ticket)
                    job.ticket.fail(error)
            raise
        return bool(self._jobs)

    def probe(self) -> None:
        """Raise if the device can't run a step any more."""
        self._runner.probe()

    def _run(self, works: list[Work], jobs: list[Job]) -> None:
        now = monotonic()
        for job in jobs:
            job.started = job.started or now
        for work, choices in zip(works, self._runner.run(works, self._scheduler), strict=True):
            job = self._jobs.get(work.sequence)
            if job is None:
                continue  # dropped while others were told
            try:
                self._take_in(work, choices)
            except Exception as error:  # noqa: BLE001 - whatever a tokenizer makes of a text, the others have nothing to do with it
                self.cancel(job.ticket)
                job.ticket.fail(error)

    def _take_in(self, work: Work, choices: list[Choice]) -> None:
        sequence, job = work.sequence, self._jobs[work.sequence]
        stands = work.start + work.length
        if work.answers:
            before = len(sequence.answer)
            stands += sequence.commit(work.tried, choices)
            job.first_token_s.setdefault(sequence, monotonic() - job.started)
            if isinstance(job.request, RefineRequest):
                self._tell(job, sequence, before)
        # The last token's row is what the next one follows from.
        self._scheduler.stands(sequence, min(stands, len(sequence.tokens) - (sequence.finish is None)))
        if sequence.finish is None:
            return
        self._scheduler.remove([sequence])
        job.left -= 1
        last = not job.left
        if last:
            self.cancel(job.ticket)
        if isinstance(sequence, Scored):
            job.ticket.end(_score_of(sequence.draft, sequence.scores))
        else:
            (job.ticket.end if last else job.ticket.send)(self._result(job, sequence))

    def _tell(self, job: Job, sequence: Sequence, before: int) -> None:
        """Send what is new of an answer; with stop strings token by token, since it may end at each."""
        assert isinstance(job.request, RefineRequest), "scores have no answer"
        ids, stops = sequence.answer, job.request.stop
        for length in range(before + 1, len(ids)) if stops else ():
            self._send(job, sequence, ids[:length], final=False)
            if self._stopped(job, sequence):
                sequence.cut(length)
                return
        self._send(job, sequence, ids, final=sequence.finish is not None)
        if stops and self._stopped(job, sequence):
            sequence.cut(len(ids))

    def _send(self, job: Job, sequence: Sequence, ids: list[int], *, final: bool) -> None:
        delta = job.answers[sequence].advance(ids, final)
        logprobs = ()
        if sequence.sampling.logprobs is not None and (delta or final):  # the last tokens may have no text
            logprobs = self._logprobs(sequence, job.told.get(sequence, 0), len(ids))
            job.told[sequence] = len(ids)
        if delta is None and not logprobs:
            return
        delta = delta or RefineDelta()
        job.ticket.send(
            RefineDelta(
                choice=sequence.choice,
                text=delta.text,
                reasoning=delta.reasoning,
                tool_calls=delta.tool_calls,
                logprobs=logprobs,
            )
        )

    def _stopped(self, job: Job, sequence: Sequence) -> bool:
        text = job.answers[sequence].text
        return any(stop in text for stop in job.request.stop if stop)  # pyright: ignore[reportAttributeAccessIssue]

    def _logprobs(self, sequence: Sequence, begin: int, end: int) -> tuple[TokenLogprob, ...]:
        decode = self.prompts.tokenizer.decode
        return tuple(
            TokenLogprob(
                token=decode([token]),
                logprob=logprob,
                top=tuple((decode([other]), value) for other, value in top),
            )
            for token, (logprob, top) in zip(sequence.answer[begin:end], sequence.details[begin:end], strict=True)
        )

    def _result(self, job: Job, sequence: Sequence) -> RefineResult:
        answer, guide = job.answers[sequence], sequence.guide
        return RefineResult(
            choice=sequence.choice,
            text=answer.text,
            reasoning=answer.reasoning,
            reasoning_tokens=answer.reasoning_tokens,
            tool_calls=answer.tool_calls,
            token_ids=tuple(sequence.answer),
            logprobs=self._logprobs(sequence, 0, len(sequence.details)),
            finish_reason=answer.finish_reason if sequence.finish == "stop" else "length",
            prompt_tokens=len(sequence.prompt),
            completion_tokens=len(sequence.answer) + sequence.ended,
            kept_tokens=sequence.kept,
            # Some of them may stand behind the answer's end.
            reused_draft_tokens=min(guide.reused, len(sequence.answer) - sequence.kept) if guide else 0,
            tried_tokens=guide.tried if guide else 0,
            reused_tokens=sequence.reused,
            forwards=sequence.forwards,
            first_token_s=job.first_token_s[sequence],
            elapsed_s=monotonic() - job.started,
        )

    def _end_late(self) -> None:
        now = monotonic()
        for job in list(self._job_of.values()):
            if job.ticket.deadline is not None and now >= job.ticket.deadline:
                self.cancel(job.ticket)
                limit = job.request.deadline_s
                job.ticket.fail(RefineDeadline(f"expected an answer within {limit} s, got an unfinished one"))

    def _refine(self, request: RefineRequest, ticket: Ticket) -> Job:
        most = self._scheduler.budget.slots
        if not 1 <= request.n <= most:
            raise ValueError(f"expected n of 1 to {most}, got {request.n}")
        if request.max_tokens is not None and request.max_tokens < 1:
            raise ValueError(f"expected max_tokens of at least 1, got {request.max_tokens}")
        if request.response_format and request.response_format.get("type") != "text":
            got = request.response_format.get("type")
            raise ValueError(f"expected a response_format of type text, since this engine has no other, got {got!r}")
        mode = request.mode or self._settings.mode
        draft = request.draft if mode != "fresh" else None
        prompt, sampling = self._asked(request, draft if mode == "polish" else None)
        tried = self._draft_ids(draft) if draft else []
        tried = tried[: self._known(tried)]
        sequences = [
            Sequence(
                sampling=_seeded(sampling, i),
                prompt=prompt.ids,
                guide=Guide(tried, self._settings.speculate) if tried else None,
                lenient=mode == "typical",
                images=prompt.images,
                whole_images=self._whole_images,
                choice=i,
            )
            for i in range(request.n)
        ]
        tools = bool(request.tools) and request.tool_choice != "none"
        answers = {one: Answer(self.prompts.tokenizer, self._format, tools, prompt.ids) for one in sequences}
        group = Group(sequences, request.priority, _share_key(request.prefix_key, prompt))
        return Job(request, group, ticket, answers, left=len(sequences))

    def _asked(self, request: RefineRequest, shown: Draft | None) -> tuple[Prompt, Sampling]:
        """The prompt, with a draft shown in it if that fits, and how it is answered."""
        if shown and shown.text:
            try:
                prompt = self._read(request, polished(request.messages, shown.text))
                return prompt, self._sampling(request, len(prompt.ids))
            except ValueError:  # the conversation alone may still fit, and the template take it
                pass
        prompt = self._read(request, request.messages)
        return prompt, self._sampling(request, len(prompt.ids))

    def _read(self, request: RefineRequest, messages: tuple[dict[str, Any], ...]) -> Prompt:
        return self.prompts.read(messages, request.tools, request.tool_choice, request.reasoning)

    def _score(self, request: ScoreRequest, ticket: Ticket) -> Job:
        prompt, ids = self.prompts.read(request.messages), self._draft_ids(request.draft)
        if not ids:
            return Job(request, Group([]), ticket)
        if (known := self._known(ids)) < len(ids):
            raise ValueError(f"expected tokens below {self._vocab} in the draft, got {ids[known]}")
        fit(self.context_tokens, len(prompt.ids), len(ids), len(ids))
        sequence = Scored(
            Sampling(max_tokens=len(ids)), prompt.ids, draft=ids, images=prompt.images, whole_images=self._whole_images
        )
        group = Group([sequence], request.priority, _share_key(request.prefix_key, prompt))
        return Job(request, group, ticket, left=1)

    def _sampling(self, request: RefineRequest, prompt_tokens: int) -> Sampling:
        sampling = Sampling(
            max_tokens=fit(self.context_tokens, prompt_tokens, request.max_tokens, self._settings.max_tokens),
            end_ids=self._end_ids | frozenset(request.stop_token_ids),
            temperature=request.temperature if not 0 <= request.temperature < COLDEST else 0.0,
            top_p=request.top_p,
            top_k=request.top_k,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            repetition_penalty=request.repetition_penalty,
            seed=request.seed,
            logprobs=request.logprobs,
        )
        sampling.check()
        return sampling

    def _draft_ids(self, draft: Draft) -> list[int]:
        if draft.tokenizer_fingerprint == self.prompts.tokenizer.fingerprint:
            return list(draft.token_ids)
        return self.prompts.tokenizer.encode(draft.text)

    def _known(self, ids: list[int]) -> int:
        """How many of a draft's tokens come before the first that the model has no embedding for."""
        return leading(0 <= token < self._vocab for token in ids)


def _seeded(sampling: Sampling, choice: int) -> Sampling:
    """Further choices have seeds of their own, none that another request is likely to have."""
    if choice == 0:
        return sampling
    digest = hashlib.blake2b(f"{sampling.seed} {choice}".encode(), digest_size=8).digest()
    return replace(sampling, seed=int.from_bytes(digest, signed=True))


def _share_key(key: str | None, prompt: Prompt) -> str | None:
    """Images look alike as tokens, so what is in them is part of the key."""
    if key is None or not prompt.images:
        return key
    digest = hashlib.blake2b(digest_size=16)
    for image in prompt.images:
        for part in (image.pixel_values, image.position_ids):  # those of a plain colour differ in their shape alone
            digest.update(part.contiguous().numpy().tobytes())
    return f"{key}\0{digest.hexdigest()}"


def _score_of(draft: list[int], scores: list[Choice]) -> DraftScore:
    greedy = [one.best for one in scores]
    return DraftScore(
        token_ids=tuple(draft),
        token_logprobs=tuple(one.tried_logprob for one in scores),
        token_ranks=tuple(one.tried_rank for one in scores),
        greedy_tokens=tuple(greedy),
        agreeing_prefix=leading(theirs == ours for theirs, ours in zip(draft, greedy, strict=True)),
    )
