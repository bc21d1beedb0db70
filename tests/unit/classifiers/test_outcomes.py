"""Labelled outcomes: what is read, whose name a row bears, and what is refused."""

import json

import pytest

from classifiers.api import DraftEvidence, RefinerScore
from classifiers.outcomes import OutcomesError, as_served, read_data, read_folder, read_outcomes, rows

ROW = {"prompt": "x", "draft_right": True}


def test_the_source_is_the_file_whatever_the_row_says(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_text(json.dumps({**ROW, "source": "mine"}))
    assert {name: [row.source for row in found] for name, found in read_folder(tmp_path).items()} == {
        "a/x": ["a/x"],
        "b/x": ["b/x"],
    }
    assert [row.source for row in read_outcomes(tmp_path / "a" / "x.jsonl")] == ["x"]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b'{"prompt": "\xff"}', id="not UTF-8"),
        pytest.param(b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="nested deeply"),
        pytest.param(b"[]", id="no object"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, line):
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps(ROW).encode() + b"\n\n" + line)
    with pytest.raises(OutcomesError, match=r"a\.jsonl, line 3: "):
        list(rows(file))


def test_rows_without_the_refiners_side_are_kept_where_asked_for(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in (ROW, {**ROW, "refine_right": True})))
    assert [(len(found.rows), found.unlabelled) for found in read_data(file).values()] == [(1, 1)]
    assert [(len(found.rows), found.unlabelled) for found in read_data(file, every=True).values()] == [(2, 1)]


def test_evidence_as_served_lacks_what_the_gateway_lacks_and_nothing_else():
    known = DraftEvidence(messages=(), text="x", steps=(3,), late_flips=2)
    score = RefinerScore(token_logprobs=(), token_ranks=(), agreeing_prefix=0)
    measured = DraftEvidence(messages=(), text="x", steps=(3,), late_flips=2, score=score, others=("y",))
    assert as_served(measured) == known
