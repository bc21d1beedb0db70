"""What the refine engine holds, counted from a config alone, against what it holds."""

import json
import math

import pytest
import torch
from msgspec.structs import replace
from transformers import AutoModelForCausalLM, LlamaConfig

from ar_engine import attention
from ar_engine.api import RefineSettings
from ar_engine.attention import PagedCache, layers_of
from ar_engine.memory import LEAST_CACHE, RefinerShape, budget_of, cache_bytes, gpu_cache_tokens, memory_of
from demo_models import store
from tests.tiny_causal import NAMES, tiny_config, tiny_model

SETTINGS = RefineSettings(max_tokens=1024)
PAGES = 256 + 1  # of 4096 positions, and the page that is nobody's


@pytest.fixture(scope="module")
def dense() -> RefinerShape:
    return RefinerShape.load("google/gemma-4-31B-it", on_gpu=True)


@pytest.fixture(scope="module")
def experts() -> RefinerShape:
    return RefinerShape.load("gemma-4-26B-A4B-it", on_gpu=True)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_the_weights_of_the_demo_model_are_counted_to_the_byte(on_gpu: bool):
    folder = str(store.path("refine"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if on_gpu else torch.float32)
    shape = RefinerShape.load(folder, on_gpu=on_gpu)
    assert shape.weights == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert (shape.vocab, shape.context) == (1024, 2048)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("on_gpu", [True, False])
def test_the_cache_is_counted_to_the_byte(tmp_path, name: str, on_gpu: bool):
    tiny_config(name).save_pretrained(tmp_path)
    shape = RefinerShape.load(str(tmp_path), on_gpu=on_gpu)
    model = tiny_model(name)
    attention.use_in(model)
    layers = layers_of(model)
    assert list(shape.layers) == layers
    settings = RefineSettings(max_running=3, encode_tokens=24, cache_tokens=700)
    budget = budget_of(layers, settings, 512)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    cache = PagedCache.empty(layers, dict(budget.pages), dtype, torch.device("cpu"))
    held = sum(tensor.nbytes for tensor in (*cache.keys.values(), *cache.values.values()))
    assert cache_bytes(shape, budget) == held == memory_of(shape, settings, on_gpu=on_gpu).cache


def test_any_other_architecture_is_counted_too(tmp_path):
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    shape = RefinerShape.load(str(tmp_path), on_gpu=True)
    parameters = sum(tensor.numel() for tensor in AutoModelForCausalLM.from_config(config).parameters())
    assert shape.weights == pytest.approx(2 * parameters, rel=0.001)
    memory = memory_of(shape, SETTINGS, on_gpu=True)
    assert (memory.cache_tokens, memory.cache) == (4 * 128, (4 * 128 + 16) * 3 * 2 * 2 * 8 * 2)


def test_the_weights_of_a_quantised_checkpoint_are_its_files(tmp_path):
    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, "quantization_config": {"quant_method": "awq"}}))
    (tmp_path / "model.safetensors").write_bytes(bytes(1234))
    assert RefinerShape.load(str(tmp_path), on_gpu=True).weights == 1234
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 99}}))
    assert RefinerShape.load(str(tmp_path), on_gpu=True).weights == 99


def test_the_published_sizes(dense: RefinerShape, experts: RefinerShape):
    vision = 1.15e9
    assert dense.weights - vision == pytest.approx(2 * 30.7e9, rel=0.01)
    assert dense.context == 262_144
    assert [layer.window for layer in dense.layers[:6]] == [1024] * 5 + [None]
    assert experts.weights - vision == pytest.approx(2 * 25.2e9, rel=0.01)
    assert [(a, b) for a, b in (kv_of(dense), kv_of(experts))] == [
        (50 * 16 * 256 * 2 * 2, 10 * 4 * 512 * 2 * 2),
        (25 * 8 * 256 * 2 * 2, 5 * 2 * 512 * 2 * 2),  # 205 kB in the windows, 20.5 kB beyond
    ]


def kv_of(shape: RefinerShape) -> tuple[int, int]:
    """Bytes of a position, in layers with a window and in those without."""
    size = [(layer.window, 2 * layer.kv_heads * layer.head_dim * shape.value) for layer in shape.layers]
    return sum(one for window, one in size if window), sum(one for window, one in size if not window)


def test_experts_that_are_quantised_as_they_are_loaded_take_nine_sixteenths_of_a_byte(experts: RefinerShape):
    shape = experts
    plain, quantised = (memory_of(shape, replace(SETTINGS, quantize=q), on_gpu=True).weights for q in (False, True))
    assert shape.experts == 30 * 128 * 3 * 704 * 2816
    assert plain - quantised == shape.experts * 2 - shape.experts * 9 // 16
    assert memory_of(shape, replace(SETTINGS, quantize=True), on_gpu=False).weights == plain


def test_sliding_layers_have_room_for_their_windows_and_full_ones_for_all_positions(dense: RefinerShape):
    settings = replace(SETTINGS, cache_tokens=100_000, max_running=2)
    budget = budget_of(dense.layers, settings, dense.context)
    assert budget.pages["full_attention"] == 100_000 // 16 + 1
    each = math.ceil((1023 + 2 * 512 + 1) / 16) + 1  # a window, a chunk of a prompt and one of a draft
    assert budget.pages["sliding_attention"] == 2 * each + 2 * each // 4 + 1
    assert budget.windows == {"sliding_attention": 1024, "full_attention": None}
    small = budget_of(dense.layers, replace(settings, cache_tokens=4096), dense.context)
    assert set(small.pages.values()) == {PAGES}


def test_more_positions_rows_and_answers_take_more(dense: RefinerShape):
    less = memory_of(dense, replace(SETTINGS, cache_tokens=50_000), on_gpu=True)
    for more in ({"cache_tokens": 60_000}, {"encode_tokens": 1024}, {"max_running": 32}):
        settings = replace(SETTINGS, **{"cache_tokens": 50_000, **more})
        assert memory_of(dense, settings, on_gpu=True).total > less.total
    assert memory_of(dense, SETTINGS, on_gpu=True).cache_tokens == 4 * dense.context


def test_on_a_gpu_the_cache_holds_the_longest_request_unless_it_is_set():
    assert gpu_cache_tokens(SETTINGS, 262_144, 1_000) == LEAST_CACHE
    assert gpu_cache_tokens(SETTINGS, 262_144, 100_000) == 101_024
    assert gpu_cache_tokens(SETTINGS, 262_144, 300_000) == 262_144
    assert gpu_cache_tokens(replace(SETTINGS, cache_tokens=77), 262_144, 300_000) == 77


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("max_running", 0, 1),
        ("encode_tokens", 0, 1),
        ("max_tokens", 0, 1),
        ("cache_tokens", -1, 0),
        ("speculate", -1, 0),
    ],
)
def test_settings_out_of_range_are_refused_with_expected_and_got(
    dense: RefinerShape, name: str, value: int, least: int
):
    with pytest.raises(ValueError, match=rf"expected refine\.{name} of at least {least}, got {value}"):
        budget_of(dense.layers, replace(SETTINGS, **{name: value}), dense.context)


def test_a_name_that_is_nowhere_is_refused():
    with pytest.raises(OSError, match="got 'nobody/nothing'"):
        RefinerShape.load("nobody/nothing", on_gpu=True)
