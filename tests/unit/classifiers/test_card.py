"""The router card: what it says of an artifact, and what it never says of the data."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifiers import card
from classifiers.api import DraftEvidence, RefinerScore, Verdict
from classifiers.card import Stored
from classifiers.evaluation import Scorer, prompt_text
from classifiers.outcomes import Outcome, OutcomesError, read_folder
from classifiers.train_complexity import fit_complexity

WORDS = ("amber", "birch", "cedar", "delta", "ember", "frost", "grove", "heath", "inlet", "jetty")


def lines(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows in which long prompts need the refiner, with noise; some lack the refiner's side, half have a draft."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        length = int(rng.integers(3, 30))
        one: dict[str, Any] = {
            "prompt": " ".join(rng.choice(WORDS, length)),
            "group": f"secretgroup{i % 6}",
            "draft_right": bool(rng.random() > length / 30),
        }
        if i % 10:
            one["refine_right"] = bool(rng.random() < 0.9)
        if i % 2:
            one["draft"] = {"text": "secretdraft " * int(rng.integers(1, 9))}
        found.append(one)
    return found


def write(path: Path, found: Sequence[dict[str, Any]]) -> str:
    """JSON lines; returns their SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in found))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write(folder / "one.jsonl", lines(120, 0))
    write(folder / "two.jsonl", lines(90, 1))
    write(folder / "other.jsonl", [{"prompt": "amber", "instructions": []}])
    (folder / "LICENSE").write_text("\n  Some Licence\n  Version 3\n\nTerms\n")
    return folder


def artifact(folder: Path, trained_on: Sequence[dict[str, Any]]) -> Path:
    folder.mkdir()
    about = {"feature_version": "test-1", "trained_at": "then", "data": trained_on}
    (folder / "model.json").write_text(json.dumps(about))
    return folder


def by_length(rows: Sequence[Outcome]) -> np.ndarray:
    return np.array([min(1.0, len(prompt_text(row)) / 300) for row in rows])


def constant(_train: Sequence[Outcome]) -> Scorer:
    return lambda rows: np.full(len(rows), 0.3)


def stored(folder: Path, trained_on: Sequence[dict[str, Any]] = ()) -> Stored:
    """Scores by length as stored, and always 0.3 by its recipe: what is told apart below."""
    return Stored("Complexity", artifact(folder, trained_on), "v1", by_length, constant)


def section(text: str, name: str) -> str:
    return text.split(f"### {name}\n", 1)[1].split("\n#", 1)[0]


def test_a_card_holds_baselines_model_calibration_latency_data_and_limits(data: Path, tmp_path: Path):
    out = tmp_path / "new" / "card.md"
    card.write_card(out, card.read_data(data), stored(tmp_path / "model"), licence="Some Licence", bootstraps=10)
    text = out.read_text()
    for name in ("one", "two"):
        for router in ("random", "prompt length", "task mean", "model", "groups unseen", "dataset unseen", "oracle"):
            assert router in section(text, name)
    for said in (
        "test-1",
        "then",
        "Brier",
        "p99 ms",
        "Some Licence",
        "always draft",
        "always refine",
        "2,000 characters",
    ):
        assert said in text
    assert {path.name for path in out.parent.iterdir()} == {"card.md", "card_pgr.svg", "card_calibration.svg"}
    assert all(f"]({path.name})" in text for path in out.parent.glob("*.svg"))


def test_a_threshold_says_what_is_refined_and_how_much_is_right_then(tmp_path: Path):
    right = [{"prompt": "w" * 15, "draft_right": True, "refine_right": True}] * 6
    wrong = [{"prompt": "w" * 75 + " x" * i, "draft_right": False, "refine_right": True} for i in range(6)]
    write(
        tmp_path / "a.jsonl",
        [*right, *({**one, "prompt": one["prompt"] + "y" * i} for i, one in enumerate(right)), *wrong],
    )
    out = tmp_path / "card.md"
    card.write_card(out, card.read_data(tmp_path / "a.jsonl"), stored(tmp_path / "model"), bootstraps=5)
    rows = [
        line.split(" | ")
        for line in out.read_text().splitlines()
        if line.startswith(("| 0.05 |", "| 0.2 |", "| 0.5 |"))
    ]
    assert [(row[1], row[2][:5], row[3][:5]) for row in rows] == [
        ("1.000", "1.000", "- |"),
        ("0.333", "1.000", "0.000"),
        ("0.000", "0.667", "0.333"),
    ]


