from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from demo_models import store
from diffusion_engine import memory, weights
from diffusion_engine.api import DraftSettings
from diffusion_engine.config import ModelConfig, WrongModel
from diffusion_engine.memory import cache_bytes, find_model, fitting_cache_tokens, longest, memory_of, weight_bytes
from diffusion_engine.model import KVCache
from diffusion_engine.sampler import Canvases
from engine_core.memory import DoesNotFit
from moe_kernels import denoise_head
from tests.unit.diffusion_engine.checkpoints import tiny_config, tiny_model, write_all_forms

SETTINGS = DraftSettings(model="tiny", max_tokens=16, max_running=3, encode_tokens=24, cache_tokens=256)


def held(value: Any) -> int:
    """Bytes of the tensors within."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, list | tuple):
        return sum(map(held, value))
    if is_dataclass(value):
        return sum(held(getattr(value, field.name)) for field in fields(value))
    return 0


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_all_forms(tiny_model(tiny_config()), tmp_path_factory.mktemp("forms"))


@pytest.fixture(scope="module")
def published() -> ModelConfig:
    return find_model("diffusiongemma-26B-A4B-it")[0]


@pytest.mark.parametrize(
    ("form", "stored"),
    [("plain", "plain"), ("modelopt", "nvfp4"), ("compressed-tensors", "nvfp4+mlp"), ("draftgate", "nvfp4")],
)
@pytest.mark.parametrize("on_gpu", [True, False])
def test_weights_are_those_that_are_loaded_to_the_byte(forms, monkeypatch, form, stored, on_gpu):
    config, found = find_model(str(forms[form]))
    assert found == stored
    monkeypatch.setattr(weights, "backend", lambda op, device: "triton" if on_gpu else "torch")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    loaded = weights.load_weights(forms[form], config, torch.device("cpu"), dtype, quantize=False)
    assert weight_bytes(config, stored, on_gpu=on_gpu) == held(loaded)


def test_plain_experts_are_counted_as_quantised_on_a_gpu_if_they_will_be(forms, monkeypatch):
    config, stored = find_model(str(forms["plain"]))
    monkeypatch.setattr(weights, "backend", lambda op, device: "triton")
    loaded = weights.load_weights(forms["plain"], config, torch.device("cpu"), torch.bfloat16, quantize=True)
    assert memory_of(config, SETTINGS, stored, on_gpu=True).weights == held(loaded)


def test_the_demo_model_is_counted_to_the_byte():
    folder = store.path("draft")
    config, stored = find_model(str(folder))
    loaded = weights.load_weights(folder, config, torch.device("cpu"), torch.float32, quantize=False)
    assert memory_of(config, SETTINGS, stored, on_gpu=False).weights == held(loaded)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_cache_and_canvases_are_those_that_are_made(forms, on_gpu):
    config, stored = find_model(str(forms["plain"]))
    budget, cpu = memory.budget_of(config, SETTINGS), torch.device("cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    assert cache_bytes(config, budget, on_gpu=on_gpu) == held(KVCache.empty(config, dict(budget.pages), dtype, cpu))
    found = memory_of(config, SETTINGS, stored, on_gpu=on_gpu)
    canvases = held(Canvases.empty(config, SETTINGS.max_running + 1, dtype, cpu))
    tables = 2 * (SETTINGS.max_running + 1) * (512 // 16 + 1 + 1) * 4
    assert found.state == canvases + tables


def test_a_checkpoint_of_which_only_the_config_is_here_is_taken_as_published(forms, tmp_path):
    for form, stored in (("modelopt", "nvfp4"), ("compressed-tensors", "nvfp4+mlp"), ("plain", "plain")):
        folder = tmp_path / form
        folder.mkdir()
        (folder / "config.json").write_bytes((forms[form] / "config.json").read_bytes())
        assert find_model(str(folder))[1] == stored


def test_another_architecture_is_refused_by_name():
    with pytest.raises(WrongModel, match="gemma4"):
        find_model("gemma-4-31B-it")


def test_the_published_parameters(published):
    assert weight_bytes(published, "plain", on_gpu=True) / 2 == pytest.approx(25.25e9, rel=0.001)
    assert weight_bytes(published, "nvfp4", on_gpu=True) == pytest.approx(17.67e9, rel=0.001)
    # 1.1 GB of it is vision, which is not loaded
    assert weight_bytes(published, "nvfp4", on_gpu=True) + 1.145e9 == pytest.approx(18_864_434_565, rel=0.01)
    assert weight_bytes(published, "nvfp4+mlp", on_gpu=True) == pytest.approx(16.90e9, rel=0.001)


def test_the_published_cache(published):
    def cache(tokens: int, running: int = 1) -> int:
        settings = DraftSettings(cache_tokens=tokens, max_running=running)
        return memory_of(published, settings, "nvfp4", on_gpu=True).cache

    assert (cache(1_000_000) - cache(900_000)) / 100_000 == pytest.approx(20_480)  # the full layers; windows are full
    window = cache_bytes(published, memory.budget_of(published, DraftSettings(cache_tokens=1024)), on_gpu=True)
    assert window - 1024 * 20_480 == pytest.approx(210e6, rel=0.03)  # of one sequence, and a page that nobody has


def test_the_heads_scratch_is_what_its_docstring_says(published):
    assert memory._head(published, 4096, True) == pytest.approx(0.1e9, rel=0.2)
    assert "0.1 GB in all" in (denoise_head.__doc__ or "")


def test_more_slots_rows_and_tokens_take_more(published):
    for name in ("max_running", "encode_tokens", "cache_tokens"):
        start = replace(SETTINGS, cache_tokens=65_536)
        totals = [
            memory_of(published, replace(start, **{name: factor * getattr(start, name)}), "nvfp4", on_gpu=True).total
            for factor in (1, 2, 4)
        ]
        assert totals == sorted(set(totals))


def test_the_cache_takes_what_is_left_to_the_page(published):
    free = 30 * 10**9
    settings = replace(SETTINGS, max_tokens=1024)
    tokens = fitting_cache_tokens(published, settings, "nvfp4", free)
    assert tokens % 16 == 0
    assert memory_of(published, replace(settings, cache_tokens=tokens), "nvfp4", on_gpu=True).total <= free
    assert memory_of(published, replace(settings, cache_tokens=tokens + 16), "nvfp4", on_gpu=True).total > free


def test_the_cache_is_no_larger_than_all_slots_can_use(published):
    assert fitting_cache_tokens(published, SETTINGS, "nvfp4", 10**12) == 3 * (262_144 + 256)


def test_a_cache_too_small_for_a_request_is_refused_with_both_numbers(published):
    with pytest.raises(DoesNotFit, match=r"expected \d+\.\d GB for tiny and a cache of 66304 tokens, got 18.0 GB"):
        fitting_cache_tokens(published, SETTINGS, "nvfp4", 18 * 10**9, at_least=longest(published, SETTINGS, 66_048))


def test_a_request_is_rounded_to_canvases_and_cut_to_the_context(published):
    settings = replace(SETTINGS, max_tokens=300)
    assert longest(published, settings, 1000) == 1000 + 512
    assert longest(published, settings, 10**9) == 262_144 + 256
