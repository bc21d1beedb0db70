"""NVFP4 experts inside transformers' models give what the dense experts of the same values give."""

import pytest
import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from demo_models.configs import new_draft
from moe_kernels.dispatch import KernelUnsupported
from moe_kernels.moe import Experts
from moe_kernels.nvfp4 import quantize
from moe_kernels.testing import assert_close
from moe_kernels.transformers_experts import install


def quantized(module: torch.nn.Module) -> Experts:
    gate, up = module.gate_up_proj.detach().chunk(2, dim=1)  # pyright: ignore[reportCallIssue]
    weights = [quantize(w.contiguous(), "modelopt") for w in (gate, up, module.down_proj.detach())]  # pyright: ignore[reportCallIssue]
    with torch.no_grad():  # the dense weights become what NVFP4 can hold, so that both sides compute the same
        module.gate_up_proj.copy_(torch.cat([w.dequantize(torch.float32) for w in weights[:2]], dim=1))  # pyright: ignore
        module.down_proj.copy_(weights[2].dequantize(torch.float32))  # pyright: ignore
    return Experts.from_nvfp4(*weights)


def gemma4_moe(activation: str = "gelu_pytorch_tanh") -> Gemma4ForCausalLM:
    torch.manual_seed(0)
    config = Gemma4TextConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=64,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=32,
        hidden_activation=activation,
    )
    return Gemma4ForCausalLM(config).eval()


@torch.no_grad()
def test_gemma_4_moe_answers_the_same():
    model, ids = gemma4_moe(), torch.arange(12).view(1, 12)
    experts = {name: quantized(module) for name, module in model.named_modules() if name.endswith(".experts")}
    before = model(ids).logits
    assert install(model, experts.__getitem__) == 2
    assert not any("gate_up_proj" in name for name, _ in model.named_parameters())
    # float32 on both sides, in another order
    assert_close(model(ids).logits, before, max_error=1e-4, rms_error=1e-5)


@torch.no_grad()
def test_encoder_and_decoder_of_a_diffusion_gemma_share_one_set():
    torch.manual_seed(0)
    model = new_draft().eval()
    experts = {
        name: quantized(module)
        for name, module in model.named_modules()
        if name.endswith(".experts") and "decoder" in name
    }
    asked: list[str] = []
    ids, canvas = torch.arange(20).view(1, 20), torch.arange(64).view(1, 64)
    before = model(input_ids=ids, decoder_input_ids=canvas).logits

    def load(name: str) -> Experts:
        asked.append(name)
        return experts[name.replace("encoder.language_model", "decoder")]

    assert install(model, load) == len(asked) == 4
    assert_close(model(input_ids=ids, decoder_input_ids=canvas).logits, before, max_error=1e-4, rms_error=1e-5)


def test_another_activation_is_refused():
    with pytest.raises(KernelUnsupported, match="expected the activation gelu_pytorch_tanh, got silu"):
        install(gemma4_moe("silu"), lambda _: pytest.fail("nothing to load"))


def test_experts_of_another_shape_are_refused():
    shapes = ((4, 64, 64), (4, 64, 64), (4, 64, 64))
    wrong = Experts.from_nvfp4(*(quantize(torch.ones(shape), "modelopt") for shape in shapes))
    with pytest.raises(ValueError, match=r"expected experts of gate_up \(4, 64, 64\), got \(4, 128, 64\)"):
        install(gemma4_moe(), lambda _: wrong)
