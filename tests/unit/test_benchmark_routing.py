"""The routing benchmark, with a few rows; how fast anything is is not looked at."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from benchmarks import routing
from benchmarks._routing_recipes import BEST, RECIPES, counts
from classifiers.api import DraftEvidence
from classifiers.card import Dataset
from classifiers.evaluation import apgr, labels_of
from classifiers.outcomes import Outcome
from classifiers.train_complexity import fit_complexity

WORDS = ("amber", "birch", "cedar", "delta", "ember", "frost", "grove", "heath", "inlet", "jetty")


def lines(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows in which the word "delta" makes a draft wrong."""
    rng = np.random.default_rng(seed)
    prompts = [" ".join(rng.choice(WORDS, rng.integers(4, 12))) for _ in range(count)]
    return [
        {"prompt": text, "draft_right": ("delta" not in text) != (rng.random() < 0.1), "refine_right": True}
        for text in prompts
    ]


def outcomes(count: int, seed: int) -> list[Outcome]:
    return [
        Outcome(
            messages=({"role": "user", "content": one["prompt"]},),
            draft_right=bool(one["draft_right"]),
            refine_right=True,
        )
        for one in lines(count, seed)
    ]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, default=bool) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "data" / "one.jsonl", lines(150, 0))
    write(tmp_path / "data" / "two.jsonl", lines(150, 1))
    write(tmp_path / "data" / "hopeless.jsonl", [{**row, "draft_right": True} for row in lines(30, 2)])
    return tmp_path / "data"


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    fit_complexity(outcomes(60, 9)).save(tmp_path / "model", {"data": []})
    return tmp_path / "model"


def test_a_smoke_run_measures_every_part_and_draws_it(data: Path, shipped: Path, tmp_path: Path):
    file = tmp_path / "new" / "routing.json"
    assert routing.main(["--data", str(data), "--shipped", str(shipped), "--smoke", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert {"git_sha", "machine", "versions", "seed", "bootstraps", "draft_aware"} <= set(report)
    assert set(report["datasets"]) == {"one", "two"}
    assert "hopeless" in report["left_out"]
    for found in report["datasets"].values():
        assert found["rows"] == 150
        assert not found["shipped_artifact"]["trained_on_these_rows"]
        assert found["baselines"]["oracle"]["apgr"]["value"] >= found["best_recipe"]["apgr"]["value"] > 0.6
        low, value, high = (found["best_recipe"]["apgr"][key] for key in ("low", "value", "high"))
        assert low < value < high
    assert set(report["transfer"]) == {"one -> two", "two -> one"}
    assert set(report["frontier"]) == {*routing.SMOKE_RECIPES, routing.SHIPPED}
    assert {path.name for path in file.parent.iterdir()} == {"routing.json", "routing_frontier.svg"}


def test_a_folder_with_nothing_to_measure_is_refused_and_says_why(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write(tmp_path / "data" / "one.jsonl", [{**row, "draft_right": True} for row in lines(30, 2)])
    assert routing.main(["--data", str(tmp_path / "data"), "--shipped", str(shipped)]) == 2
    assert "right more often" in capsys.readouterr().err


def test_drafts_are_judged_by_a_model_that_did_not_see_them(monkeypatch: pytest.MonkeyPatch):
    rows = [
        structs.replace(row, draft=DraftEvidence(messages=row.messages, text="right" if row.draft_right else "wrong"))
        for row in outcomes(60, 6)
    ]
    learned: list[int] = []

    def recipe(train: Sequence[Outcome]) -> Any:
        learned.append(len(train))
        return lambda asked: np.array([float(row.draft.text == "wrong") for row in asked])

    monkeypatch.setattr(routing, "acceptor_recipe", recipe)
    datasets = {"a": Dataset(rows, "", 0), "b": Dataset(outcomes(60, 7), "", 0)}
    (found,) = routing.draft_aware(routing.Bench(datasets, [], 5, 5, 1)).values()
    assert found["rows"] == 60
    assert found["auroc_draft_wrong"]["value"] == 1
    assert sum(learned) == (routing.FOLDS - 1) * 60


def test_recipes_can_learn_from_other_files_but_never_from_the_rows_asked(
    data: Path, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = {row["prompt"] for name in ("one", "two") for row in lines(150, int(name == "two"))}
    write(tmp_path / "train" / "more.jsonl", [*lines(150, 0), *lines(80, 5)])
    learned: list[Sequence[Outcome]] = []

    def spy(train: Sequence[Outcome]) -> Any:
        learned.append(train)
        return lambda rows: np.zeros(len(rows))

    monkeypatch.setattr(routing, "RECIPES", dict.fromkeys(routing.SMOKE_RECIPES, spy))
    options = ["--data", str(data), "--shipped", str(shipped), "--smoke", "--train", str(tmp_path / "train")]
    assert routing.main(options) == 0
    first = {row.messages[0]["content"] for row in learned[0]}
    assert first
    assert not first & asked


@pytest.mark.parametrize("missing", ["data", "shipped"])
def test_what_is_missing_is_said_in_one_line(
    missing: str, data: Path, shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    paths = {"data": data, "shipped": shipped, missing: tmp_path / "none"}
    assert routing.main([word for name, path in paths.items() for word in (f"--{name}", str(path))]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("benchmarks.routing: ")


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("length", BEST)])
def test_a_recipe_learns_what_makes_drafts_fail_and_scores_one_row_as_many(name: str):
    test = outcomes(100, 4)
    scorer = RECIPES[name](outcomes(300, 3))
    scores = scorer(test)
    one_by_one = np.concatenate([scorer([row]) for row in test[:5]])
    assert one_by_one == pytest.approx(scores[:5], abs=1e-6)
    if "counts," not in name:  # which see no words
        assert apgr(scores, *labels_of(test)) > 0.6


def test_counts_are_logarithms_of_what_stands_in_the_text():
    one, two, three = counts(["who?", "who??", "who???"])
    assert np.isclose(two - one, np.log(3 / 2)).any()
    assert np.isclose(three - one, np.log(4 / 2)).any()
    assert np.isfinite(counts(["", "\n", "é" * 10])).all()
