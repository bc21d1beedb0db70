"""The two files of `draftgate batch`: requests in, results out."""

import fcntl
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from router.serving import batch_lines, batch_results
from router.serving.batch_lines import Line, LineError, ResultLine
from router.state import disk

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MODEL = "draftgate"  # of a request that names none


class Halted(Exception):
    """It can't go on now. The message says why."""


class Unusable(Exception):
    """Nothing can be done with what was given. The message says what was expected and what was got."""


def requests(source: Path) -> Iterator[Line]:
    """The requests in a file, one by one.

    Raises:
        Unusable: it can't be read, or a line is no request.
    """
    try:
        with source.open("rb") as file:
            for number, text in enumerate(file, 1):
                if text.isspace():
                    continue
                try:
                    yield _request(batch_lines.decode(text), number)
                except LineError as error:
                    raise Unusable(f"{source}, line {number}: {error}") from None
    except OSError as error:
        raise Unusable(f"{source}: can't be read: {error.strerror}") from None


def _request(value: Any, number: int) -> Line:
    given: dict[str, Any] = {"custom_id": str(number), "url": CHAT}
    match value:
        case str():
            given["body"] = {"messages": [{"role": "user", "content": value}]}
        case {"messages": _}:
            given["body"] = value
        case dict():
            given |= value
        case _:
            raise LineError("invalid_request", "expected a request, a body or a text to ask, got something else")
    line = batch_lines.convert(given, Line)
    if line.url not in (CHAT, COMPLETIONS):
        raise LineError("invalid_url", f"expected the url {CHAT} or {COMPLETIONS}, got another")
    return msgspec.structs.replace(line, body={"model": MODEL, **line.body})


def survey(source: Path) -> int:
    """How many requests a file has, all of which can be sent. Raises Unusable."""
    seen: set[str] = set()
    for line in requests(source):
        if line.custom_id in seen:
            raise Unusable(f"{source}: expected a custom_id of its own for each line, got {line.custom_id!r} twice")
        seen.add(line.custom_id)
    return len(seen)


class Output:
    """The file of results, and how far it is. A context; nobody else may write the file meanwhile."""

    def __init__(self, path: Path, total: int) -> None:
        """Open a file, or begin one.

        Args:
            path: of the file. What is no answer in it is dropped, to be asked again.
            total: requests that there are.

        Raises:
            Unusable: it can't be written, or somebody else writes to it.
        """
        self.total = total
        self.done: set[str] = set()  # custom_ids
        self.failed = 0
        self.tokens = 0  # of answers, since the start
        self._began = time.monotonic()
        with ExitStack() as undo:
            try:
                with _only(path):
                    disk.keep_lines(path, _good)
                undo.enter_context(_only(path))  # which may be another file now
                with path.open("rb") as file:
                    self.done = {kept.custom_id for text in file if (kept := batch_results.read(text))}
                self._lines = disk.Appender(path)
            except OSError as error:
                raise Unusable(f"{path}: can't be written: {error.strerror}") from None
            undo.callback(self._lines.close)
            self.bar: tqdm[Any] = tqdm(total=total, initial=len(self.done), unit="req", disable=None)
            undo.callback(self.bar.close)
            self._undo = undo.pop_all()

    @property
    def answered(self) -> int:
        """Requests with an answer."""
        return len(self.done)

    def add(self, result: ResultLine) -> None:
        """Keep a result."""
        self.add_text(msgspec.json.encode(result) + b"\n")

    def add_text(self, text: bytes) -> None:
        """Keep a result that is a line already; one that is here already is left out."""
        kept = batch_results.read(text)
        if kept is None or kept.custom_id in self.done:
            return
        self._lines.add(text)
        if kept.good:
            self.done.add(kept.custom_id)
        else:
            self.failed += 1
        self.tokens += kept.usage.completion_tokens
        self.show(self.answered, self.failed, self.tokens)

    def show(self, answered: int, failed: int, tokens: int) -> None:
        """Move the bar."""
        rate = tokens / (time.monotonic() - self._began)
        self.bar.set_postfix_str(f"{answered} answered, {failed} failed, {rate:.0f} tokens/s", refresh=False)
        self.bar.update(answered + failed - self.bar.n)

    def summary(self) -> str:
        """One sentence."""
        return f"{self.answered} of {self.total} answered, {self.failed} failed."

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()


def _good(text: bytes) -> bool:
    kept = batch_results.read(text)
    return kept is not None and kept.good


@contextmanager
def _only(path: Path) -> Generator[None, None, None]:
    """Nobody else may write to the file meanwhile."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unusable(f"{path}: another draftgate batch writes to it") from None
        yield


def missing(source: Path, output: Output) -> Iterator[Line]:
    """The requests without an answer."""
    return (line for line in requests(source) if line.custom_id not in output.done)
