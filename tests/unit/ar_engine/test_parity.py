"""The engine against transformers, in float32: the same tokens as its greedy `generate`, the same log-probabilities as its forward."""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from ar_engine import attention
from ar_engine.api import DraftScore, RefineRequest
from ar_engine.attention import WrongModel, layers_of
from ar_engine.prompts import Prompts
from demo_models import store, tasks
from tests.tiny_causal import NAMES, WINDOW, tiny_model
from tests.unit.ar_engine.engines import (
    Pair,
    answer,
    draft_of,
    essence,
    make_core,
    pair,
    put,
    request,
    run,
    score_request,
)

MOST = 10
LENGTHS = (1, 7, 16, 17, 33, 48, 56, 90)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in NAMES},
    "gemma4, window longer than the text": ("gemma4", {"sliding_window": 400}),
    "gemma4, window of less than a page": ("gemma4", {"sliding_window": 5}),
}
ATOL = 1e-4  # of log-probabilities in float32, whose sums are taken in another order


class Known(NamedTuple):
    """A model, prompts, and what transformers answers to each."""

    models: Pair
    prompts: list[list[int]]
    answers: list[list[int]]


@pytest.fixture(scope="module", params=MODELS)
def known(request: pytest.FixtureRequest) -> Known:
    name, changes = MODELS[request.param]
    models, rng = pair(name, **changes), random.Random(11)
    prompts = [[rng.randrange(9, 250) for _ in range(length)] for length in LENGTHS]
    return Known(models, prompts, [models.generate(prompt, MOST) for prompt in prompts])


