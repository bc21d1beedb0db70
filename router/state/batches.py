"""Batches on disk, which is the truth about them: whoever starts next goes on from there.

batches/open/<tenant's hash>.<id>     the batch has not ended
batches/<tenant's hash>/<id>/
    batch.json       the record; only who holds the lock writes it
    input.jsonl      the input file, whatever becomes of the uploaded one
    output.jsonl     answers so far, moved to the files in the end
    errors.jsonl     and failures
    lock             held by the process that works on it
    cancel           somebody wants it to end
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from router.errors import BadRequest, Conflict, NotFound
from router.serving.messages import Caller
from router.state import disk
from router.state.files import FileStore, page_ids, room

PREFIX = "batch_"
ID = re.compile(r"batch_[0-9a-f]{32}")
WINDOW_S = 86_400  # completion_window: "24h"

Endpoint = Literal["/v1/chat/completions", "/v1/completions"]
Ending = Literal["completed", "expired", "cancelled"]
Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]


class BatchError(Struct, frozen=True, kw_only=True):
    """What is wrong with a line of the input, or with all of it."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None  # from 1


class BatchErrors(Struct, frozen=True, kw_only=True):
    """What is wrong with the input; not more than the first of many."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(Struct, frozen=True, kw_only=True):
    """How far a batch is."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputTokensDetails(Struct, frozen=True):
    """Of the tokens read."""

    cached_tokens: int = 0


class OutputTokensDetails(Struct, frozen=True):
    """Of the tokens written."""

    reasoning_tokens: int = 0


class BatchUsage(Struct, frozen=True, kw_only=True):
    """Tokens of all answers."""

    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int = 0


class Batch(Struct, frozen=True, kw_only=True):
    """A batch, as OpenAI's API shows it. Times are Unix seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    model: str | None = None  # that all lines name; None: not known yet, or several
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Status = "validating"
    output_file_id: str | None = None  # None: there is none
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: BatchUsage | None = None
    metadata: dict[str, str] | None = None


class Finish(Struct, frozen=True, kw_only=True):
    """How a batch ends and what its files will be called, chosen before the first is moved."""

    ending: Ending
    output_id: str
    error_id: str


class Record(Struct, frozen=True, kw_only=True):
    """All that is kept of a batch."""

    batch: Batch
    caller: Caller  # as it was when the batch was made
    finish: Finish | None = None  # None: it isn't finalizing


class BatchStore:
    """Makes, shows and lists batches. Blocks while the disk works: call it in a thread."""

    def __init__(self, root: Path, files: FileStore, keep_s: float, clock: Callable[[], float] = time.time) -> None:
        self._root = root
        self._files = files
        self._keep_s = keep_s
        self._clock = clock

    def create(self, caller: Caller, input_file_id: str, endpoint: Endpoint, metadata: dict[str, str] | None) -> Batch:
        """Make a batch of an uploaded file; it begins when a runner finds it.

        Raises:
            NotFound: no such file.
            BadRequest: the file is not for this.
            Overloaded: the disk is full.
        """
        if self._files.get(caller.tenant, input_file_id).purpose != "batch":
            raise BadRequest("expected a file with the purpose batch, got one of results", param="input_file_id")
        now = int(self._clock())
        batch = Batch(
            id=disk.new_id(PREFIX),
            endpoint=endpoint,
            input_file_id=input_file_id,
            created_at=now,
            expires_at=now + WINDOW_S,
            metadata=metadata,
        )
        folder = self._folder(caller.tenant, batch.id)
        with room():
            folder.mkdir(parents=True)
            os.link(self._files.path(caller.tenant, input_file_id), folder / "input.jsonl")
            self._mark(folder).parent.mkdir(exist_ok=True)
            self._mark(folder).touch()
            disk.write_whole(folder / "batch.json", msgspec.json.encode(Record(batch=batch, caller=caller)))
        return batch

    def get(self, tenant: str, batch_id: str) -> Batch:
        """A batch as it is now. Raises NotFound."""
        if ID.fullmatch(batch_id):
            folder = self._folder(tenant, batch_id)
            with suppress(FileNotFoundError):
                batch = _read(folder).batch
                if batch.status in ("validating", "in_progress") and (since := _cancelling(folder)):
                    batch = msgspec.structs.replace(batch, status="cancelling", cancelling_at=since)
                return batch
        raise NotFound("There is no such batch.")

    def page(self, tenant: str, *, after: str = "", limit: int = 20) -> tuple[list[Batch], bool]:
        """A page of a tenant's batches, newest first, those that come after the id `after`; and whether there are more."""
        folders = self._folder(tenant, "").glob(f"{PREFIX}*")
        page: list[Batch] = []
        for batch_id in page_ids((folder.name for folder in folders), after, "desc"):
            with suppress(NotFound):  # being made, or swept away meanwhile
                page.append(self.get(tenant, batch_id))
            if len(page) > limit:
                break
        return page[:limit], len(page) > limit

    def cancel(self, tenant: str, batch_id: str) -> Batch:
        """Have a batch end soon. Raises NotFound; Conflict: it is ending, or has ended."""
        status = self.get(tenant, batch_id).status
        if status not in ("validating", "in_progress", "cancelling"):
            raise Conflict(f"A batch that is {status} can't be cancelled.")
        (self._folder(tenant, batch_id) / "cancel").touch(exist_ok=True)
        return self.get(tenant, batch_id)

    def unfinished(self) -> list[Path]:
        """Folders of the batches that have not ended, oldest first."""
        marks = [mark.name.partition(".") for mark in (self._root / "open").glob("*.*")]
        return [self._root / tenant / name for tenant, _, name in sorted(marks, key=lambda mark: mark[2])]

    def hold(self, folder: Path) -> "Held | None":
        """Take a batch to work on; None if another process has it, or it has ended."""
        with ExitStack() as undo, suppress(FileNotFoundError, BlockingIOError):
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            undo.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._mark(folder).exists():  # else it ended while we came
                held = Held(folder, self._mark(folder), _read(folder), self._files, lock)
                undo.pop_all()
                return held
        return None

    def sweep(self) -> None:
        """Delete files and batches that are too old, and what was left of one that was never made whole."""
        self._files.sweep()
        for folder in self._root.glob(f"*/{PREFIX}*"):
            with suppress(FileNotFoundError):
                if folder.is_dir() and folder.stat().st_mtime < self._clock() - self._keep_s:
                    shutil.rmtree(folder)
                    self._mark(folder).unlink(missing_ok=True)

    def _folder(self, tenant: str, batch_id: str) -> Path:
        return self._root / disk.tenant_folder(tenant) / batch_id

    def _mark(self, folder: Path) -> Path:
        return self._root / "open" / f"{folder.parent.name}.{folder.name}"


