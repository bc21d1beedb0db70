import json
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from ar_engine.api import RefineSettings
from ar_engine.memory import RefinerShape, memory_of
from demo_models import store

SETTINGS = RefineSettings(max_tokens=1024)


@pytest.fixture(scope="module")
def dense() -> RefinerShape:
    return RefinerShape.load("google/gemma-4-31B-it", on_gpu=True)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_the_demo_model_is_counted_to_the_byte(on_gpu):
    folder = str(store.path("refine"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if on_gpu else torch.float32)
    shape = RefinerShape.load(folder, on_gpu=on_gpu)
    assert shape.weights == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    cache = DynamicCache()
    model(input_ids=torch.ones(1, 300, dtype=torch.int64), past_key_values=cache)
    layers: list[Any] = cache.layers
    found = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert memory_of(shape, replace(SETTINGS, max_tokens=100), 200).cache == found


def test_any_other_architecture_is_counted_too(tmp_path):
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    shape = RefinerShape.load(str(tmp_path), on_gpu=True)
    parameters = sum(tensor.numel() for tensor in AutoModelForCausalLM.from_config(config).parameters())
    assert shape.weights == pytest.approx(2 * parameters, rel=0.001)
    assert shape.cached == (2 * 2 * 8 * 2,) * 3
    assert memory_of(shape, SETTINGS, 10**6).cache_tokens == 128


def test_the_weights_of_a_quantised_checkpoint_are_its_files(tmp_path):
    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, "quantization_config": {"quant_method": "awq"}}))
    (tmp_path / "model.safetensors").write_bytes(bytes(1234))
    assert RefinerShape.load(str(tmp_path), on_gpu=True).weights == 1234
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 99}}))
    assert RefinerShape.load(str(tmp_path), on_gpu=True).weights == 99


def test_the_published_sizes(dense):
    vision = 1.15e9
    assert dense.weights - vision == pytest.approx(2 * 30.7e9, rel=0.01)
    assert sum(dense.cached) == (50 * 16 * 256 + 10 * 4 * 512) * 2 * 2
    assert list(dense.windows[:6]) == [1024] * 5 + [None]
    experts = RefinerShape.load("gemma-4-26B-A4B-it", on_gpu=True)
    assert experts.weights - vision == pytest.approx(2 * 25.2e9, rel=0.01)
    assert sum(experts.cached) == (25 * 8 * 256 + 5 * 2 * 512) * 2 * 2  # 205 kB in the windows, 20.5 kB beyond


def test_sliding_layers_keep_all_unless_they_are_told_not_to(dense):
    whole, windowed = (memory_of(dense, SETTINGS, 64_000, windowed=windowed) for windowed in (False, True))
    assert whole.cache == 65_024 * sum(dense.cached)
    assert windowed.cache == 1024 * 50 * 16_384 + 65_024 * 10 * 8192


def test_longer_prompts_take_more_up_to_the_context(dense):
    totals = [memory_of(dense, SETTINGS, prompt).total for prompt in (1_000, 10_000, 100_000, 261_120, 10**6)]
    assert totals[:4] == sorted(set(totals[:4]))
    assert totals[3] == totals[4]


def test_a_name_that_is_nowhere_is_refused():
    with pytest.raises(OSError, match="got 'nobody/nothing'"):
        RefinerShape.load("nobody/nothing", on_gpu=True)
