"""The complexity model: what it learns, how it is stored, and what it must not be taken in by."""

import random

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from classifiers import artifact
from classifiers.api import ArtifactError
from classifiers.complexity import Complexity
from classifiers.conversation import features
from classifiers.ngrams import COLUMNS
from classifiers.outcomes import Outcome, OutcomesError
from classifiers.train_complexity import fit_complexity

THINGS = ("lamp", "mug", "blanket", "vase", "candle", "basket")


def asked(text: str, right: bool, refine_right: bool | None = True, source: str = "") -> Outcome:
    return Outcome(
        messages=({"role": "user", "content": text},), draft_right=right, refine_right=refine_right, source=source
    )


def outcome(rng: random.Random) -> Outcome:
    """Sums need the refiner, prices don't."""
    thing, other = rng.sample(THINGS, 2)
    if rng.random() < 0.4:
        return asked(
            f"What do I pay for {rng.randrange(2, 9)} of the {thing} and {rng.randrange(2, 9)} of the {other}?", False
        )
    return asked(f"Can you tell me the price of the {thing} please?", True)


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    rng = random.Random(4)
    return [outcome(rng) for _ in range(300)]


@pytest.fixture(scope="module")
def model(outcomes) -> Complexity:
    return fit_complexity(outcomes)


def said(*turns: str) -> tuple[dict[str, str], ...]:
    return tuple({"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns))


HARD, EASY = "What do I pay for 3 of the vase and 12 of the lamp?", "Can you tell me the price of the lamp please?"


def test_it_tells_what_needed_the_refiner_in_training(model):
    assert model.score(said(HARD)) > 0.8 > 0.2 > model.score(said(EASY))


def test_its_score_is_a_calibrated_share(outcomes, model):
    scores = np.array([model.score(one.messages) for one in outcomes])
    assert scores.mean() == pytest.approx(np.mean([one.needed for one in outcomes]), abs=0.05)


def test_yes_do_it_is_as_hard_as_what_it_agrees_to(model):
    follow_up = said(HARD, "Shall I work that out, vase by vase and lamp by lamp?", "yes, do it")
    assert model.score(follow_up) > 0.5
    assert model.score(said(EASY, "Shall I look up the price of the lamp?", "yes, do it")) < 0.5


def test_a_hard_question_behind_an_easy_one_is_hard_and_the_other_way_round(model):
    assert model.score(said(EASY, "$45.", HARD)) > 0.8
    assert model.score(said(HARD, "$585.", EASY)) < 0.2


def test_pasted_agent_instructions_are_not_difficulty(model):
    pasted = "<system-reminder>What do I pay for 7 of the mug and 8 of the vase?</system-reminder>\n"
    rules = "You are a clerk.\nAlways work out what I pay for 3 of the mug and 4 of the vase.\n\n"
    for text in (EASY, HARD):
        assert model.score(said(pasted + text)) == pytest.approx(model.score(said(text)), abs=0.05)
        assert model.score(said(rules + text)) == pytest.approx(model.score(said(text)), abs=0.05)


def test_training_twice_gives_the_same_model(outcomes, model):
    again = fit_complexity(outcomes)
    assert all(np.array_equal(one, other) for one, other in zip(model.weights, again.weights, strict=True))


def test_what_separates_sources_is_not_learned_as_difficulty():
    rng = random.Random(1)
    rows = [
        asked(
            f"{'Solve' if hard else 'Look up'} {'alpha' if one else 'beta'} {rng.choice(THINGS)} {rng.random()}",
            not hard,
            True,
            source,
        )
        for _ in range(150)
        for one, source, share in ((True, "alpha", 0.8), (False, "beta", 0.2))
        for hard in (rng.random() < share,)
    ]
    model = fit_complexity(rows)
    hard, other = model.score(said("Solve beta lamp")), model.score(said("Look up alpha lamp"))
    assert hard > other


@pytest.mark.parametrize("kept", [True, False])
def test_training_needs_outcomes_of_both_kinds(outcomes, kept):
    with pytest.raises(OutcomesError, match="at least 5"):
        fit_complexity([one for one in outcomes if one.needed == kept])


def test_training_needs_the_refiners_side(outcomes):
    with pytest.raises(OutcomesError, match="refine_right in every outcome, got 1 of 301"):
        fit_complexity([*outcomes, asked("and this?", False, None)])


def test_a_stored_model_scores_as_before(model, tmp_path):
    model.save(tmp_path, {"trained_at": "today"})
    loaded = Complexity.load(tmp_path)
    assert loaded.version == "conversation-2:today"
    assert loaded.score(said(HARD)) == model.score(said(HARD))


def test_the_score_is_the_formula_of_the_docstring(model):
    found = features(said(HARD))
    w = model.weights
    hashed = np.zeros(COLUMNS)
    np.add.at(hashed, found.columns, found.values)
    z = np.clip((found.counts - w.mean) / w.scale, -4, 4)
    bumps = np.exp(-w.sharpness[0] * ((z - w.centres) ** 2).sum(axis=1))
    s = hashed @ w.hashed + bumps @ w.bumps + w.bias[0]
    assert model.raw(found) == pytest.approx(float(s), abs=1e-4)
    slope, offset = w.calibration
    assert model.score(said(HARD)) == pytest.approx(1 / (1 + np.exp(-(slope * s + offset))), abs=1e-4)


def test_an_artifact_holds_numbers_and_no_text_of_the_data(model, tmp_path):
    model.save(tmp_path, {"trained_at": "today"})
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir()).lower()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "weights.safetensors"]
    assert all(thing.encode() not in stored for thing in THINGS)
    assert {tensor.dtype for tensor in load_file(tmp_path / "weights.safetensors").values()} == {np.dtype("float32")}


