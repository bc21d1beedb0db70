"""Stored classifiers: what they need to be loaded, and what their scores mean."""

import json
import random
from typing import Literal

import msgspec
import numpy as np
import pytest

from classifiers import artifact
from classifiers.api import ArtifactError, DraftEvidence
from classifiers.complexity import LinearComplexity
from classifiers.features import (
    CONVERSATION_VERSION,
    COUNTS,
    DRAFT_FEATURES,
    DRAFT_VERSION,
    HASHED,
    conversation_features,
    draft_features,
)
from classifiers.quality import LogisticQuality
from classifiers.train import Outcome, read_outcomes, train_complexity, train_quality


def evidence(
    entropy=(0.01,) * 6, steps=(4,), text="The lamp costs $45.", finish_reason: Literal["stop", "length"] = "stop"
):
    return DraftEvidence(
        messages=(), text=text, finish_reason=finish_reason, steps=steps, converged=(steps[0] < 20,),
        token_entropy=entropy, token_logprobs=tuple(-e for e in entropy), late_flips=0,
    )  # fmt: skip


def outcome(rng):
    """Drafts of sums are wrong and restless, all others right and calm."""
    is_sum = rng.random() < 0.4
    words = (
        f"add up {rng.randrange(99)} and {rng.randrange(99)}"
        if is_sum
        else f"what colour has item {rng.randrange(99)}?"
    )
    level = rng.uniform(0.2, 0.9) if is_sum else rng.uniform(0.0, 0.3)
    draft = evidence(entropy=tuple(level * rng.random() for _ in range(8)), steps=(rng.randint(2, 9) + 6 * is_sum,))
    fields = {
        name: value for name, value in msgspec.json.decode(msgspec.json.encode(draft)).items() if name != "messages"
    }
    return Outcome(
        messages=({"role": "user", "content": words},), draft=fields, draft_right=not is_sum, refine_right=True
    )


@pytest.fixture(scope="module")
def outcomes():
    rng = random.Random(4)
    return [outcome(rng) for _ in range(300)]


CONVERSATION_FEATURES = HASHED + len(COUNTS)


def stored(folder, version=CONVERSATION_VERSION, features=CONVERSATION_FEATURES):
    ones = np.ones(features, dtype=np.float32)
    artifact.save(
        folder,
        version,
        artifact.Linear(ones, np.array([0.5], dtype=np.float32), ones * 0, ones),
        {"trained_at": "today"},
    )
    return folder


def test_complexity_tells_what_was_hard_in_training(outcomes, tmp_path):
    linear, report = train_complexity(outcomes)
    artifact.save(tmp_path, CONVERSATION_VERSION, linear, report)
    model = LinearComplexity.load(tmp_path)
    hard = model.score(({"role": "user", "content": "please add up 12 and 71"},))
    easy = model.score(({"role": "user", "content": "what colour has item 12?"},))
    assert hard > 0.8 > 0.2 > easy
    assert report["auroc_cross_validated"] > 0.95


def test_quality_tells_calm_drafts_from_restless_ones(outcomes, tmp_path):
    linear, report = train_quality(outcomes)
    artifact.save(tmp_path, DRAFT_VERSION, linear, report)
    model = LogisticQuality.load(tmp_path)
    assert model.judge(evidence()).quality > 0.8
    assert model.judge(evidence(entropy=(0.8,) * 8, steps=(14,))).quality < 0.2


def test_a_draft_that_fails_a_verifier_has_no_quality_left(tmp_path):
    model = LogisticQuality.load(stored(tmp_path, DRAFT_VERSION, len(DRAFT_FEATURES)))
    verdict = model.judge(evidence(text="2 + 2 = 5"))
    assert verdict.quality == 0.0
    assert [check.verifier for check in verdict.failed] == ["arithmetic"]


def test_training_needs_outcomes_of_both_kinds(outcomes):
    with pytest.raises(ValueError, match="of each kind"):
        train_complexity([o for o in outcomes if o.draft_right])


def test_stored_weights_give_the_score_of_the_unfolded_formula(outcomes, tmp_path):
    linear, _ = train_quality(outcomes)
    artifact.save(tmp_path, DRAFT_VERSION, linear, {})
    x = draft_features(evidence())
    logit = float(linear.weights @ ((x - linear.mean) / linear.scale) + linear.bias[0])
    assert LogisticQuality.load(tmp_path).judge(evidence()).quality == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)


def test_an_artifact_of_another_feature_version_is_refused(tmp_path):
    folder = stored(tmp_path, version="conversation-0")
    with pytest.raises(ArtifactError, match=r"expected feature_version 'conversation-1'.*got 'conversation-0'"):
        LinearComplexity.load(folder)


def test_an_artifact_of_another_size_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="features"):
        LinearComplexity.load(stored(tmp_path, features=7))


@pytest.mark.parametrize("damage", ["missing", "not json", "cut weights"])
def test_a_damaged_artifact_is_refused_by_the_name_of_its_folder(tmp_path, damage):
    folder = stored(tmp_path / "complexity")
    if damage == "missing":
        (folder / "model.json").unlink()
    elif damage == "not json":
        (folder / "model.json").write_text("{")
    else:
        weights = (folder / "weights.safetensors").read_bytes()
        (folder / "weights.safetensors").write_bytes(weights[:50])
    with pytest.raises(ArtifactError, match="complexity"):
        LinearComplexity.load(folder)


def test_conversations_differ_by_their_last_turn_and_the_turn_before():
    turns = [{"role": "user", "content": "how much is the lamp?"}, {"role": "assistant", "content": "$45"}]

    def dense(messages):
        columns, values = conversation_features(messages)
        vector = np.zeros(HASHED + len(COUNTS))
        np.add.at(vector, columns, values)
        return vector

    follow_up = [*turns, {"role": "user", "content": "and the mug?"}]
    alone = follow_up[-1:]
    with_system = [{"role": "system", "content": "You are an agent. " * 50}, *follow_up]
    assert not np.allclose(dense(follow_up), dense(alone))
    assert np.allclose(dense(follow_up), dense(with_system))
    in_parts = [*turns, {"role": "user", "content": [{"type": "text", "text": "and the mug?"}]}]
    assert np.allclose(dense(follow_up), dense(in_parts))


def test_an_empty_draft_and_an_empty_conversation_have_finite_features():
    empty = DraftEvidence(
        messages=(),
        text="",
        finish_reason="length",
        steps=(),
        converged=(),
        token_entropy=(),
        token_logprobs=(),
        late_flips=0,
    )
    assert np.isfinite(draft_features(empty)).all()
    assert np.isfinite(conversation_features([])[1]).all()


def test_outcomes_are_read_and_a_wrong_field_is_named(tmp_path, outcomes):
    path = tmp_path / "outcomes.jsonl"
    path.write_bytes(b"\n".join(msgspec.json.encode(o) for o in outcomes[:3]) + b"\n")
    assert read_outcomes(path) == outcomes[:3]
    row = json.loads(msgspec.json.encode(outcomes[0])) | {"draft_right": "yes"}
    path.write_text(json.dumps(row))
    with pytest.raises(msgspec.ValidationError, match="draft_right"):
        read_outcomes(path)
