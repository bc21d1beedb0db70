"""The refine benchmark, with a few requests; how fast anything is is not looked at."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from ar_engine.api import Draft, RefineResult
from benchmarks import _refine_bf16, _refine_clients, refine
from benchmarks._refine_drafts import DRAFTED, ELSE, HALF_WRONG, KINDS, ONE_WRONG, RIGHT, Drafts
from demo_models.tasks import Conversation, conversations


@pytest.fixture(autouse=True)
def same_numbers_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="compares on a CPU only")
def test_a_smoke_run_measures_every_part_and_draws_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "refine.json"
    assert refine.main(["--smoke", "--threads", "1", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert {"git_sha", "machine", "versions", "seed", "threads", *refine.PARTS} <= set(report)

    drafts = report["drafts"]
    assert set(drafts["kinds"]) == set(KINDS)
    assert drafts["fresh"]["mean_tried_tokens"] == 0
    for kind in drafts["kinds"].values():
        assert kind["same_text_share"] == 1
        low, high = kind["times_as_fast"]["interval_95"]
        assert low <= kind["times_as_fast"]["ratio"] <= high
    assert drafts["kinds"][RIGHT]["mean_forwards"] == 1
    assert drafts["kinds"][ELSE]["mean_forwards"] <= drafts["fresh"]["mean_forwards"]

    typical = report["typical"]["all"]["modes"]
    assert typical["typical"]["mean_kept_tokens"] >= typical["exact"]["mean_kept_tokens"]

    for found in report["bf16"]["systems"].values():
        assert (found["mismatch_rate"] > 0) == bool(found["mismatches"])

    demo, qwen = report["clients"]
    assert "num_key_value_heads" in demo["errors"][_refine_clients.CONTINUOUS]
    assert qwen["errors"] == {}
    assert [level["clients"] for level in qwen["levels"]] == list(refine.SMOKE.levels)
    assert set(qwen["levels"][-1]["systems"]) == set(_refine_clients.SYSTEMS)
    assert {drawn.name for drawn in file.parent.glob("*.svg")} == {"refine_drafts.svg", "refine_clients.svg"}


def test_with_a_gpu_it_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert refine.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1


def differing(draft: Draft, answer: list[int]) -> int:
    return sum(a != b for a, b in zip(draft.token_ids, answer, strict=True))


@pytest.mark.parametrize(("length", "half"), [(1, 1), (7, 4), (40, 20)])
def test_wrong_tokens_are_ordinary_and_as_many_as_said(length: int, half: int) -> None:
    make, answer = Drafts(seed=3), list(range(300, 300 + length))
    case = next(conversations("combinations", 3))
    made = make.of(case, answer)
    assert [differing(made[kind], answer) for kind in (RIGHT, ONE_WRONG, HALF_WRONG)] == [0, 1, half]
    assert set(made[HALF_WRONG].token_ids) <= set(make.ordinary)
    assert made == Drafts(seed=3).of(case, answer)
    assert DRAFTED not in made


def test_the_place_of_one_wrong_token_is_any() -> None:
    make, answer = Drafts(seed=4), [400, 401, 402, 403]
    case = next(conversations("combinations", 4))
    wrong = (make.of(case, answer)[ONE_WRONG].token_ids for _ in range(100))
    assert {_refine_bf16.first_difference(ids, answer) for ids in wrong} == {0, 1, 2, 3}


def test_something_else_is_another_familys_answer() -> None:
    cases = list(islice(conversations("combinations", 5), 20))
    make = Drafts(seed=5)
    assert all(make.of(case, [300])[ELSE].text != case.answer for case in cases)


@pytest.mark.parametrize(
    ("one", "other", "at"), [([1, 2], [1, 3], 1), ([1], [1, 3], 1), ([1, 3], [1], 1), ([], [1], 0), ([1], [1], 1)]
)
def test_two_answers_part_where_one_ends_or_differs(one: list[int], other: list[int], at: int) -> None:
    assert _refine_bf16.first_difference(one, other) == at


def test_a_ratio_is_that_of_the_sums_and_its_distribution_that_of_requests() -> None:
    found = refine.ratio(np.array([8.0, 1.0]), np.array([2.0, 1.0]), seed=1)
    assert found["ratio"] == 3.0
    each = found["of_each_request"]
    assert (each["least"], each["mean"], each["most"]) == (1.0, 2.5, 4.0)
    low, high = found["interval_95"]
    assert 1.0 <= low <= 3.0 <= high <= 4.0


def test_changed_texts_are_counted_by_what_they_were() -> None:
    def case(answer: str) -> Conversation:
        return Conversation(family="", is_complex=False, messages=(), answer=answer)

    def result(text: str, kept: int) -> RefineResult:
        return RefineResult(
            text=text,
            token_ids=(1,),
            finish_reason="stop",
            prompt_tokens=1,
            completion_tokens=2,
            kept_tokens=kept,
            forwards=1,
            first_token_s=0,
            elapsed_s=0,
        )

    drafts = [Draft(text=text, token_ids=(1,), tokenizer_fingerprint="") for text in ("a", "x", "c")]
    rows = {
        "exact": [result("a", 1), result("b", 0), result("x", 1)],
        "typical": [result("a", 1), result("x", 1), result("c", 1)],
    }
    found = refine.accepted([case("a"), case("b"), case("c")], drafts, rows)
    assert found["drafts_right"] == 2
    assert [found["modes"][mode]["texts_right"] for mode in rows] == [2, 2]
    assert found["kept_tokens_times"] == 1.5
    assert found["texts_changed"] == 2
    assert found["changed"] == {"right_before": 1, "right_after": 1, "stay_right": 0}
