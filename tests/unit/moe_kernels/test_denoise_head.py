import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.generation_diffusion_gemma import LinearTemperatureScheduleLogitsProcessor

from moe_kernels import denoise_head as module
from moe_kernels.denoise_head import GROUP, GROUPS, TOKENS, DenoiseHead, denoise_head_torch, denoise_head_triton
from moe_kernels.dispatch import KernelUnsupported
from moe_kernels.rng import gumbel
from moe_kernels.testing import assert_close
from tests.marks import interpreted, on_gpu


def kernels(**inputs: Any) -> DenoiseHead:
    """The kernels in blocks of 16 rows, not 128: the interpreter is slow, and a few rows shall fill several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_ROWS", 16)
        return denoise_head_triton(**inputs)


both = pytest.mark.parametrize(
    "head",
    [
        pytest.param(denoise_head_torch, id="twin"),
        pytest.param(kernels, id="kernel", marks=interpreted),
    ],
)
# Logits reach 75 and carry float32's rounding of sums over H, some 1e-5; their exponentials and logarithms carry it on.
FLOAT = {"max_error": 1e-4, "rms_error": 2e-5}
# A bfloat16 result is off by up to 2^-8 of itself, and the largest is some ten times the typical one.
ROUNDED = {"max_error": 4e-2, "rms_error": 4e-3}
# Triton's interpreter truncates to bfloat16, by up to 2^-7, both the probabilities and the result.
TRUNCATED = {"max_error": 1.6e-1, "rms_error": 1.6e-2}


def make(rows: int, vocab: int, width: int, dtype: torch.dtype = torch.float32, scale: float = 4.0) -> dict[str, Any]:
    """Random arguments whose logits have about `scale` as their standard deviation."""
    hidden, embedding = torch.randn(rows, width), torch.randn(vocab, width) * (scale / width**0.5)
    return {
        "hidden": hidden.to(dtype),
        "embedding": embedding.to(dtype),
        "softcap": 30.0,
        "temperature": 0.4 + 0.4 * torch.rand(rows),
        "seed": torch.randint(-(2**62), 2**62, (rows,)),
        "step": torch.randint(48, (rows,)),
        "position": torch.arange(rows),
    }


def pack(allowed: Tensor) -> Tensor:
    """(R, V) bool to (R, ceil(V / 32)) int32."""
    padded = torch.nn.functional.pad(allowed, (0, -allowed.shape[1] % 32)).unflatten(1, (-1, 32))
    return (padded.long() << torch.arange(32)).sum(2).to(torch.int32)


def direct(
    hidden: Tensor,
    embedding: Tensor,
    *,
    softcap: float | None,
    temperature: Tensor,
    seed: Tensor,
    step: Tensor,
    position: Tensor,
    allowed: Tensor | None = None,
    fixed: Tensor | None = None,
) -> DenoiseHead:
    """The definition in float64; for rows that are neither greedy nor empty. allowed is (R, V) bool."""
    e = embedding.double()
    x = hidden.double() @ e.T
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    x = x / temperature.double()[:, None]
    if allowed is not None:
        x = x.masked_fill(~allowed, -torch.inf)
    if fixed is not None:
        x = torch.where((fixed >= 0)[:, None], torch.full_like(x, -torch.inf).scatter(1, fixed.clamp(0)[:, None], 0), x)
    log_p = x.log_softmax(1)
    p = log_p.exp()
    groups = torch.nn.functional.pad(x, (0, -x.shape[1] % GROUP), value=-torch.inf).unflatten(1, (-1, GROUP))
    mass = groups.logsumexp(2)
    group = (mass + gumbel(seed, position, step, GROUPS, 0, mass.shape[1])).argmax(1)
    inside = groups[torch.arange(len(x)), group] + gumbel(seed, position, step, TOKENS, group * GROUP, GROUP)
    argmax, sample = x.argmax(1), group * GROUP + inside.argmax(1)
    return DenoiseHead(
        argmax,
        sample,
        -(p * log_p).nan_to_num().sum(1),
        log_p.gather(1, sample[:, None])[:, 0],
        log_p.gather(1, argmax[:, None])[:, 0],
        p @ e,
    )


def assert_same(actual: DenoiseHead, expected: DenoiseHead, soft: dict[str, float]) -> None:
    assert torch.equal(actual.argmax, expected.argmax)
    assert torch.equal(actual.sample, expected.sample)
    for a, e in zip(actual[2:5], expected[2:5], strict=True):
        assert_close(1 + a.abs(), 1 + e.abs(), **FLOAT)  # a nat more, for where all is certain and 0 expected
    assert_close(actual.soft, expected.soft, **soft)


def assert_identical(actual: DenoiseHead, expected: DenoiseHead) -> None:
    for name, a, e in zip(DenoiseHead._fields, actual, expected, strict=True):
        assert torch.equal(a, e), name


SHAPES = {
    "vocab": st.integers(1, 1100),  # up to nine groups, more than the splits
    "width": st.integers(1, 150),
    "masked": st.booleans(),
    "fixed": st.booleans(),
    "softcap": st.sampled_from([30.0, 2.0, None]),
    "seed": st.integers(0, 2**32),
}


def make_any(
    rows: int, vocab: int, width: int, masked: bool, fixed: bool, softcap: float | None, seed: int, dtype: torch.dtype
) -> dict[str, Any]:
    torch.manual_seed(seed)
    inputs = make(rows, vocab, width, dtype) | {"softcap": softcap}
    if masked:
        allowed = torch.rand(rows, vocab) < torch.rand(rows, 1)
        inputs["allowed"] = allowed.index_put((torch.arange(rows), torch.randint(vocab, (rows,))), torch.tensor(True))
    if fixed:
        inputs["fixed"] = torch.where(torch.rand(rows) < 0.3, torch.randint(vocab, (rows,)), -1)
    return inputs


def packed(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | ({"allowed": pack(inputs["allowed"])} if "allowed" in inputs else {})


# The examples are the same in every run: among many more, two candidates could be so close that rounding decides.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows=st.integers(1, 70), **SHAPES)  # up to two blocks
def test_the_twin_agrees_with_the_definition_in_float64(dtype: torch.dtype, **shape: Any) -> None:
    inputs = make_any(**shape, dtype=dtype)
    soft = FLOAT if dtype == torch.float32 else ROUNDED
    assert_same(denoise_head_torch(**packed(inputs), skip=0.0), direct(**inputs), soft)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(rows=st.integers(1, 34), **SHAPES)  # up to three blocks
def test_the_kernels_agree_with_the_twin(dtype: torch.dtype, **shape: Any) -> None:
    inputs = packed(make_any(**shape, dtype=dtype))
    soft = FLOAT if dtype == torch.float32 else TRUNCATED
    assert_same(kernels(**inputs, skip=0.0), denoise_head_torch(**inputs, skip=0.0), soft)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_agree_with_the_twin_on_a_gpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = make(300, 20_011, 333, dtype)
    there: dict[str, Any] = {
        name: value.cuda() if isinstance(value, Tensor) else value for name, value in inputs.items()
    }
    result = DenoiseHead(*(tensor.cpu() for tensor in denoise_head_triton(**there, skip=0.0)))
    soft = FLOAT if dtype == torch.float32 else ROUNDED
    assert_same(result, denoise_head_torch(**inputs, skip=0.0), soft)


@both
@pytest.mark.parametrize("temperature", [0.01, 0.4, 0.8, 100.0])
def test_extreme_temperatures_keep_their_precision(head: Any, temperature: float) -> None:
    torch.manual_seed(1)
    inputs: dict[str, Any] = make(9, 300, 40) | {"temperature": torch.full((9,), temperature)}
    result, expected = head(**inputs, skip=0.0), direct(**inputs)
    assert torch.equal(result.argmax, expected.argmax)
    assert torch.equal(result.sample, expected.sample)
    # Absolute: at 0.01 nearly all entropies are 0 and logits are 3000, of which float32 keeps 2e-4.
    torch.testing.assert_close(result.entropy.double(), expected.entropy, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.logprob.double(), expected.logprob, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(result.soft.double(), expected.soft, rtol=1e-3, atol=1e-4)


@both
def test_a_greedy_row_is_its_argmax(head: Any) -> None:
    torch.manual_seed(2)
    inputs = make(3, 200, 24)
    inputs["temperature"] = torch.tensor([0.0, 0.7, 0.0])
    result = head(**inputs)
    best = (inputs["hidden"] @ inputs["embedding"].T).argmax(1)
    assert result.argmax.equal(best)
    assert result.sample[[0, 2]].equal(best[[0, 2]])
    assert result.soft[[0, 2]].equal(inputs["embedding"][best[[0, 2]]])
    for certain in (result.entropy, result.logprob, result.argmax_logprob):
        assert certain[[0, 2]].tolist() == [0.0, 0.0]
        assert certain[1] != 0


@both
def test_a_fixed_row_is_its_token_even_if_forbidden(head: Any) -> None:
    torch.manual_seed(3)
    inputs = make(4, 200, 24)
    inputs["fixed"] = torch.tensor([-1, 199, 0, 77])
    inputs["allowed"] = pack(torch.arange(200).expand(4, 200) != 77)
    result = head(**inputs)
    assert result.argmax[1:].tolist() == result.sample[1:].tolist() == [199, 0, 77]
    assert result.soft[1:].equal(inputs["embedding"][[199, 0, 77]])
    for certain in (result.entropy, result.logprob, result.argmax_logprob):
        assert certain[1:].tolist() == [0.0, 0.0, 0.0]
        assert certain[0] != 0


@both
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_row_that_allows_nothing_says_so_and_leaves_the_others_alone(head: Any, temperature: float) -> None:
    torch.manual_seed(4)
    inputs = make(3, 200, 24) | {"temperature": torch.full((3,), temperature)}
    allowed = torch.ones(3, 200, dtype=torch.bool)
    allowed[1] = False
    result, without = head(**inputs, allowed=pack(allowed)), head(**inputs)
    assert result.argmax[1] == result.sample[1] == -1
    assert result.entropy[1] == 0
    assert result.logprob[1] == result.argmax_logprob[1] == -torch.inf
    assert not result.soft[1].any()
    assert_identical(DenoiseHead(*(x[::2] for x in result)), DenoiseHead(*(x[::2] for x in without)))


@both
@pytest.mark.parametrize("last", [31, 32, 128, 639])
def test_a_row_that_allows_one_token_has_it_with_certainty(head: Any, last: int) -> None:
    torch.manual_seed(5)
    inputs = make(2, 640, 24)
    result = head(**inputs, allowed=pack(torch.arange(640).expand(2, 640) == last))
    assert result.argmax.tolist() == result.sample.tolist() == [last, last]
    assert not result.entropy.any()
    torch.testing.assert_close(result.logprob, torch.zeros(2), rtol=0, atol=1e-5)  # of a logit of about 10
    torch.testing.assert_close(result.soft, inputs["embedding"][[last, last]], rtol=1e-5, atol=1e-6)


@both
def test_ties_go_to_the_lowest_token(head: Any) -> None:
    inputs = make(2, 900, 16)
    inputs["hidden"] = torch.ones(2, 16)
    inputs["embedding"] = torch.zeros(900, 16)
    inputs["embedding"][[140, 150, 800]] = 1.0  # in one group, and in another group of another split
    assert head(**inputs).argmax.tolist() == [140, 140]
    inputs["embedding"][:] = 1.0
    assert head(**inputs).argmax.tolist() == [0, 0]


def test_samples_follow_the_softmax() -> None:
    torch.manual_seed(6)
    rows, vocab = 20_000, 300
    one = make(1, vocab, 16, scale=1.0)
    inputs = one | {name: one[name].expand(rows, *one[name].shape[1:]) for name in ("hidden", "temperature")}
    inputs["seed"] = torch.arange(rows) // 100
    inputs["step"] = torch.arange(rows) % 10
    inputs["position"] = torch.arange(rows) // 10 % 10
    drawn = denoise_head_torch(**inputs).sample.bincount(minlength=vocab).double()
    x = 30 * torch.tanh(one["hidden"].double() @ one["embedding"].double().T / 30) / one["temperature"][0]
    expected = rows * x[0].softmax(0)
    rare = expected < 5
    drawn = torch.cat([drawn[~rare], drawn[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    # Seeds are fixed, so this either holds or not.
    assert stats.chisquare(drawn.numpy(), expected.numpy()).pvalue > 0.01


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_rest_of_the_batch_in_any_bit(head: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    rows, vocab = (75, 2600) if head is denoise_head_torch else (34, 1100)
    inputs = make(rows, vocab, 70, dtype)
    # From flat to certain, so that rows skip different groups, which the batch then computes all the same.
    inputs["hidden"] = inputs["hidden"] * torch.linspace(0.1, 8, rows)[torch.randperm(rows), None].to(dtype)
    together = head(**inputs)
    for some in (torch.tensor([rows - 2]), torch.tensor([3, rows - 1, 18]), torch.randperm(rows)):
        part = inputs | {name: inputs[name][some] for name in ("hidden", "temperature", "seed", "step", "position")}
        assert_identical(head(**part), DenoiseHead(*(x[some] for x in together)))


@interpreted
def test_long_batches_are_launched_in_parts_with_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(8)
    inputs = make(20, 300, 20)
    inputs["allowed"] = pack(torch.rand(20, 300) < 0.5)
    inputs["fixed"] = torch.where(torch.arange(20) % 7 == 0, 5, -1)
    whole = denoise_head_triton(**inputs)
    monkeypatch.setattr(module, "_ROWS", 8)
    assert_identical(denoise_head_triton(**inputs), whole)


@both
@pytest.mark.parametrize("skip", [2.0**-12, 0.05, 0.3])
def test_no_more_probability_is_skipped_than_stated(head: Any, skip: float) -> None:
    torch.manual_seed(9)
    inputs = make(20, 2600 if head is denoise_head_torch else 1100, 33)
    inputs["hidden"][:, 0], inputs["embedding"][:, 0] = (
        0,
        1,
    )  # so that soft[:, 0] is the probability that was not skipped
    result, exact = head(**inputs, skip=skip), direct(**inputs)
    kept = result.soft[:, 0]
    rounding = 1e-5
    assert (kept >= 1 - skip - rounding).all()
    assert (kept <= 1 + rounding).all()
    assert skip < 0.01 or (kept < 1 - rounding).any()  # or nothing was shown
    longest = inputs["embedding"].norm(dim=1).max()
    assert ((result.soft - exact.soft).norm(dim=1) <= (skip + rounding) * longest).all()
    assert_same(result._replace(soft=exact.soft), exact, FLOAT)


def small_model() -> DiffusionGemmaForBlockDiffusion:
    vision = {
        "model_type": "gemma4_vision",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "patch_size": 4,
        "position_embedding_size": 16,
    }
    text = {
        "vocab_size": 500,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_global_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 16,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    }
    torch.manual_seed(10)
    config = DiffusionGemmaConfig(
        text_config=text,
        vision_config=vision,
        boi_token_id=497,
        eoi_token_id=498,
        image_token_id=499,
        canvas_length=16,
    )
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    torch.nn.init.normal_(model.model.decoder.embed_tokens.weight, std=0.5)  # for logits that are far apart
    return model


def test_argmax_entropy_probability_and_self_conditioning_are_transformers_own() -> None:
    model = small_model()
    call: Any = model  # its annotations want LongTensor, which nobody makes
    seen: dict[str, Tensor] = {}
    model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.update(hidden=inputs[0]))
    decoder = model.model.decoder
    decoder.self_conditioning.register_forward_pre_hook(lambda _, inputs: seen.update(soft=inputs[1]))
    prompt, canvas = torch.randint(490, (2, 7)), torch.randint(490, (2, 16))
    with torch.no_grad():
        logits = call(input_ids=prompt, decoder_input_ids=canvas).logits
        hidden = seen["hidden"].flatten(0, 1)
        schedule: Any = LinearTemperatureScheduleLogitsProcessor(t_min=0.4, t_max=0.8, max_denoising_steps=48)
        processed = schedule(prompt, logits, cur_step=30)
        call(input_ids=prompt, decoder_input_ids=canvas, self_conditioning_logits=processed)
    rows = len(hidden)
    result = denoise_head_torch(
        hidden,
        decoder.embed_tokens.weight.detach(),
        softcap=model.final_logit_softcapping,
        temperature=torch.full((rows,), 0.4 + 0.4 * 30 / 48),
        seed=torch.arange(rows),
        step=torch.full((rows,), 30),
        position=torch.arange(rows),
    )
    flat = processed.flatten(0, 1)
    assert flat.std() > 1  # else any head would do
    assert torch.equal(result.argmax, flat.argmax(1))
    log_p = flat.log_softmax(1)
    assert_close(result.entropy, torch.distributions.Categorical(logits=flat).entropy(), **FLOAT)
    assert_close(result.logprob, log_p.gather(1, result.sample[:, None])[:, 0], **FLOAT)
    assert_close(result.argmax_logprob, log_p.amax(1), **FLOAT)
    # Up to the skipped probability, 2^-12 at most.
    scaled = result.soft * decoder.embed_tokens.embed_scale
    assert_close(scaled, seen["soft"].flatten(0, 1), max_error=1e-3, rms_error=2.5e-4)


class Held(TorchDispatchMode):
    """The most bytes that operations' results held at any time; a profiler's events are too many at full size."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: dict[int, Any] = {
            value.untyped_storage()._cdata: None for value in inputs.values() if isinstance(value, Tensor)
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.count(tensor.untyped_storage())
        return made

    def count(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name not in self.known:
            self.known[name] = weakref.ref(storage, lambda _: self.release(name, size))
            self.now += size
            self.most = max(self.most, self.now)

    def release(self, name: int, size: int) -> None:
        del self.known[name]
        self.now -= size


def peak_bytes(inputs: dict[str, Any]) -> int:
    with Held(inputs) as held:
        denoise_head_torch(**inputs)
    return held.most


@pytest.mark.parametrize(
    ("rows", "vocab"),
    [
        pytest.param(4096, 4096, id="all-rows-of-a-part-of-the-vocabulary"),
        pytest.param(64, 262_144, id="all-the-vocabulary-for-a-part-of-the-rows"),
        pytest.param(4096, 262_144, id="full-size", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_the_twin_holds_less_than_64_mb_beside_inputs_and_results(rows: int, vocab: int) -> None:
    torch.manual_seed(11)
    inputs = make(rows, vocab, 256)
    results = rows * (2 * 8 + 3 * 4 + 256 * 4)
    peak = peak_bytes(inputs)
    assert results <= peak  # or they were not seen
    assert peak - results < 64 * 2**20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"embedding": torch.zeros(40, 8).bfloat16()}, "float32", id="two-dtypes"),
        pytest.param(
            {"hidden": torch.zeros(3, 8).half(), "embedding": torch.zeros(40, 8).half()}, "float16", id="half"
        ),
        pytest.param({"embedding": torch.zeros(40, 9)}, r"\(40, 9\)", id="two-widths"),
        pytest.param({"embedding": torch.zeros(0, 8)}, r"\(0, 8\)", id="no-vocabulary"),
        pytest.param({"temperature": torch.ones(4)}, r"temperature \(3,\)", id="a-row-too-many"),
        pytest.param({"seed": torch.ones(3)}, "seed", id="a-seed-that-is-no-integer"),
        pytest.param({"allowed": torch.zeros(3, 1, dtype=torch.int32)}, r"allowed \(3, 2\)", id="a-mask-too-short"),
        pytest.param({"fixed": torch.zeros(3, dtype=torch.int32)}, "fixed", id="tokens-of-32-bits"),
        pytest.param({"softcap": 0.0}, "softcap", id="no-room-under-the-cap"),
        pytest.param({"skip": 1.0}, "skip", id="everything-skipped"),
    ],
)
@pytest.mark.parametrize("head", [denoise_head_torch, denoise_head_triton, module.denoise_head])
def test_malformed_input_is_refused_by_name(head: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head(**(make(3, 40, 8) | change))


def test_the_kernels_want_contiguous_matrices() -> None:
    inputs: dict[str, Any] = make(3, 40, 8) | {"embedding": torch.zeros(8, 40).T}
    with pytest.raises(KernelUnsupported, match="contiguous embedding"):
        denoise_head_triton(**inputs)


def test_no_rows_give_no_results() -> None:
    for head in (denoise_head_torch, denoise_head_triton):
        assert [len(x) for x in head(**make(0, 40, 8))] == [0] * 6
