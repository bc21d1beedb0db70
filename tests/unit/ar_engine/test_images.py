"""Images in prompts: a tiny multimodal Gemma 4 against transformers' own forward and `generate`, fed the same pixels."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from ar_engine.core import Core, _share_key
from ar_engine.prompts import Image, Prompt, Prompts
from ar_engine.sequence import Sequence
from tests.unit.ar_engine.engines import Ids, Pair, answer, make_core, pair, put, request, run, score_request, told

OPEN, IMAGE, CLOSE = 7, 6, 8
POOL, PATCH_VALUES = 3, 4 * 4 * 3
MOST = 5
ATOL = 1e-4  # of log-probabilities in float32, whose sums are taken in another order


class Shown(Prompts):
    """Prompts with images that stand behind their names: "20 cat 21"."""

    def __init__(self, images: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__(Ids())
        self._shown = images

    def read(self, messages: Iterable[Mapping[str, Any]], *_: Any, **__: Any) -> Prompt:
        ids, images = list[int](), list[Image]()
        for word in " ".join(message["content"] for message in messages).split():
            if word in self._shown:
                pixels, positions = self._shown[word]
                count = len(positions[positions[:, 0] >= 0]) // POOL**2
                images.append(Image(len(ids) + 1, count, pixels, positions))
                ids += [OPEN, *[IMAGE] * count, CLOSE]
            else:
                ids.append(int(word))
        return Prompt(ids, tuple(images))


def picture(width: int, height: int, seed: int = 0, most: int = 25) -> tuple[Tensor, Tensor]:
    """A random picture of so many soft tokens each way, behind it patches that are empty."""
    columns, rows = width * POOL, height * POOL
    pixels = torch.zeros(most * POOL**2, PATCH_VALUES)
    pixels[: columns * rows] = torch.rand(columns * rows, PATCH_VALUES, generator=torch.Generator().manual_seed(seed))
    positions = torch.full((most * POOL**2, 2), -1)
    positions[: columns * rows] = torch.tensor([(x, y) for y in range(rows) for x in range(columns)])
    return pixels, positions


PICTURES = {"cat": picture(5, 4, 1), "dog": picture(4, 5, 2), "dot": picture(1, 1, 3), "cow": picture(5, 5, 4)}
SAID = [(7 * i) % 150 + 20 for i in range(40)]
PROMPTS = {
    "an image amid a text": f"{' '.join(map(str, SAID[:3]))} cat 30 31 32",
    "an image at the start": "cat 30",
    "two images and a text longer than the window": f"9 dog 33 34 dot {' '.join(map(str, SAID[:30]))}",
    "an image longer than the window behind a text longer than it": f"{' '.join(map(str, SAID[:30]))} cow 50",
}
CHUNKS = (4, 13, 512)  # end before, in and behind an image


@pytest.fixture(scope="module", params=["vision", None], ids=["images see themselves whole", "causal"])
def models(request: pytest.FixtureRequest) -> Pair:
    return pair("gemma4_multimodal", use_bidirectional_attention=request.param)


def core_of(models: Pair, **settings: Any) -> Core:
    return make_core(models.ours, Shown(PICTURES), **settings)


def inputs_of(prompt: Prompt, answered: int = 0) -> dict[str, Tensor]:
    """What transformers is given beside the ids."""
    if not prompt.images:
        return {}
    types = [int(token == IMAGE) for token in prompt.ids] + [0] * answered
    return {
        "pixel_values": torch.stack([image.pixel_values for image in prompt.images]),
        "image_position_ids": torch.stack([image.position_ids for image in prompt.images]),
        "mm_token_type_ids": torch.tensor([types]),
    }


def read(text: str) -> Prompt:
    return Shown(PICTURES).read(told(text))


@pytest.mark.parametrize("text", PROMPTS.values(), ids=list(PROMPTS))
def test_answers_are_those_of_generate_wherever_a_chunk_ends(models: Pair, text: str):
    prompt = read(text)
    expected = models.generate(prompt.ids, MOST, **inputs_of(prompt))
    for encode_tokens in (1, *CHUNKS) if len(prompt.ids) < 25 else CHUNKS:
        core = core_of(models, encode_tokens=encode_tokens)
        wrong = [*expected[:3], 99, *expected[4:]]
        inboxes = [put(core, request(text, draft, max_tokens=MOST)) for draft in (None, wrong)]
        run(core)
        assert [list(inbox.result.token_ids) for inbox in inboxes] == [expected] * 2, encode_tokens


@pytest.mark.parametrize("text", PROMPTS.values(), ids=list(PROMPTS))
def test_log_probabilities_are_those_of_a_plain_forward(models: Pair, text: str):
    prompt, draft = read(text), SAID[:6]
    with torch.no_grad():
        ids = torch.tensor([prompt.ids + draft])
        logits = models.theirs(input_ids=ids, **inputs_of(prompt, len(draft))).logits[0, len(prompt.ids) - 1 : -1]
    expected = logits.log_softmax(-1)[torch.arange(6), torch.tensor(draft)]
    core = core_of(models, encode_tokens=5)
    inbox = put(core, score_request(text, draft))
    run(core)
    torch.testing.assert_close(torch.tensor(inbox.score.token_logprobs), expected, atol=ATOL, rtol=0)


def test_answers_about_different_images_run_together_as_they_run_alone(models: Pair):
    texts = [f"20 {name} 21 22" for name in PICTURES] + ["20 21 22", "cat 9 dog"]
    core = core_of(models, encode_tokens=20, max_running=6)
    inboxes = [put(core, request(text, max_tokens=MOST)) for text in texts]
    run(core)
    for text, inbox in zip(texts, inboxes, strict=True):
        prompt = read(text)
        expected = models.generate(prompt.ids, MOST, **inputs_of(prompt))
        assert list(inbox.result.token_ids) == expected


def test_images_with_equal_placeholders_never_share_pages_and_equal_images_do(models: Pair):
    core = core_of(models)
    texts = ["cat 30 31", "dog 30 31", "cat 30 31"]
    ids = [read(text).ids for text in texts]
    assert ids[0] == ids[1]
    inboxes = []
    for text in texts:
        inboxes.append(put(core, request(text, max_tokens=4, prefix_key="a")))
        run(core)
    reused = [inbox.result.reused_tokens for inbox in inboxes]
    assert reused == [0, 0, 16], "the page ends inside the image"
    assert inboxes[0].result.token_ids == inboxes[2].result.token_ids
    for text, inbox in zip(texts, inboxes, strict=True):
        prompt = read(text)
        assert list(inbox.result.token_ids) == models.generate(prompt.ids, 4, **inputs_of(prompt))


def test_a_follow_up_on_an_image_reuses_its_pages_and_answers_the_same(models: Pair):
    core = core_of(models, encode_tokens=24)
    text = f"20 21 cat {' '.join(map(str, SAID[:20]))}"
    first = put(core, request(text, max_tokens=MOST))
    run(core)
    follow_up = f"{text} {' '.join(map(str, first.result.token_ids))} 44 45"
    again = put(core, request(follow_up, max_tokens=MOST))
    run(core)
    assert again.result.reused_tokens >= 32
    prompt = read(follow_up)
    assert list(again.result.token_ids) == models.generate(prompt.ids, MOST, **inputs_of(prompt))


def test_pictures_of_one_colour_that_differ_in_shape_alone_have_different_keys():
    def plain(width: int, height: int) -> Prompt:
        pixels, positions = picture(width, height)
        return Prompt([IMAGE], (Image(0, width * height, torch.full_like(pixels, 0.5), positions),))

    assert _share_key("a", plain(4, 5)) != _share_key("a", plain(5, 4))
    assert _share_key("a", plain(4, 5)) == _share_key("a", plain(4, 5)) != _share_key("b", plain(4, 5))
    assert _share_key(None, plain(4, 5)) is None
    assert _share_key("a", Prompt([1, 2])) == "a"


def test_an_image_token_in_a_draft_or_an_answer_harms_nobody_who_shows_an_image(models: Pair):
    """It stands for no image, so it is padding, as in transformers; else there would be more tokens than features."""
    core = core_of(models, encode_tokens=64)
    prompt = read("cat 30 31")
    inboxes = [
        put(core, request("20 21", [IMAGE, 30, IMAGE], max_tokens=4)),
        put(core, request("cat 30 31", [IMAGE, 9])),
    ]
    scored = put(core, score_request([20, 21], [IMAGE, 30, IMAGE, 31]))
    run(core)
    assert list(inboxes[0].result.token_ids) == models.generate([20, 21], 4)
    expected = models.generate(prompt.ids, MOST, **inputs_of(prompt))
    assert list(inboxes[1].result.token_ids)[: len(expected)] == expected
    with torch.no_grad():
        logits = models.theirs(input_ids=torch.tensor([[20, 21, 0, 30, 0, 31]])).logits[0, 1:-1]
    expected_scores = logits.log_softmax(-1)[torch.arange(4), torch.tensor([IMAGE, 30, IMAGE, 31])]
    torch.testing.assert_close(torch.tensor(scored.score.token_logprobs), expected_scores, atol=ATOL, rtol=0)


def test_an_images_features_are_forgotten_once_its_prompt_is_read(models: Pair):
    core = core_of(models, encode_tokens=8)
    inbox = put(core, request(f"cat {' '.join(map(str, SAID))}", max_tokens=3))
    runner: Any = core._runner
    while not runner._seen:
        core.step()
    while not inbox.told:
        core.step()
    assert len(runner._seen) == 0
    run(core)


def test_a_text_model_is_asked_for_no_images():
    core = pair("gemma4").core()
    assert not core.prompts.takes_images
    assert answer(core, [20, 21], max_tokens=2).token_ids
    assert Sequence.whole_images is False