def drafts_of(right: list[int], vocab: int, rng: random.Random, most: int) -> dict[str, tuple[list[int], int | None]]:
    """Of every kind one, and how much of it is kept where that is known."""
    at = rng.randrange(len(right)) if right else 0
    wrong = [*right[:at], (right[at] + 1) % vocab, *right[at + 1 :]] if right else [9]
    return {
        "right": (right, len(right)),
        "wrong at a token": (wrong, at),
        "truncated": (right[:at], at),
        "empty": ([], 0),
        "longer than the answer may be": ((right or [9]) * (2 * most // max(1, len(right)) + 1), None),
        "about something else": ([rng.randrange(9, vocab) for _ in range(30)], None),
    }


KINDS = tuple(drafts_of([9], 10, random.Random(0), 1))


@pytest.mark.parametrize("encode_tokens", [1, 7, 512])
def test_the_answer_is_that_of_generate_whatever_the_draft_and_the_size_of_chunks(known: Known, encode_tokens: int):
    rng, core = random.Random(encode_tokens), known.models.core(encode_tokens=encode_tokens, max_running=8)
    numbers = (
        (0, 1, 3, 4, 1, 3) if encode_tokens == 1 else range(8)
    )  # token by token takes long; 33 is beyond the window
    expected = []
    for i, number in enumerate(numbers):
        kind, right = KINDS[i % len(KINDS)], known.answers[number]
        draft, kept = drafts_of(right, 256, rng, MOST)[kind]
        inbox = put(core, request(known.prompts[number], draft, mode="exact", max_tokens=MOST))
        expected.append((kind, inbox, right, kept))
    run(core)
    for kind, inbox, right, kept in expected:
        assert list(inbox.result.token_ids) == right, kind
        assert kept is None or inbox.result.kept_tokens == kept, kind


def test_without_a_draft_eight_prompts_together_get_what_generate_gives_each_alone(known: Known):
    core = known.models.core(encode_tokens=40, max_running=5)
    inboxes = [put(core, request(prompt, max_tokens=MOST)) for prompt in known.prompts]
    run(core)
    for inbox, prompt, expected in zip(inboxes, known.prompts, known.answers, strict=True):
        result = inbox.result
        assert list(result.token_ids) == expected
        assert (result.prompt_tokens, result.kept_tokens, result.tried_tokens) == (len(prompt), 0, 0)
        ended = result.finish_reason == "stop"
        assert (len(expected) < MOST) == ended
        assert result.completion_tokens == len(expected) + ended


def test_a_right_draft_takes_a_forward_for_each_chunk_and_no_more(known: Known):
    prompt, right = next((p, a) for p, a in zip(known.prompts, known.answers, strict=True) if len(p) > WINDOW and a)
    core = known.models.core(encode_tokens=512)
    result = answer(core, prompt, right, max_tokens=MOST)
    assert (list(result.token_ids), result.kept_tokens, result.forwards) == (right, len(right), 1)
    chunked = answer(known.models.core(encode_tokens=16), prompt, right, max_tokens=MOST, prefix_key=None)
    assert chunked.forwards == -(-len(prompt) // 16)


def test_mode_fresh_does_not_look_at_the_draft(known: Known):
    result = answer(known.models.core(), known.prompts[1], known.answers[1], mode="fresh", max_tokens=MOST)
    assert (list(result.token_ids), result.kept_tokens, result.tried_tokens) == (known.answers[1], 0, 0)


def logprobs_of(models: Pair, prompt: list[int], ids: list[int]) -> tuple[Tensor, Tensor]:
    """What a plain forward of the unmodified model says of each of these tokens behind a prompt, and all it says there."""
    with torch.no_grad():
        logits = models.theirs(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.log_softmax(-1)
    return logprobs[torch.arange(len(ids)), torch.tensor(ids, dtype=torch.int64)], logprobs


def check_score(models: Pair, prompt: list[int], ids: list[int], score: DraftScore) -> None:
    expected, logprobs = logprobs_of(models, prompt, ids)
    assert score.token_ids == tuple(ids)
    torch.testing.assert_close(torch.tensor(score.token_logprobs), expected, atol=ATOL, rtol=0)
    surely, perhaps = ((logprobs > expected[:, None] + by).sum(-1).tolist() for by in (ATOL, -ATOL))  # of equals either
    assert all(low <= rank < high for low, rank, high in zip(surely, score.token_ranks, perhaps, strict=True))
    assert list(score.greedy_tokens) == logprobs.argmax(-1).tolist()
    agrees = [a == b for a, b in zip(ids, score.greedy_tokens, strict=True)]
    assert score.agreeing_prefix == (agrees.index(False) if False in agrees else len(ids))


def test_scores_are_those_of_a_plain_forward_many_at_once_in_chunks_and_behind_shared_prefixes(known: Known):
    rng, core = random.Random(3), known.models.core(encode_tokens=30, max_running=4)
    long, right = known.prompts[-1], known.answers[-1]
    others = [[rng.randrange(9, 250) for _ in range(count)] for count in (1, 2, 40)]
    asked = [(long, right), *((long, other) for other in others), (known.prompts[0], [*right, 9]), (long[:20], [7])]
    inboxes = [put(core, score_request(*one)) for one in asked]
    again = put(core, score_request(*asked[2]))
    run(core)
    for (prompt, ids), inbox in zip([*asked, asked[2]], [*inboxes, again], strict=True):
        check_score(known.models, prompt, ids, inbox.score)
    assert inboxes[0].score.agreeing_prefix == len(right)


def test_log_probabilities_are_those_of_a_plain_forward_with_and_without_a_draft(known: Known):
    prompt, right = known.prompts[4], known.answers[4]
    expected, logprobs = logprobs_of(known.models, prompt, right)
    top = logprobs.topk(3)
    wrong = [*right[: len(right) // 2], 9, *right[len(right) // 2 + 1 :]]
    for draft in (None, right, wrong):
        result = answer(known.models.core(), prompt, draft, max_tokens=MOST, logprobs=3)
        assert [one.token for one in result.logprobs] == [f"{token} " for token in right]
        found = torch.tensor([one.logprob for one in result.logprobs])
        torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)
        for one, ids, values in zip(result.logprobs, top.indices.tolist(), top.values.tolist(), strict=True):
            assert [token for token, _ in one.top] == [f"{token} " for token in ids]
            assert [value for _, value in one.top] == pytest.approx(values, abs=ATOL)


def test_a_prompt_that_fills_the_context_leaves_room_for_one_token(known: Known):
    prompt = [9 + i * 7 % 240 for i in range(511)]
    (expected,) = known.models.generate(prompt, 1)
    result = answer(known.models.core(cache_tokens=512), prompt, [expected, 9, 9])
    assert (result.token_ids, result.finish_reason, result.kept_tokens) == ((expected,), "length", 1)


def test_a_second_turn_uses_what_the_first_has_encoded_and_answers_the_same(known: Known):
    prompt, right = known.prompts[-1], known.answers[-1]
    follow_up = [*prompt, *right, *known.prompts[3]]
    expected = known.models.generate(follow_up, MOST)
    core = known.models.core()
    assert answer(core, prompt, right, max_tokens=MOST, prefix_key="a").reused_tokens == 0
    again = answer(core, follow_up, max_tokens=MOST, prefix_key="a")
    assert again.reused_tokens == (len(prompt) + len(right) - 1) // 16 * 16  # the last token follows from the others
    stranger = answer(core, follow_up, max_tokens=MOST, prefix_key="b")
    secret = answer(core, follow_up, max_tokens=MOST, prefix_key=None)
    assert (stranger.reused_tokens, secret.reused_tokens) == (0, 0)
    assert [list(one.token_ids) for one in (again, stranger, secret)] == [expected] * 3


@pytest.mark.parametrize("sampling", [{"temperature": 0.8, "seed": 3}, {"temperature": 1.3, "top_p": 0.9, "top_k": 40}])
def test_the_same_seed_gives_the_same_text_whatever_the_draft_and_the_company(sampling: dict[str, Any]):
    models, rng = pair("gemma4_moe"), random.Random(2)
    prompt = [rng.randrange(9, 250) for _ in range(40)]
    alone = answer(models.core(), prompt, max_tokens=MOST, **sampling)
    right = list(alone.token_ids)
    assert right != models.generate(prompt, MOST)
    core = models.core(encode_tokens=20)
    drafts = drafts_of(right, 256, rng, MOST).values()
    inboxes = [put(core, request(prompt, draft, max_tokens=MOST, **sampling)) for draft, _ in drafts]
    run(core)
    assert {essence(inbox.result) for inbox in inboxes} == {essence(alone)}
    assert inboxes[0].result.kept_tokens == len(right)


@pytest.mark.parametrize("encode_tokens", [1, 3, 512])
def test_typical_keeps_what_is_likely_enough_and_then_goes_on_as_the_model_does(encode_tokens: int):
    models, rng = pair("llama"), random.Random(4)
    prompt = [rng.randrange(9, 250) for _ in range(20)]
    draft = list[int]()
    for _ in range(5):  # the second best where that is likely enough: kept, and another text than the model's own
        _, logprobs = logprobs_of(models, prompt, [*draft, 9])
        best, second = logprobs[-1].topk(2).indices.tolist()
        draft.append(second if likely(logprobs[-1], second, 0.05, 0.9) else best)
    _, logprobs = logprobs_of(models, prompt, [*draft, 9])
    unlikely = int(logprobs[-1].argmin())
    expected = draft + models.generate(prompt + draft, MOST - len(draft))
    assert draft != models.generate(prompt, len(draft))
    core = models.core(encode_tokens=encode_tokens, typical_floor=0.05, typical_share=0.9)
    result = answer(core, prompt, [*draft, unlikely, *draft], mode="typical", max_tokens=MOST)
    assert (list(result.token_ids), result.kept_tokens) == (expected, len(draft))
    exact = answer(core, prompt, [*draft, unlikely, *draft], mode="exact", max_tokens=MOST)
    assert list(exact.token_ids) == models.generate(prompt, MOST)


def likely(logprobs: Tensor, token: int, floor: float, share: float) -> bool:
    """The rule as it is documented: p(x) >= min(floor, share * exp(-H))."""
    p = logprobs.double().exp()
    entropy = -(p * p.log()).sum()
    return bool(p[token] >= min(floor, share * float((-entropy).exp())))


class Demo(NamedTuple):
    models: Pair
    prompts: Prompts


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    folder = str(store.path("refine"))
    theirs, ours = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
    attention.use_in(ours)
    torch.set_flush_denormal(True)  # as the engine does in its thread
    yield Demo(Pair(theirs, ours), Prompts.load(folder, multimodal=False))
    torch.set_flush_denormal(False)


def check_conversations(demo: Demo, count: int, seed: int) -> None:
    """`exact` with drafts of every kind is `generate`, token for token."""
    rng, most = random.Random(seed), 64
    core = make_core(demo.models.ours, demo.prompts, max_running=32, encode_tokens=1024, max_tokens=most)
    expected = []
    for _, conversation in zip(range(count), tasks.conversations("wordings", seed), strict=False):
        ids = demo.prompts.read(conversation.messages).ids
        right = demo.models.generate(ids, most)
        for kind, (draft, kept) in drafts_of(right, 1024, rng, most).items():
            told_draft = draft_of(draft, demo.prompts.fingerprint)
            asked = RefineRequest(request_id="r", messages=conversation.messages, draft=told_draft, mode="exact")
            expected.append((kind, put(core, asked), right, kept))
    run(core)
    for kind, inbox, right, kept in expected:
        assert list(inbox.result.token_ids) == right, kind
        assert kept is None or inbox.result.kept_tokens == kept, kind


def test_the_demo_refiner_answers_as_generate_does_whatever_the_draft(demo: Demo):
    check_conversations(demo, count=15, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_refiner_answers_three_hundred_conversations_as_generate_does_whatever_the_draft(demo: Demo):
    check_conversations(demo, count=300, seed=2)


def test_models_whose_attention_is_not_ours_to_do_are_refused_by_name():
    with pytest.raises(WrongModel, match="expected GPT2LMHeadModel to have attention in each of its 2 layers"):
        layers_of(other_model())


def other_model() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=20, n_positions=16)).eval()


def test_the_layers_of_a_model_are_found_by_running_it():
    model = tiny_model("gemma4_shared_kv")
    attention.use_in(model)
    layers = layers_of(model)
    assert [layer.window for layer in layers] == [WINDOW, WINDOW, None] * 2
    assert [layer.source for layer in layers] == [0, 1, 2, 3, 3, 2]
    assert {layer.head_dim for layer in layers if layer.window is None} == {32}
