"""The acceptor: what it learns, what it does with what is missing, and what it refuses to load."""

import json
import random

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import load_file, save_file
from sklearn.ensemble import ExtraTreesClassifier

from classifiers.api import ArtifactError, DraftEvidence, RefinerScore
from classifiers.draft_features import SIZES, VERSION
from classifiers.evaluation import calibration
from classifiers.forest import Forest, Walker
from classifiers.outcomes import Outcome, OutcomesError
from classifiers.quality import Acceptor, GroupModel, log_odds
from classifiers.tasks import TYPES
from classifiers.train_quality import _exported, fit_acceptor, out_of_fold_quality

NOUNS = ("lamp", "desk", "rug", "vase", "clock", "chair", "mug", "bowl", "shelf", "stool")


def outcome(rng, denoiser=True, score=True):
    """Good drafts answer what was asked, calmly; of the bad ones half go astray in the text, and all are restless."""
    noun, good = rng.choice(NOUNS), rng.random() < 0.6
    strays = not good and rng.random() < 0.5
    text = "Perhaps, it might be unclear what it is about." if strays else f"The {noun} is made of oak."
    level = rng.uniform(0.0, 0.4) if good else rng.uniform(0.3, 0.9)
    known = {}
    if denoiser:
        known |= {
            "steps": (rng.randint(1, 6),),
            "converged": (True,),
            "token_entropy": tuple(level * rng.random() for _ in range(8)),
        }
    if score:
        lowest = -0.1 if good else -5.0
        known["score"] = RefinerScore(
            token_logprobs=(-0.01, lowest), token_ranks=(0, int(not good)), agreeing_prefix=1 + good
        )
    messages = ({"role": "user", "content": f"What is the {noun} made of, {rng.random()}?"},)
    return Outcome(messages=messages, draft_right=good, draft=DraftEvidence(messages=messages, text=text, **known))


@pytest.fixture(scope="module")
def outcomes():
    rng = random.Random(11)
    return [outcome(rng) for _ in range(400)]


@pytest.fixture(scope="module")
def trained(outcomes):
    return fit_acceptor(outcomes)


@pytest.fixture
def stored(trained, tmp_path):
    folder = tmp_path / "acceptor"
    trained[0].save(folder, {"trained_at": "today"})
    return folder


def bare(evidence):
    return DraftEvidence(messages=evidence.messages, text=evidence.text)


def test_each_set_of_groups_that_the_data_has_is_trained_and_more_evidence_judges_better(trained):
    report = trained[1]["groups"]
    assert set(report) == {"text", "text+score", "text+denoiser", "text+score+denoiser"}
    assert 0.65 < report["text"]["auroc"] < report["text+denoiser"]["auroc"] <= 1.0
    assert report["text+score"]["auroc"] > 0.99
    assert report["text"]["drafts"] == 400
    assert report["text"]["brier"] < report["text"]["brier_of_base_rate"]
    assert report["text"]["task_types"] == ["lookup"]


def test_the_best_model_for_what_is_there_judges(trained):
    acceptor = trained[0]
    assert acceptor.groups_used(["text", "score", "denoiser", "agreement"]) == ("text", "score", "denoiser")
    assert acceptor.groups_used(["text", "denoiser", "agreement"]) == ("text", "denoiser")
    assert acceptor.groups_used(["text", "agreement"]) == ("text",)
    assert acceptor.groups_used(["text"]) == ("text",)


def test_a_score_parts_drafts_that_look_the_same(trained):
    good = DraftEvidence(
        messages=({"role": "user", "content": "What is the rug made of?"},),
        text="The rug is made of oak.",
        score=RefinerScore(token_logprobs=(-0.01, -0.1), token_ranks=(0, 0), agreeing_prefix=2),
    )
    bad = replace(good, score=RefinerScore(token_logprobs=(-0.01, -5.0), token_ranks=(0, 1), agreeing_prefix=1))
    qualities = [trained[0].judge(draft).quality for draft in (bad, bare(good), good)]
    assert qualities[0] < 0.1 < qualities[1] < 0.95 < qualities[2]