class Held:
    """A batch that this process works on, until `release`."""

    def __init__(self, folder: Path, mark: Path, record: Record, files: FileStore, lock: int) -> None:
        self.record = record
        self._folder = folder
        self._mark = mark
        self._files = files
        self._lock = lock

    @property
    def batch(self) -> Batch:
        """As it was last saved."""
        return self.record.batch

    @property
    def input(self) -> Path:
        """Its requests."""
        return self._folder / "input.jsonl"

    @property
    def output(self) -> Path:
        """Its answers so far."""
        return self._folder / "output.jsonl"

    @property
    def errors(self) -> Path:
        """Its failures so far."""
        return self._folder / "errors.jsonl"

    def cancelling_at(self) -> int | None:
        """Since when somebody wants it to end; None: nobody does."""
        return _cancelling(self._folder)

    def save(self, batch: Batch, finish: Finish | None = None) -> None:
        """Put the batch's new state on the disk."""
        self.record = msgspec.structs.replace(self.record, batch=batch, finish=finish)
        disk.write_whole(self._folder / "batch.json", msgspec.json.encode(self.record))

    def move(self, results: Path, file_id: str) -> str | None:
        """Make results a file of the tenant's; None if there are none. May be done again after a crash."""
        if results.exists() and not results.stat().st_size:
            return None
        with suppress(NotFound):  # neither here nor there: there were none
            name = f"{self.batch.id}_{results.name}"
            return self._files.add(self.record.caller.tenant, results, name, "batch_output", file_id).id
        return None

    def end(self) -> None:
        """The batch has ended: nobody need look at it again."""
        for left in (self.input, self.output, self.errors):
            left.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)

    def release(self) -> None:
        """Let others have it."""
        os.close(self._lock)


def _read(folder: Path) -> Record:
    return msgspec.json.decode((folder / "batch.json").read_bytes(), type=Record)


def _cancelling(folder: Path) -> int | None:
    with suppress(FileNotFoundError):
        return int((folder / "cancel").stat().st_mtime)
    return None