def test_rows_without_the_refiners_side_are_left_out_and_counted(data: Path):
    found = card.read_data(data)
    assert [(len(each.rows), each.unlabelled) for each in found.values()] == [(108, 12), (81, 9)]


def test_no_text_and_no_group_of_the_data_is_written(data: Path, tmp_path: Path):
    out, acceptor = tmp_path / "card.md", stored(tmp_path / "acceptor")
    card.write_card(out, card.read_data(data), stored(tmp_path / "model"), acceptor, bootstraps=5)
    written = "".join(path.read_text() for path in (out, *tmp_path.glob("*.svg")))
    assert not [word for word in (*WORDS, "secret") if word in written]


def test_an_artifact_is_judged_by_itself_on_files_it_did_not_see_and_by_its_recipe_on_those_it_did(
    data: Path, tmp_path: Path
):
    found = card.read_data(data)
    entry = {"name": "named otherwise", "rows": 120, "sha256": found["one"].sha256}
    out = tmp_path / "card.md"
    card.write_card(out, found, stored(tmp_path / "model", [entry]), bootstraps=5)
    text = out.read_text()
    assert "It was trained on one." in text
    assert "| model, out of fold | 0.500 (0.500-0.500)" in section(text, "one")
    assert "| model |" in section(text, "two")
    assert "out of fold" not in section(text, "two")


def test_an_artifact_of_other_data_says_so(data: Path, tmp_path: Path):
    out = tmp_path / "card.md"
    card.write_card(out, card.read_data(data), stored(tmp_path / "model"), bootstraps=5)
    assert "none of the files measured here" in out.read_text()
    assert "out of fold" not in out.read_text()


def test_scores_out_of_fold_are_pooled_over_the_datasets_seen(data: Path, tmp_path: Path):
    found = {name: each.rows for name, each in card.read_data(data).items()}
    learned: list[int] = []

    def counting(train: Sequence[Outcome]) -> Scorer:
        learned.append(len(train))
        return by_length

    scores = card.honest_scores(stored(tmp_path / "model")._replace(recipe=counting), found, {"one", "two"})
    assert len(learned) == card.FOLDS
    assert sum(learned) == (card.FOLDS - 1) * (108 + 81)
    assert {name: of.tolist() for name, of in scores.items()} == {
        name: by_length(rows).tolist() for name, rows in found.items()
    }


def test_drafts_get_a_part_of_their_own(data: Path, tmp_path: Path):
    out = tmp_path / "card.md"
    card.write_card(out, card.read_data(data), stored(tmp_path / "m"), stored(tmp_path / "a"), bootstraps=5)
    drafts = sum(row.draft is not None for row in card.read_data(data)["one"].rows)
    assert f"### one: {drafts} drafts" in out.read_text()
    assert (tmp_path / "card_quality.svg").exists()


def test_the_same_numbers_draw_the_same_bytes(data: Path, tmp_path: Path):
    pictures = []
    for folder in ("a", "b"):
        out = tmp_path / folder / "card.md"
        card.write_card(out, card.read_data(data), stored(tmp_path / f"model {folder}"), bootstraps=5)
        pictures.append([path.read_bytes() for path in sorted(out.parent.glob("*.svg"))])
    assert pictures[0] == pictures[1]


def test_the_command_makes_a_card_of_a_stored_model(data: Path, tmp_path: Path):
    rows = card.read_data(data)["two"].rows
    sha = hashlib.sha256((data / "two.jsonl").read_bytes()).hexdigest()
    fit_complexity(rows).save(tmp_path / "model", {"data": [{"name": "two", "rows": len(rows), "sha256": sha}]})
    out = tmp_path / "card.md"
    asked = ["--data", data, "--complexity", tmp_path / "model", "--out", out, "--bootstraps", "5"]
    assert card.main([str(word) for word in asked]) == 0
    text = out.read_text()
    assert "It was trained on two." in text
    assert "Some Licence Version 3." in text