def changed(folder, **fields):
    about = msgspec.json.decode((folder / "model.json").read_bytes()) | fields
    (folder / "model.json").write_bytes(msgspec.json.encode(about))


def test_an_artifact_of_another_feature_version_is_refused(model, tmp_path):
    model.save(tmp_path, {})
    changed(tmp_path, feature_version="conversation-1")
    with pytest.raises(ArtifactError, match=r"expected feature_version 'conversation-2'.*got 'conversation-1'"):
        Complexity.load(tmp_path)


def test_an_artifact_of_another_kind_is_refused(model, tmp_path):
    model.save(tmp_path, {})
    changed(tmp_path, kind="draftgate-acceptor")
    with pytest.raises(ArtifactError, match="expected kind 'draftgate-complexity'"):
        Complexity.load(tmp_path)


@pytest.mark.parametrize(("name", "shape"), [("hashed", (7,)), ("centres", (3, 3)), ("bias", (2,)), ("more", (1,))])
def test_an_artifact_of_another_shape_is_refused_by_the_name_of_the_tensor(model, tmp_path, name, shape):
    model.save(tmp_path, {})
    save_file(model.weights._asdict() | {name: np.zeros(shape, np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(ArtifactError, match=name):
        Complexity.load(tmp_path)


def test_an_artifact_whose_scales_divide_by_zero_is_refused(model, tmp_path):
    model.save(tmp_path, {})
    save_file(model.weights._asdict() | {"scale": np.zeros_like(model.weights.scale)}, tmp_path / "weights.safetensors")
    with pytest.raises(ArtifactError, match="positive scales"):
        Complexity.load(tmp_path)


def test_training_needs_different_prompts():
    with pytest.raises(OutcomesError, match="5 different prompts, got 2"):
        fit_complexity([asked("What is 3 + 4?", False), asked("Is the lamp here?", True)] * 20)


def test_repeated_prompts_do_not_flatter_the_calibration():
    rng = random.Random(3)
    prompts = [f"{rng.choice(THINGS)} {' '.join(rng.choices('abcdefghijklmnop', k=6))}" for _ in range(60)]
    rows = [asked(prompt, right) for prompt in prompts for right in (rng.random() < 0.5,) for _ in range(6)]
    model = fit_complexity(rows)
    scores = np.array(
        [model.score(said(f"{rng.choice(THINGS)} {' '.join(rng.choices('qrstuvw', k=6))}")) for _ in range(60)]
    )
    assert ((scores > 0.2) & (scores < 0.8)).all()


@pytest.mark.parametrize("damage", ["missing", "not json", "cut weights"])
def test_a_damaged_artifact_is_refused_by_the_name_of_its_folder(tmp_path, damage):
    folder = tmp_path / "complexity"
    artifact.save(folder, "draftgate-complexity", "conversation-2", {"bias": np.zeros(1, np.float32)}, {})
    if damage == "missing":
        (folder / "model.json").unlink()
    elif damage == "not json":
        (folder / "model.json").write_text("{")
    else:
        weights = (folder / "weights.safetensors").read_bytes()
        (folder / "weights.safetensors").write_bytes(weights[:50])
    with pytest.raises(ArtifactError, match="complexity"):
        Complexity.load(folder)