def test_probabilities_hold_what_they_say():
    rng = random.Random(12)
    seen, fresh = ([outcome(rng, score=False) for _ in range(count)] for count in (500, 1500))
    acceptor = fit_acceptor(seen)[0]
    quality = np.array([acceptor.judge(each.draft).quality for each in fresh if each.draft])
    found = calibration(quality, [each.draft_right for each in fresh])
    assert found.ece < 0.04
    assert found.brier < found.brier_of_base_rate / 4


def test_a_decisive_check_that_fails_leaves_no_quality(trained, outcomes):
    draft = replace(next(each.draft for each in outcomes if each.draft_right), text="2 + 2 = 5")
    verdict = trained[0].judge(draft)
    assert verdict.quality == 0.0
    assert [check.verifier for check in verdict.failed] == ["arithmetic"]


def test_rejected_drafts_are_counted_and_judged_bad_but_not_learned_from(outcomes):
    texts = [replace(each, draft=bare(each.draft)) for each in outcomes]
    wrong_sums = [replace(each, draft=replace(each.draft, text="2 + 2 = 5")) for each in texts[:50]]
    with_them, report = fit_acceptor(texts + wrong_sums)
    assert report["rejected"] == 50
    assert report["rejected_though_good"] == sum(each.draft_right for each in wrong_sums)
    assert with_them.judge(texts[0].draft).quality == fit_acceptor(texts)[0].judge(texts[0].draft).quality


def test_training_is_the_same_every_time(outcomes, trained):
    again = fit_acceptor(outcomes)
    assert again[1] == trained[1]
    assert [again[0].judge(each.draft).quality for each in outcomes[:20]] == [
        trained[0].judge(each.draft).quality for each in outcomes[:20]
    ]


def test_the_best_candidate_is_chosen_and_the_first_of_equals(trained, outcomes):
    calm, restless = (next(each.draft for each in outcomes if each.draft_right is right) for right in (True, False))
    at, verdict = trained[0].choose([restless, calm, calm])
    assert (at, verdict.quality) == (1, trained[0].judge(calm).quality)
    failing = replace(calm, text="2 + 2 = 5")
    assert trained[0].choose([failing, failing])[0] == 0
    assert trained[0].choose([failing, restless])[0] == 1
    with pytest.raises(ValueError, match="expected at least one candidate, got none"):
        trained[0].choose([])


def test_candidates_are_told_of_each_other():
    told = []

    class Listening(Acceptor):
        def judge(self, evidence, task=None):
            told.append((evidence.text, evidence.others))
            return super().judge(evidence, task)

    messages = ({"role": "user", "content": "And?"},)
    drafts = [DraftEvidence(messages=messages, text=text) for text in ("a", "b", "a")]
    Listening({("text",): constant_model()}).choose([*drafts, replace(drafts[0], others=("z",))])
    assert told == [("a", ("b", "a", "a")), ("b", ("a", "a", "a")), ("a", ("a", "b", "a")), ("a", ("z",))]


def constant_model(share=0.5, calibration=(1.0, 0.0)):
    """One tree of one leaf."""
    zero = np.zeros(1, np.int32)
    forest = Forest(zero, np.zeros(1, np.float32), np.zeros((1, 2), np.int32), np.full(1, share, np.float32), zero)
    return GroupModel(forest, np.tile(np.array(calibration, np.float32), (len(TYPES), 1)))


def test_the_quality_is_the_calibrated_share_of_the_forest():
    model = constant_model(0.75, (2.0, -0.5))
    expected = 1 / (1 + np.exp(-(2.0 * np.log(1.25 / 0.75) - 0.5)))  # (0.75 + 1/2) / (0.25 + 1/2), one tree
    assert Acceptor({("text",): model}).judge(DraftEvidence(messages=(), text="Fine.")).quality == pytest.approx(
        expected
    )
    assert log_odds(0.0, 300) == pytest.approx(-log_odds(1.0, 300))
    assert np.isfinite(log_odds(0.0, 300))


