"""`draftgate train`: what it stores, says and refuses."""

import json
import random

import pytest

from classifiers import train
from classifiers.complexity import Complexity
from classifiers.outcomes import Dataset, Outcome
from classifiers.quality import Acceptor


def lines(count, **without):
    """Sums need the refiner; bad drafts hedge. `without` names fields that rows lack."""
    rng, found = random.Random(3), []
    for i in range(count):
        hard, noise = rng.random() < 0.5, rng.random() < 0.1
        words = " ".join(rng.choices(("amber", "birch", "cedar", "delta", "ember", "frost", "grove", "heath"), k=5))
        row = {
            "prompt": f"{'What do I pay for' if hard else 'Tell me of'} {words} {'xy'[i % 2] * (i // 2)}",
            "draft_right": hard == noise,
            "refine_right": True,
            "draft": {"text": f"Perhaps {words}." if hard else f"The {words}."},
        }
        found.append({key: value for key, value in row.items() if key not in without})
    return found


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(file, out, *more):
    return train.main(["--data", str(file), "--out", str(out), *more])


@pytest.fixture
def trees(monkeypatch):
    monkeypatch.setattr("classifiers.train_quality.TREES", 40)


def test_both_artifacts_load_and_name_their_data(tmp_path, trees, capsys):
    assert run(write(tmp_path / "a.jsonl", lines(160)), tmp_path / "out", "--licence", "MIT") == 0
    Complexity.load(tmp_path / "out" / "complexity")
    Acceptor.load(tmp_path / "out" / "quality")
    about = json.loads((tmp_path / "out" / "complexity" / "model.json").read_text())
    assert [(one["name"], one["rows"], one["licence"]) for one in about["data"]] == [("a", 160, "MIT")]
    assert about["report"]["a"]["rows"] == 160
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["complexity", "quality"]


@pytest.mark.parametrize("kind", train.KINDS)
def test_only_one_is_trained_where_asked(tmp_path, trees, kind):
    assert run(write(tmp_path / "a.jsonl", lines(160)), tmp_path / "out", "--only", kind) == 0
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == [kind]


def test_quality_learns_from_rows_without_the_refiners_side_and_the_rest_are_counted(tmp_path, trees, capsys):
    file = write(tmp_path / "a.jsonl", lines(160, refine_right=True))
    assert run(file, tmp_path / "out") == 0
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["quality"]
    assert "complexity: 160 of 160 rows left out, without refine_right" in capsys.readouterr().err
    about = json.loads((tmp_path / "out" / "quality" / "model.json").read_text())
    assert about["data"][0]["rows"] == about["report"]["drafts"] == 160


def test_a_model_whose_report_cannot_be_measured_is_stored_and_says_why(tmp_path):
    rows = [{**row, "draft_right": i >= 5} for i, row in enumerate(lines(40, draft=True))]
    assert run(write(tmp_path / "a.jsonl", rows), tmp_path / "out") == 0
    Complexity.load(tmp_path / "out" / "complexity")
    report = json.loads((tmp_path / "out" / "complexity" / "model.json").read_text())["report"]
    assert "at least 5" in report["a"]["not_measured"]


def test_a_source_that_cannot_be_measured_does_not_keep_the_others_from_it():
    def of(source, right):
        for i, row in enumerate(lines(60)):
            messages = ({"role": "user", "content": row["prompt"]},)
            yield Outcome(messages=messages, draft_right=right(i), refine_right=True, source=source)

    found = train.complexity_report([*of("good", lambda i: i % 2 == 0), *of("poor", lambda i: i > 1)])
    assert found["good"]["rows"] == 60
    assert "at least 5 rows" in found["poor"]["not_measured"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected rows with refine_right or draft, got 0 without"),
        ('{"prompt": "x", "draft_right": 7}', "line 1"),
        ('{"prompt": "x", "draft_right": true}', "got 1 without"),
        ('{"prompt": "x", "draft_right": true, "refine_right": true}', "at least 5"),
    ],
)
def test_what_cannot_be_used_exits_with_2(tmp_path, capsys, text, said):
    (tmp_path / "a.jsonl").write_text(text)
    assert run(tmp_path / "a.jsonl", tmp_path / "out") == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_exits_with_2(tmp_path, capsys):
    file = write(tmp_path / "a.jsonl", lines(20))
    assert run(file, file / "out") == 2
    assert capsys.readouterr().err.startswith("draftgate train: ")


def test_an_artifact_names_only_files_that_it_learned_from():
    row = Outcome(messages=(), draft_right=True, refine_right=True)
    about = train.about_of("quality", {"a": Dataset([row], "", 0)}, "")
    assert about["data"] == []
