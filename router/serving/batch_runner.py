"""Works on batches: checks their lines, has them answered beside what people wait for, and ends them.

What is on the disk is the truth, so this may be killed at any time: whoever takes the batch next asks only for the lines without a result.
All batches share the slots of a process in turn, each with as many lines under way as there are slots.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from router.serving import batch_lines
from router.serving.batch_check import CheckModel, check
from router.serving.batch_lines import AnswerBody, Line, LineFailure, ResultLine
from router.serving.batch_results import Results
from router.settings import BatchSettings
from router.state import disk
from router.state.batches import BatchErrors, BatchStore, Ending, Finish, Held, RequestCounts
from router.state.files import PREFIX as FILE_PREFIX

MOST_BATCHES = 64  # worked on at once; each holds files open
READ_LINES = 64  # at a time
LOOK_EVERY_S = 1.0  # for new batches, for those to be cancelled, and to save how far they are
SWEEP_EVERY_S = 3_600.0  # what is too old is deleted
AGAIN_S = 30.0  # until a batch that could not be worked on is tried again
EXPIRED = LineFailure(
    code="batch_expired", message="This request could not be executed before the completion window expired."
)

T = TypeVar("T")

logger = logging.getLogger("draftgate")


class BatchRunner:
    """Works on all batches that nobody else does."""

    def __init__(
        self,
        store: BatchStore,
        answers: Mapping[str, AnswerBody],
        check_model: CheckModel,
        settings: BatchSettings,
        longest_line: int,
        clock: Callable[[], float] = time.time,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        """Nothing runs until `run_forever` does.

        Args:
            store: of the batches.
            answers: by endpoint.
            check_model: whether a caller may ask for a model.
            settings: of batches.
            longest_line: bytes of a request.
            clock: Unix seconds.
            look_every_s: how often the disk is looked at.
        """
        self._store = store
        self._answers = answers
        self._check_model = check_model
        self._longest = longest_line
        self._running = settings.max_running
        self._slots = asyncio.Semaphore(settings.max_running)
        self._clock = clock
        self._look_every_s = look_every_s
        self._stopping = False
        self._tasks: dict[Path, asyncio.Task[None]] = {}

    async def run_forever(self) -> None:
        """Work on batches, those that a stopped gateway left included, and delete old ones, until cancelled."""
        swept_at = -SWEEP_EVERY_S
        try:
            while True:
                if (now := time.monotonic()) >= swept_at + SWEEP_EVERY_S:
                    await asyncio.to_thread(self._store.sweep)
                    swept_at = now
                self._tasks = {folder: task for folder, task in self._tasks.items() if not task.done()}
                for folder in await asyncio.to_thread(self._store.unfinished):
                    if not self._stopping and folder not in self._tasks and len(self._tasks) < MOST_BATCHES:
                        self._tasks[folder] = asyncio.create_task(self._work(folder))
                await asyncio.sleep(self._look_every_s)
        finally:
            self.stop()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def stop(self) -> None:
        """Send no more lines and give up those under way; whoever starts next asks for them again."""
        self._stopping = True
        for task in self._tasks.values():
            task.cancel()

    async def _work(self, folder: Path) -> None:
        try:
            held = self._store.hold(folder)
            if held is None:
                return
            try:
                await self._carry_out(held)
            finally:
                held.release()
        except Exception:  # a full disk, say: the batch must not be lost, nor end the others
            logger.exception("a batch can't go on; it is tried again")
            await asyncio.sleep(AGAIN_S)

    async def _carry_out(self, held: Held) -> None:
        """Bring a batch to its end from wherever it stands."""
        if held.batch.status == "validating" and held.cancelling_at() is None:
            await self._check(held)
        if held.batch.status == "failed":
            held.end()
            return
        if held.record.finish is None:
            ending = "cancelled" if held.batch.status == "validating" else await self._answer(held)
            finish = Finish(ending=ending, output_id=disk.new_id(FILE_PREFIX), error_id=disk.new_id(FILE_PREFIX))
            since = held.cancelling_at() if ending == "cancelled" else None
            await _save(held, finish, status="finalizing", finalizing_at=self._now(), cancelling_at=since)
        await _to_end(self._finish, held)

    async def _check(self, held: Held) -> None:
        found = await asyncio.to_thread(
            check, held.input, held.batch, held.record.caller, self._check_model, self._longest
        )
        if found.errors:
            await _save(held, status="failed", failed_at=self._now(), errors=BatchErrors(data=found.errors))
        else:
            counts = RequestCounts(total=found.total)
            await _save(
                held, status="in_progress", in_progress_at=self._now(), model=found.model, request_counts=counts
            )

    async def _answer(self, held: Held) -> Ending:
        """Have all lines answered that aren't yet, until they are or something ends that."""
        results = await _to_end(Results, held.output, held.errors)
        try:
            ending = await self._send_until(held, results)
            if ending == "expired":
                await _to_end(self._expire, held, results)
            await _progress(held, results)
        finally:
            await _to_end(results.close)
        return ending

    async def _send_until(self, held: Held, results: Results) -> Ending:
        sending = asyncio.create_task(
            batch_lines.answer_lines(
                self._missing(held, results), self._answers, held.record.caller, self._slots, self._running, results.add
            )
        )
        try:
            while True:
                ended, _ = await asyncio.wait({sending}, timeout=self._look_every_s)
                if ended:
                    sending.result()
                    return "completed"
                if held.cancelling_at() is not None:
                    return "cancelled"
                if self._clock() >= held.batch.expires_at:
                    return "expired"
                await _progress(held, results)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def _missing(self, held: Held, results: Results) -> Iterator[list[Line]]:
        """The lines without a result, some at a time."""
        offset = 0
        while True:
            texts, offset = batch_lines.read_lines(held.input, offset, READ_LINES, self._longest)
            if not texts:
                return
            if lines := [line for line in map(batch_lines.parse, texts) if line.custom_id not in results.done]:
                yield lines

    def _expire(self, held: Held, results: Results) -> None:
        for chunk in self._missing(held, results):
            for line in chunk:
                results.add(
                    ResultLine(id=disk.new_id("batch_req_"), custom_id=line.custom_id, response=None, error=EXPIRED)
                )

    def _finish(self, held: Held) -> None:
        finish = held.record.finish
        assert finish is not None, "a batch is finalizing before it is finished"
        ended: dict[str, Any] = {
            "status": finish.ending,
            f"{finish.ending}_at": self._now(),
            "output_file_id": held.move(held.output, finish.output_id),
            "error_file_id": held.move(held.errors, finish.error_id),
        }
        held.save(msgspec.structs.replace(held.batch, **ended), finish)
        held.end()

    def _now(self) -> int:
        return int(self._clock())


async def _progress(held: Held, results: Results) -> None:
    counts = results.counts(held.batch.request_counts.total)
    if counts != held.batch.request_counts:
        await _save(held, request_counts=counts, usage=results.usage)


async def _save(held: Held, finish: Finish | None = None, **changes: Any) -> None:
    await _to_end(held.save, msgspec.structs.replace(held.batch, **changes), finish)


async def _to_end(work: Callable[..., T], *args: Any) -> T:
    """Run in a thread and wait for its end even when cancelled: nobody else may have the batch before."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
