"""Labelled outcomes: what was asked, what the draft and the refiner made of it. The JSON lines that every command reads.

One object a line:

    {"messages": [{"role": "user", "content": "..."}],      or "prompt": "..." for a single user turn
     "draft_right": false, "refine_right": true,             was each model's answer right? refine_right may be missing
     "group": "...",                                         optional: subject, family, tenant; for reports and leave-one-out
     "draft": {"text": "...", "finish_reason": "stop", "steps": [..], "converged": [..], "token_entropy": [..],
               "token_logprobs": [..], "late_flips": 0, "score": {"token_logprobs": [..], "token_ranks": [..],
               "agreeing_prefix": 0}, "others": ["..."]},   optional: the fields of DraftEvidence but `messages`
     "refined": "..."}                                       optional: the refiner's answer

RouteLLM's names are understood as well: weak_correct, strong_correct, weak_response, strong_response, subject.
"""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, structs

from classifiers.api import DraftEvidence

logger = logging.getLogger("draftgate.outcomes")


class OutcomesError(ValueError):
    """Outcomes that can't be read, or don't hold what is needed."""


class Outcome(Struct, frozen=True, kw_only=True):
    """One conversation and who was right."""

    messages: tuple[dict[str, Any], ...]
    draft_right: bool
    refine_right: bool | None = None
    group: str = ""
    draft: DraftEvidence | None = None
    refined: str | None = None
    source: str = ""  # the file it was read from, whatever the row says

    @property
    def needed(self) -> bool:
        """Did this conversation need the refiner: was the draft wrong where the refiner was right?"""
        return not self.draft_right and bool(self.refine_right)


class Dataset(NamedTuple):
    """Outcomes of one file."""

    rows: list[Outcome]
    sha256: str
    unlabelled: int  # rows which lack refine_right


_ROUTELLM = {
    "weak_correct": "draft_right",
    "strong_correct": "refine_right",
    "strong_response": "refined",
    "subject": "group",
}


def as_served(draft: DraftEvidence) -> DraftEvidence:
    """What of this is known when the gateway judges: no refiner's score, no other candidates."""
    return structs.replace(draft, score=None, others=())


def read_outcomes(path: Path) -> list[Outcome]:
    """Read JSON lines. Raises OutcomesError naming file, line and field."""
    return list(_outcomes(path, path.stem))


def read_folder(folder: Path) -> dict[str, list[Outcome]]:
    """Every `*.jsonl` below a folder that holds outcomes, by its name without the ending.

    A file whose first row says nothing of `draft_right` holds something else: it is left out, and the log says so.

    Raises:
        OutcomesError: a row isn't of this form, or no file holds outcomes.
    """
    found: dict[str, list[Outcome]] = {}
    others: list[str] = []
    for path in sorted(folder.rglob("*.jsonl")):
        name = str(path.relative_to(folder).with_suffix(""))
        if "draft_right" in next(rows(path), (0, {}))[1]:
            found[name] = list(_outcomes(path, name))
        else:
            others.append(name)
    if not found:
        raise OutcomesError(f"expected *.jsonl files with draft_right in {folder.name}, got {others or 'no file'}")
    if others:
        logger.warning("left out, their rows hold no draft_right: %s", ", ".join(others))
    return found


def read_data(data: Path, *, every: bool = False) -> dict[str, Dataset]:
    """A file, or all files of a folder; with `every`, rows without refine_right are kept. Raises OutcomesError."""
    if data.is_dir():
        found = {name: (read, data / f"{name}.jsonl") for name, read in read_folder(data).items()}
    else:
        found = {data.stem: (read_outcomes(data), data)}
    datasets = {}
    for name, (read, path) in found.items():
        labelled = [row for row in read if row.refine_right is not None]
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        datasets[name] = Dataset(read if every else labelled, sha256, len(read) - len(labelled))
    return datasets


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of JSON lines, with our names. Raises OutcomesError naming file and line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise OutcomesError(f"{path.name}: can't be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise OutcomesError(f"{path.name}, line {number}: {error}") from error
            yield number, _renamed(row)


def _outcomes(path: Path, source: str) -> Iterator[Outcome]:
    for number, row in rows(path):
        try:
            yield msgspec.convert({**row, "source": source}, Outcome)
        except msgspec.ValidationError as error:
            raise OutcomesError(f"{path.name}, line {number}: {error}") from error


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    """RouteLLM's names made ours, and a prompt a conversation."""
    row = {_ROUTELLM.get(name, name): value for name, value in row.items()}
    if "prompt" in row:
        row.setdefault("messages", [{"role": "user", "content": row["prompt"]}])
    if "weak_response" in row:
        row.setdefault("draft", {"text": row["weak_response"]})
    if isinstance(row.get("draft"), dict):
        row["draft"] = {**row["draft"], "messages": row.get("messages", ())}
    return row