def test_each_task_type_has_its_own_calibration():
    model = constant_model(0.5)
    model.calibration[TYPES.index("lookup")] = (1.0, 3.0)
    acceptor = Acceptor({("text",): model})
    features = {"text": np.zeros(SIZES["text"], np.float32)}
    assert acceptor.probability(features, "chat") == pytest.approx(0.5)
    assert acceptor.probability(features, "lookup") == pytest.approx(1 / (1 + np.exp(-3)))


def test_an_exported_forest_is_scikit_learns():
    rng = np.random.default_rng(5)
    x = np.round(rng.normal(size=(400, 6)), 1).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0) ^ (rng.random(400) < 0.1)
    trees = ExtraTreesClassifier(30, min_samples_leaf=3, bootstrap=True, random_state=0).fit(x, y)
    forest = _exported(trees).checked(6)
    assert [Walker(forest).mean(row) for row in x] == pytest.approx(trees.predict_proba(x)[:, 1], abs=1e-6)


def test_out_of_fold_qualities_are_those_of_models_that_did_not_see_the_row(outcomes):
    rng = random.Random(13)
    noise = [replace(each, draft=bare(each.draft), draft_right=rng.random() < 0.5) for each in outcomes]
    quality, good = out_of_fold_quality(noise), np.array([each.draft_right for each in noise])
    assert abs(quality[good].mean() - quality[~good].mean()) < 0.05  # nothing to learn, and nothing remembered
    honest = out_of_fold_quality(outcomes, folds=4)
    right = np.array([each.draft_right for each in outcomes])
    assert honest[right].min() > honest[~right].max()


def asked(prompt, good, text="It is made of oak.", score=None):
    messages = ({"role": "user", "content": prompt},)
    return Outcome(messages=messages, draft_right=good, draft=DraftEvidence(messages=messages, text=text, score=score))


def word(rng):
    return "".join(rng.choices("abcdefgh", k=rng.randint(2, 9)))


def test_what_was_learned_by_heart_from_repeated_prompts_is_not_reported():
    rng, repeated = random.Random(14), []
    for good in [True, False] * 30:
        prompt, text = (" ".join(word(rng) for _ in range(rng.randint(5, 30))) for _ in range(2))
        repeated += [asked(f"{prompt} {number}", good, text) for number in range(6)]
    report = fit_acceptor(repeated)[1]["groups"]["text"]
    assert abs(report["auroc"] - 0.5) < 0.15
    assert report["brier"] > 0.2


def test_fewer_prompts_than_folds_make_fewer_folds():
    rows = [asked(f"What is the {NOUNS[at % 4]} made of?", at % 4 < 2) for at in range(80)]
    assert fit_acceptor(rows)[1]["drafts"] == 80


def test_groups_that_few_prompts_have_are_not_trained():
    score = RefinerScore(token_logprobs=(-0.1,), token_ranks=(0,), agreeing_prefix=1)
    rows = [
        asked(f"What is the {NOUNS[at % 8]} made of?", at % 3 > 0, score=score if at % 8 < 4 else None)
        for at in range(400)
    ]
    assert set(fit_acceptor(rows)[1]["groups"]) == {"text"}  # 200 drafts of both kinds have a score, for 4 prompts


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"rug": (0, 30), "lamp": (30, 0), "desk": (30, 0)}, "at least 2 prompts each.* got 2 and 1"),
        # most good drafts have one prompt, and the folds that balance best put the other one beside it
        (
            {"rug": (20, 0), "lamp": (1, 1), "desk": (0, 9), "vase": (0, 10)},
            "beside each of 2 folds, got one kind beside 1",
        ),
    ],
)
def test_training_needs_prompts_of_both_kinds_to_learn_from_and_to_test_on(counts, expected):
    rows = [
        asked(f"What is the {noun} made of?", good)
        for noun, (right, wrong) in counts.items()
        for good in [True] * right + [False] * wrong
    ]
    with pytest.raises(OutcomesError, match=expected):
        fit_acceptor(rows)


