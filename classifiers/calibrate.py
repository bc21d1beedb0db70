"""`draftgate calibrate`: the acceptance threshold that keeps a target on your own traffic (`docs/quality_target.md`)."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct
from tqdm import tqdm

from classifiers.api import DraftEvidence
from classifiers.labels import compare
from classifiers.outcomes import OutcomesError, as_served, read_outcomes, rows
from classifiers.risk import Labelled, calibrate

HELP = """\
Labels are JSON lines, one draft a line. Either as they are judged already:

    {"quality": 0.93, "good": true}        what the acceptor said, 0 to 1, and whether the draft was good

or outcomes, which --acceptor judges:

    {"messages": [{"role": "user", "content": "..."}], "draft_right": true, "draft": {"text": "...", ...}}

with the fields that classifiers/outcomes.py lists, of which `score` and `others` are not looked at, since the gateway lacks them;
or drafts that were refined as well, off the request path, which are labelled by comparing the two answers
(classifiers/labels.py; those that can't be compared are left out and counted):

    {"messages": [...], "draft": {"text": "...", ...}, "refined": "..."}

Take drafts of your traffic at random, not those that somebody complained of, nor those that the acceptor was trained on: the promise is about traffic like these labels.

The exit status is 0 with a threshold, 3 if the labels support none, 2 if something can't be used.
"""


T = TypeVar("T")


class _Judged(Struct, frozen=True, forbid_unknown_fields=True):
    """A line that holds a quality already."""

    quality: Annotated[float, Meta(ge=0, le=1)]
    good: bool


class _Shadowed(Struct, frozen=True):
    """A line that holds a draft and a refined answer, and no label."""

    draft: DraftEvidence
    refined: str


def labelled(path: Path, acceptor: Path | None) -> Labelled:
    """Read labels; those without a quality are judged, with a progress bar on terminals.

    Args:
        path: JSON lines in one of the three forms, told by the first.
        acceptor: folder of the model that judges drafts.

    Raises:
        OutcomesError: lines of no such form, no lines, outcomes without a draft or without an acceptor.
        ArtifactError: the acceptor can't be used.
    """
    fields = _fields(path)
    if "quality" in fields:
        judged = list(_lines(path, _Judged))
        return Labelled([row.quality for row in judged], [row.good for row in judged])
    shadowed = "refined" in fields and "draft_right" not in fields
    drafts, good = _compared(path) if shadowed else _outcomes(path)
    if acceptor is None:
        raise OutcomesError(f"{path.name}: expected lines with a quality, or --acceptor to judge drafts, got neither")
    # It imports what trained models need, which labels with a quality don't.
    from classifiers.quality import Acceptor

    model = Acceptor.load(acceptor)
    bar = tqdm(drafts, "judging", unit="draft", disable=None)
    return Labelled([model.judge(as_served(draft)).quality for draft in bar], good)


def _outcomes(path: Path) -> tuple[list[DraftEvidence], list[bool]]:
    drafts: list[DraftEvidence] = []
    outcomes = read_outcomes(path)
    for number, outcome in enumerate(outcomes, 1):
        if outcome.draft is None:
            raise OutcomesError(f"{path.name}, outcome {number}: expected a draft, got none")
        drafts.append(outcome.draft)
    return drafts, [outcome.draft_right for outcome in outcomes]


def _compared(path: Path) -> tuple[list[DraftEvidence], list[bool]]:
    """Drafts that agree with the refined answer are good ones."""
    shadowed = list(_lines(path, _Shadowed))
    labels = [compare(row.draft.text, row.refined).good for row in shadowed]
    told = [(row.draft, good) for row, good in zip(shadowed, labels, strict=True) if good is not None]
    if len(told) < len(shadowed):
        sys.stderr.write(
            f"draftgate calibrate: {len(shadowed) - len(told)} of {len(shadowed)} drafts can't be compared with the refined answer\n"
        )
    return [draft for draft, _ in told], [good for _, good in told]


def _fields(path: Path) -> set[str]:
    """Of the first line, by our names."""
    for _, row in rows(path):
        return set(row)
    raise OutcomesError(f"{path.name}: expected labels, got none")


def _lines(path: Path, kind: type[T]) -> Iterator[T]:
    for number, row in rows(path):
        try:
            yield msgspec.convert(row, kind)
        except msgspec.ValidationError as error:
            raise OutcomesError(f"{path.name}, line {number}: {error}") from error


def main(argv: list[str]) -> int:
    """Calibrate; prints the Calibration as JSON, and its sentence on stderr. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="draftgate calibrate",
        description="Find the acceptance threshold that keeps the share of bad drafts at a target.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="FILE", type=Path, required=True, help="labels, as below")
    parser.add_argument(
        "--acceptor", metavar="FOLDER", type=Path, help="model that judges drafts, if their lines don't"
    )
    parser.add_argument(
        "--target", type=float, required=True, help="largest share of accepted drafts that are bad: 0.02"
    )
    parser.add_argument("--confidence", type=float, default=0.95, help="of the promise (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the JSON here too")
    options = parser.parse_args(argv)
    try:
        found = calibrate(labelled(options.data, options.acceptor), options.target, options.confidence)
        text = msgspec.json.format(msgspec.json.encode(found)).decode()
        if options.out:
            options.out.write_text(text + "\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"draftgate calibrate: {error}\n")
        return 2
    sys.stdout.write(f"{text}\n")
    sys.stderr.write(f"{found.reason}\n")
    return 0 if found.supported else 3