@pytest.mark.parametrize("broken", ["data", "model"])
def test_what_cant_be_used_is_refused_in_one_line(
    broken: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if broken == "data":
        write(data / "one.jsonl", [{"prompt": 3, "draft_right": "yes"}])
    asked = ["--data", str(data), "--complexity", str(tmp_path / "none"), "--out", str(tmp_path / "card.md")]
    assert card.main(asked) == 2
    assert capsys.readouterr().err.startswith("draftgate card: ")
    assert not (tmp_path / "card.md").exists()


def test_a_folder_gives_its_outcomes_and_names_what_it_left_out(data: Path, caplog: pytest.LogCaptureFixture):
    assert set(read_folder(data)) == {"one", "two"}
    assert "other" in caplog.text


@pytest.mark.parametrize("files", [{}, {"a": [{"prompt": "x"}]}, {"a": []}])
def test_a_folder_without_outcomes_is_refused(tmp_path: Path, files: dict[str, list]):
    for name, rows in files.items():
        write(tmp_path / f"{name}.jsonl", rows)
    with pytest.raises(OutcomesError, match="draft_right"):
        read_folder(tmp_path)


def test_a_bad_row_behind_a_good_one_is_refused_by_its_line(tmp_path: Path):
    write(tmp_path / "a.jsonl", [{"prompt": "x", "draft_right": True}, {"prompt": "x"}])
    with pytest.raises(OutcomesError, match=r"a\.jsonl, line 2: .*draft_right"):
        read_folder(tmp_path)


def test_what_cannot_be_measured_says_why_in_its_place(data: Path, tmp_path: Path):
    write(data / "hopeless.jsonl", [{**one, "draft_right": True, "refine_right": True} for one in lines(30, 2)])
    write(data / "tiny.jsonl", lines(3, 4))
    write(data / "bare.jsonl", [{"prompt": "amber", "draft_right": True}])
    found = card.read_data(data)
    seen = [{"sha256": found[name].sha256} for name in ("one", "tiny")]
    out = tmp_path / "card.md"
    card.write_card(out, found, stored(tmp_path / "m", seen), stored(tmp_path / "a", seen), bootstraps=5)
    text = out.read_text()
    assert "| model, out of fold |" in section(text, "one")
    assert "| model |" in section(text, "two")
    assert "not measurable: expected a refiner" in section(text, "hopeless")
    assert "not measurable: expected at least 5 rows" in section(text, "tiny")
    assert "| bare | 0 | 1 | - |" in text


def test_a_recipe_that_cannot_be_fitted_says_why_and_the_rest_is_measured(data: Path, tmp_path: Path):
    def refusing(_train: Sequence[Outcome]) -> Scorer:
        raise OutcomesError("expected more")

    out = tmp_path / "card.md"
    card.write_card(out, card.read_data(data), stored(tmp_path / "m")._replace(recipe=refusing), bootstraps=5)
    for name in ("one", "two"):
        assert "| recipe, dataset unseen | not measurable: expected more |" in section(out.read_text(), name)
        assert "| oracle |" in section(out.read_text(), name)


def test_the_acceptor_is_shown_drafts_as_the_gateway_has_them(monkeypatch: pytest.MonkeyPatch):
    seen: list[DraftEvidence] = []

    class Acceptor:
        def judge(self, draft: DraftEvidence) -> Verdict:
            seen.append(draft)
            return Verdict(quality=0.25, checks=())

    monkeypatch.setattr(card, "fit_acceptor", lambda rows: (Acceptor(), {}))
    score = RefinerScore(token_logprobs=(), token_ranks=(), agreeing_prefix=0)
    draft = DraftEvidence(messages=(), text="x", score=score, others=("y",))
    row = Outcome(messages=(), draft_right=True, draft=draft)
    assert card.acceptor_recipe([row])([row]).tolist() == [0.75]
    assert seen == [DraftEvidence(messages=(), text="x")]


def test_a_folder_of_licences_and_one_that_is_not_utf8_do_no_harm(data: Path):
    (data / "LICENSES").mkdir()
    (data / "LICENSE.old").write_bytes(b"Soci\xe9t\xe9\n")
    assert card._licence(data) == "Soci\ufffdt\ufffd; Some Licence Version 3"


@pytest.mark.parametrize(
    ("more", "said"), [(["--bootstraps", "0"], "at least 1 bootstrap"), (["--out", "/dev/null/card.md"], "/dev/null")]
)
def test_options_that_cannot_be_used_exit_with_2(
    more: list[str], said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fit_complexity(card.read_data(data)["two"].rows).save(tmp_path / "model", {})
    asked = ["--data", str(data), "--complexity", str(tmp_path / "model"), "--out", str(tmp_path / "card.md"), *more]
    assert card.main(asked) == 2
    assert said in capsys.readouterr().err
