"""`draftgate calibrate`: what it reads, prints and returns."""

import json
import re
import sys
from types import SimpleNamespace

import pytest

from classifiers import calibrate
from classifiers.api import ArtifactError, Verdict


def judged(n, good=True):
    return "\n".join(json.dumps({"quality": (i + 1) / n, "good": good}) for i in range(n))


def outcome(text, right, **more):
    turn = {"role": "user", "content": "how much?"}
    return json.dumps({"messages": [turn], "draft_right": right, "draft": {"text": text}, **more})


@pytest.fixture
def labels(tmp_path):
    def write(text):
        file = tmp_path / "labels.jsonl"
        file.write_text(text)
        return str(file)

    return write


@pytest.fixture
def acceptor(monkeypatch):
    """Judges a draft by its text, which is its quality."""

    class Spoken:
        folder = None

        @classmethod
        def load(cls, folder):
            if folder.name == "missing":
                raise ArtifactError("expected a classifier in missing")
            cls.folder = folder.name
            return cls()

        def judge(self, evidence):
            return Verdict(quality=float(evidence.text), checks=())

    monkeypatch.setitem(sys.modules, "classifiers.quality", SimpleNamespace(Acceptor=Spoken))
    return Spoken


def test_good_labels_support_a_threshold(labels, tmp_path, capsys):
    out = tmp_path / "found.json"
    assert calibrate.main(["--data", labels(judged(400)), "--target", "0.02", "--out", str(out)]) == 0
    printed, told = capsys.readouterr()
    found = json.loads(printed)
    assert found == json.loads(out.read_text())
    assert found["threshold"] < 0.1
    assert (found["target"], found["confidence"], found["labels"]) == (0.02, 0.95, 400)
    assert told.strip() == found["reason"]


def test_labels_that_support_nothing_exit_with_3(labels, capsys):
    assert calibrate.main(["--data", labels(judged(400, good=False)), "--target", "0.02"]) == 3
    printed, told = capsys.readouterr()
    assert json.loads(printed)["threshold"] is None
    assert "more labels won't help" in told


def test_confidence_is_passed_on(labels, capsys):
    arguments = ["--data", labels(judged(140)), "--target", "0.02"]
    assert calibrate.main(arguments) == 3
    assert calibrate.main([*arguments, "--confidence", "0.5"]) == 0


def test_outcomes_are_judged_by_the_acceptor(labels, acceptor, capsys):
    lines = [outcome("0.9", True)] * 300 + [outcome("0.2", False)] * 300
    arguments = ["--data", labels("\n".join(lines)), "--acceptor", "there", "--target", "0.05"]
    assert calibrate.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["threshold"] == 0.9
    assert acceptor.folder == "there"


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("", [], "expected labels, got none"),
        ("{", [], "labels.jsonl, line 1"),
        ('{"quality": 0.9, "good": true}\n{"quality": 93, "good": true}', [], "line 2.*quality"),
        ('{"quality": 0.9, "good": true}\n{"quality": 0.9}', [], "line 2.*good"),
        (outcome("0.9", True), [], "--acceptor"),
        (outcome("0.9", True), ["--acceptor", "missing"], "expected a classifier"),
        ('{"prompt": "how much?", "draft_right": true}', ["--acceptor", "there"], "outcome 1: expected a draft"),
        (judged(10), ["--target", "7"], "target above 0"),
        (judged(10), ["--out", "/nowhere/at/all.json"], "No such file"),
    ],
)
def test_what_cannot_be_used_exits_with_2(labels, acceptor, capsys, text, more, words):
    assert calibrate.main(["--data", labels(text), "--target", "0.02", *more]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert told.err.startswith("draftgate calibrate: ")
    assert re.search(words, told.err)


def test_missing_file_exits_with_2(capsys):
    assert calibrate.main(["--data", "nowhere.jsonl", "--target", "0.02"]) == 2
    assert "nowhere.jsonl: can't be read" in capsys.readouterr().err


def test_help_documents_the_lines(capsys):
    with pytest.raises(SystemExit, match="0"):
        calibrate.main(["--help"])
    assert '"quality": 0.93, "good": true' in capsys.readouterr().out


def test_drafts_refined_in_the_shadow_are_labelled_by_comparison(labels, acceptor, capsys):
    def shadowed(text, refined):
        return json.dumps(
            {"messages": [{"role": "user", "content": "how much?"}], "draft": {"text": text}, "refined": refined}
        )

    rows = (
        [shadowed("0.9", "0.9")] * 200 + [shadowed("0.1", "0.4")] * 50 + [shadowed("0.5", "Better ask a person.")] * 3
    )
    calibrate.main(["--data", labels("\n".join(rows)), "--acceptor", "here", "--target", "0.1"])
    printed, told = capsys.readouterr()
    found = json.loads(printed)
    assert found["labels"] == 250
    assert 0.1 < found["threshold"] <= 0.9
    assert "3 of 253 drafts can't be compared" in told


def test_a_shadowed_draft_that_is_none_is_named(labels, acceptor, capsys):
    row = json.dumps({"messages": [], "draft": {"text": 7}, "refined": "x"})
    assert calibrate.main(["--data", labels(row), "--acceptor", "here", "--target", "0.1"]) == 2
    assert "line 1" in capsys.readouterr().err


def test_a_shadowed_draft_may_name_its_request_a_prompt(labels, acceptor, capsys):
    row = json.dumps({"prompt": "how much?", "draft": {"text": "0.9"}, "refined": "0.9"})
    assert calibrate.main(["--data", labels("\n".join([row] * 200)), "--acceptor", "here", "--target", "0.1"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == 200


def test_drafts_are_judged_by_what_the_gateway_knows(labels, acceptor, monkeypatch):
    seen = []
    monkeypatch.setattr(acceptor, "judge", lambda _, draft: seen.append(draft) or Verdict(quality=0.9, checks=()))
    score = {"token_logprobs": [-0.1], "token_ranks": [0], "agreeing_prefix": 1}
    draft = {"text": "0.9", "steps": [3], "score": score, "others": ["0.8"]}
    calibrate.main(["--data", labels(outcome("", True, draft=draft)), "--acceptor", "here", "--target", "0.1"])
    assert [(one.steps, one.score, one.others) for one in seen] == [((3,), None, ())]


def test_numbers_beyond_a_float_are_compared(labels, acceptor):
    turn = {"role": "user", "content": "how much?"}
    row = json.dumps({"messages": [turn], "draft": {"text": "0.9"}, "refined": "9" * 400})
    assert calibrate.main(["--data", labels(row), "--acceptor", "here", "--target", "0.1"]) == 3
