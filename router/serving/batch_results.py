"""What came of a batch's lines so far."""

from pathlib import Path

import msgspec
from msgspec import Struct

from router.serving.batch_lines import ResultLine
from router.state import disk
from router.state.batches import BatchUsage, InputTokensDetails, OutputTokensDetails, RequestCounts


class Results:
    """On the disk, answers in one file and failures in the other; how many they are, in memory."""

    def __init__(self, output: Path, errors: Path) -> None:
        self.done: set[str] = set()  # custom_ids
        self.completed = 0
        self.failed = 0
        self.usage = BatchUsage()
        for path in (output, errors):
            disk.keep_lines(path, lambda line: read(line) is not None)
            if path.exists():
                with path.open("rb") as file:
                    for text in file:
                        self._count(text)
        self._output = disk.Appender(output)
        self._errors = disk.Appender(errors)

    def add(self, result: ResultLine) -> None:
        """Keep a line's result. Raises OSError: the disk is full, or gone."""
        text = msgspec.json.encode(result) + b"\n"
        (self._output if result.good else self._errors).add(text)
        self._count(text)

    def counts(self, total: int) -> RequestCounts:
        """How far a batch of `total` lines is."""
        return RequestCounts(total=total, completed=self.completed, failed=self.failed)

    def close(self) -> None:
        """All of it is on the disk now."""
        self._output.close()
        self._errors.close()

    def _count(self, text: bytes) -> None:
        kept = read(text)
        assert kept is not None, "a line that is written or kept can be read"
        self.done.add(kept.custom_id)
        if kept.good:
            self.completed += 1
            self.usage = _sum(self.usage, kept.usage)
        else:
            self.failed += 1


class _PromptDetails(Struct):
    cached_tokens: int = 0


class _CompletionDetails(Struct):
    reasoning_tokens: int = 0


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Body(Struct):
    usage: _Usage | None = None


class _Response(Struct):
    status_code: int
    body: _Body


class Kept(Struct):
    """The part of a result line that is counted."""

    custom_id: str
    response: _Response | None

    @property
    def good(self) -> bool:
        """Is it an answer?"""
        return self.response is not None and self.response.status_code == 200

    @property
    def usage(self) -> _Usage:
        """The answer's tokens."""
        return (self.response and self.response.body.usage) or _Usage()


_decoder = msgspec.json.Decoder(Kept)


def read(text: bytes) -> Kept | None:
    """What is counted of a line; None: it is none."""
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _sum(usage: BatchUsage, used: _Usage) -> BatchUsage:
    cached = (used.prompt_tokens_details or _PromptDetails()).cached_tokens
    reasoning = (used.completion_tokens_details or _CompletionDetails()).reasoning_tokens
    return BatchUsage(
        input_tokens=usage.input_tokens + used.prompt_tokens,
        input_tokens_details=InputTokensDetails(usage.input_tokens_details.cached_tokens + cached),
        output_tokens=usage.output_tokens + used.completion_tokens,
        output_tokens_details=OutputTokensDetails(usage.output_tokens_details.reasoning_tokens + reasoning),
        total_tokens=usage.total_tokens + used.prompt_tokens + used.completion_tokens,
    )