def test_training_needs_drafts_of_both_kinds(outcomes):
    with pytest.raises(ValueError, match=r"expected at least 20 good and 20 bad drafts .* and 0"):
        fit_acceptor([each for each in outcomes if each.draft_right])
    with pytest.raises(ValueError, match="expected at least 20 good"):
        fit_acceptor([replace(each, draft=None) for each in outcomes])
    with pytest.raises(ValueError, match="expected a draft in every outcome, got 1 of 400 without"):
        out_of_fold_quality([replace(outcomes[0], draft=None), *outcomes[1:]])


def test_a_stored_acceptor_judges_as_before(trained, outcomes, stored):
    loaded = Acceptor.load(stored)
    assert loaded.version == f"{VERSION}:today"
    for each in outcomes[:20]:
        for draft in (each.draft, bare(each.draft)):
            assert loaded.judge(draft) == trained[0].judge(draft)


def test_an_artifact_holds_no_text_of_its_data(stored, outcomes):
    held = b"".join(path.read_bytes() for path in stored.iterdir())
    assert not any(noun.encode() in held for noun in NOUNS)


@pytest.mark.parametrize("change", [{"kind": "draftgate-complexity"}, {"feature_version": "draft-1"}])
def test_an_artifact_of_another_kind_or_feature_version_is_refused(stored, change):
    about = json.loads((stored / "model.json").read_text())
    (stored / "model.json").write_text(json.dumps(about | change))
    with pytest.raises(
        ArtifactError, match=f"expected {next(iter(change))} .*acceptor, got '{next(iter(change.values()))}'"
    ):
        Acceptor.load(stored)


def resized(tensors):
    tensors["text.threshold"] = tensors["text.threshold"][:-1]


def without_text(tensors):
    for name in [name for name in tensors if name.startswith("text.")]:
        del tensors[name]


def without_a_part(tensors):
    del tensors["text+score.roots"]


def unknown_group(tensors):
    tensors["text+mood.roots"] = tensors["text.roots"]


def endless(tensors):
    tensors["text.children"] = np.zeros_like(tensors["text.children"])


def too_many_features(tensors):
    tensors["text.feature"] = tensors["text.feature"] + np.int32(SIZES["text"])


def beyond_the_end(tensors):
    tensors["text.roots"] = tensors["text.roots"] + np.int32(len(tensors["text.feature"]))


def another_type(tensors):
    tensors["text.feature"] = tensors["text.feature"].astype(np.float32)


def fewer_task_types(tensors):
    tensors["text.calibration"] = tensors["text.calibration"][:-1]


@pytest.mark.parametrize(
    "damage",
    [
        resized, without_text, without_a_part, unknown_group, endless, too_many_features, beyond_the_end, another_type, fewer_task_types,
    ],
)  # fmt: skip
def test_an_artifact_that_does_not_fit_is_refused_by_the_name_of_its_folder(stored, damage):
    tensors = load_file(stored / "weights.safetensors")
    damage(tensors)
    save_file(tensors, stored / "weights.safetensors")
    with pytest.raises(ArtifactError, match=r"acceptor.*expected|expected.*acceptor"):
        Acceptor.load(stored)


@pytest.mark.parametrize("damage", ["missing", "not json", "cut weights"])
def test_a_damaged_artifact_is_refused(stored, damage):
    if damage == "missing":
        (stored / "model.json").unlink()
    elif damage == "not json":
        (stored / "model.json").write_text("{")
    else:
        (stored / "weights.safetensors").write_bytes((stored / "weights.safetensors").read_bytes()[:50])
    with pytest.raises(ArtifactError, match="acceptor"):
        Acceptor.load(stored)


def test_a_verdict_can_be_sent(trained, outcomes):
    verdict = trained[0].judge(outcomes[0].draft)
    assert 0 <= verdict.quality <= 1
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=type(verdict)) == verdict
