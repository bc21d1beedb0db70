"""Dispatch: the right implementation for a device, said once."""

import logging

import pytest
import torch

from moe_kernels import dispatch
from moe_kernels.dispatch import KernelUnsupported, backend, expect


@pytest.fixture(autouse=True)
def forgotten():
    backend.cache_clear()
    yield
    backend.cache_clear()


def test_a_cpu_gets_the_twin_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger=dispatch.__name__):
        assert [backend("experts_mlp", torch.device("cpu")) for _ in range(3)] == ["torch"] * 3
    assert [record.getMessage() for record in caplog.records] == ["experts_mlp on cpu: torch (no kernel for cpu)"]


@pytest.mark.parametrize(
    ("capability", "chosen"), [((7, 5), "torch"), ((8, 0), "triton"), ((9, 0), "triton"), ((12, 0), "triton")]
)
def test_a_gpu_gets_the_kernel_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], chosen: str
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a chip")
    assert backend("experts_mlp", torch.device("cuda", 0)) == chosen


def test_the_environment_decides_for_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MOE_KERNELS_BACKEND", "triton")
    assert backend("experts_mlp", torch.device("cpu")) == "triton"
    monkeypatch.setenv("MOE_KERNELS_BACKEND", "cuda")
    with pytest.raises(KernelUnsupported, match="MOE_KERNELS_BACKEND: expected triton or torch, got cuda"):
        backend("route", torch.device("cpu"))


def test_what_a_kernel_cannot_do_is_said_with_expected_and_got():
    expect(True, "op", "anything", None)
    with pytest.raises(KernelUnsupported, match=r"op: expected x in bfloat16, got torch\.float16"):
        expect(False, "op", "x in bfloat16", torch.float16)
