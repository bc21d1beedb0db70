"""One request of a batch: its line in, its line out, and patience in between."""

import asyncio
import random
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from router.errors import BudgetSpent, NeverFits, describe
from router.serving.messages import BACKGROUND, Caller

BUSY = (429, 503)  # not now, but later
TIMEOUT_S = 600.0  # for one answer; nobody waits for it
LONGEST_PAUSE_S = 30.0  # before a busy gateway is asked again, unless it names a later time itself

# Answers a request's body as the endpoint of its name would: (body, caller, *, request_id, priority, timeout_s).
AnswerBody = Callable[..., Coroutine[Any, Any, Any]]


class LineError(Exception):
    """A line that is no request. `code` and `param` are words of OpenAI's API."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class Line(Struct, frozen=True, kw_only=True):
    """A request of a batch."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: Literal["POST"] = "POST"
    url: str
    body: dict[str, Any]


class StrictLine(Line, frozen=True, kw_only=True):
    """As OpenAI's API wants it."""

    method: Literal["POST"]  # pyright: ignore[reportGeneralTypeIssues]


class LineResponse(Struct, frozen=True, kw_only=True):
    """What the endpoint answered."""

    status_code: int
    request_id: str
    body: Any


class LineFailure(Struct, frozen=True, kw_only=True):
    """Why the endpoint was not asked."""

    code: str
    message: str


class ResultLine(Struct, frozen=True, kw_only=True):
    """What came of a request, as OpenAI's API writes it to the output file."""

    id: str
    custom_id: str
    response: LineResponse | None
    error: LineFailure | None = None

    @property
    def good(self) -> bool:
        """Is there an answer?"""
        return self.response is not None and self.response.status_code == 200


def parse(text: bytes) -> Line:
    """A line of a batch's input. Raises LineError."""
    return convert(decode(text), StrictLine)


def decode(text: bytes) -> Any:
    """The JSON of a line. Raises LineError."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise LineError("invalid_json_line", "This line is not parseable as valid JSON.") from None


def convert(value: Any, kind: type[Line]) -> Line:
    """A request from a line's JSON. Raises LineError."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise LineError(
            "invalid_request", f"This line is no request: {message}.", path.removesuffix("`") or None
        ) from None


def read_lines(path: Path, offset: int, count: int, longest: int) -> tuple[list[bytes], int]:
    """So many lines of a file from a byte on, blank ones left out, and where to go on; the same place where there are no more.

    What is longer than `longest` comes in pieces of that length.
    """
    lines: list[bytes] = []
    with path.open("rb") as file:
        file.seek(offset)
        while len(lines) < count and (line := file.readline(longest)):
            if not line.isspace():
                lines.append(line)
        return lines, file.tell()


async def answer_line(answer: AnswerBody, line: Line, caller: Caller, slots: asyncio.Semaphore) -> ResultLine:
    """Ask until there is an answer, or an error that would come again. A slot is held while the engines are asked."""
    tries = 0
    while True:
        request_id = uuid.uuid4().hex
        async with slots:
            try:
                body = await answer(line.body, caller, request_id=request_id, priority=BACKGROUND, timeout_s=TIMEOUT_S)
                return result(line.custom_id, request_id, 200, body)
            except Exception as error:  # noqa: BLE001  described and logged like any other
                wire, envelope, headers = describe(error)
                if wire.status not in BUSY or isinstance(error, BudgetSpent | NeverFits):
                    return result(line.custom_id, request_id, wire.status, envelope)
        pause_s = max(float(headers["retry-after"]), min(LONGEST_PAUSE_S, 2.0**tries))
        tries += 1
        await asyncio.sleep(pause_s * random.uniform(1.0, 1.5))  # not all at once


async def answer_lines(
    chunks: Iterator[list[Line]],
    answers: Mapping[str, AnswerBody],
    caller: Caller,
    slots: asyncio.Semaphore,
    places: int,
    add: Callable[[ResultLine], None],
) -> None:
    """Have many lines answered.

    Args:
        chunks: of lines; taken in a thread, as they come from a file.
        answers: by endpoint.
        caller: who asks.
        slots: held while the engines are asked; shared by all who ask.
        places: lines in memory at once; one that waits for a busy gateway has a place, but no slot.
        add: takes the results, in the order they come.
    """
    free = asyncio.Semaphore(places)

    async def send(line: Line) -> None:
        try:
            add(await answer_line(answers[line.url], line, caller, slots))
        finally:
            free.release()

    async with asyncio.TaskGroup() as group:
        while chunk := await asyncio.to_thread(next, chunks, None):
            for line in chunk:
                await free.acquire()
                group.create_task(send(line))


def result(custom_id: str, request_id: str, status: int, body: Any) -> ResultLine:
    """What the endpoint answered."""
    response = LineResponse(status_code=status, request_id=request_id, body=body)
    return ResultLine(id=f"batch_req_{request_id}", custom_id=custom_id, response=response)
