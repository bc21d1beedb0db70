"""The engine at DiffusionGemma 26B-A4B's full size, over random weights that are made on the device.

No checkpoint is needed: experts are random NVFP4, all else is random bfloat16, as in NVIDIA's checkpoint. A confidence of 0 never converges, so every
canvas takes all its steps. Two things depend on what a model knows, and are measured at both ends: with `flat` predictions the denoise head can
skip nothing, with `peaked` ones most of its second pass. Routing is about uniform, so that every step reads all experts.

A step is timed by CUDA events around `Runner.run`, from its first operation to the flags that the host waits for; throughput by the clock, with
everything: encoding of the prompt, four canvases, three commits. The floor of a step is the larger of its bytes over the bandwidth and its FLOPs
over the speed of a bfloat16 product, both measured in the same run: all weights once, cached keys and values once for each canvas.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from itertools import count
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import DiffusionGemmaConfig

from benchmarks import kernels
from diffusion_engine.api import DraftRequest, DraftSettings
from diffusion_engine.config import LayerShape, ModelConfig
from diffusion_engine.core import Core
from diffusion_engine.memory import budget_of
from diffusion_engine.model import GatedMLP, Layer, Model, Weights
from diffusion_engine.runner import Runner, Stepped
from diffusion_engine.scheduler import Plan, Scheduler
from diffusion_engine.sequence import Sampling
from engine_core.published import PUBLISHED as PUBLISHED_CONFIGS
from engine_core.scheduler import Budget
from moe_kernels.moe import Experts
from moe_kernels.norms import AttentionNorms, ExpertsNorms
from moe_kernels.nvfp4 import quantize

GOALS = {"step_ms": 7.8, "tokens_per_s": 1930}
VLLM = {"tokens_per_s": 1288, "of": "vLLM, H200, FP8, batch 1, 1024 in, 1024 out, 16 steps"}
GAINS = {"flat": 1.0, "peaked": 8.0}  # of the last norm: the standard deviation of the logits before the softcap
LISTED_KERNELS = 20


@dataclasses.dataclass(frozen=True)
class Size:
    """A model, and what is asked of it."""

    text: dict[str, Any]
    canvas: int
    prompt: int  # tokens
    answer: int
    steps: int  # of each canvas
    batches: tuple[int, ...]
    repeats: int
    probes: kernels.Sizes  # for the roofline


FULL = Size(
    text=PUBLISHED_CONFIGS["google/diffusiongemma-26B-A4B-it"]["text_config"],
    canvas=256, prompt=1024, answer=1024, steps=16, batches=(1, 2, 4, 8), repeats=5, probes=kernels.Sizes(),
)  # fmt: skip
SMOKE = Size(
    text={
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"], "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_global_key_value_heads": 1, "head_dim": 16, "global_head_dim": 32, "sliding_window": 32,
        "max_position_embeddings": 256, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32,
    },
    canvas=16, prompt=40, answer=32, steps=3, batches=(1, 2), repeats=1, probes=kernels.SMOKE,
)  # fmt: skip


class Step(NamedTuple):
    """One call of the runner."""

    canvases: int
    encodes: bool  # beside denoising
    seconds: float
    entropy: float  # nats, mean over its canvases


class TimedRunner(Runner):
    """A runner that keeps time."""

    def __init__(self, model: Model, budget: Budget) -> None:
        super().__init__(model, budget)
        self.log: list[Step] = []

    def run(self, plan: Plan, scheduler: Scheduler) -> list[Stepped]:
        """As the parent's."""
        if self.model.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            stepped = super().run(plan, scheduler)
            end.record()
            end.synchronize()
            seconds = start.elapsed_time(end) / 1e3
        else:
            started = time.perf_counter()
            stepped = super().run(plan, scheduler)
            seconds = time.perf_counter() - started
        entropy = mean(one.mean_entropy for one in stepped) if stepped else 0.0
        self.log.append(Step(len(plan.canvases), bool(plan.chunks), seconds, entropy))
        return stepped


class Ids:
    """Stands in for a tokenizer: a message's content is its token ids."""

    fingerprint = "ids"

    def prompt(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        return messages[0]["content"]

    def decode(self, ids: Sequence[int]) -> str:
        return ""


class Served:
    """The random model in an engine."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device = size, device
        self.config = config_of(size)
        self.weights = random_weights(self.config, device)
        slots = max(size.batches)
        settings = DraftSettings(
            max_running=slots,
            encode_tokens=slots * size.prompt,  # all prompts in one step, so that canvases stay in step as well
            cache_tokens=slots * (size.prompt + size.answer + size.canvas),
        )
        budget = budget_of(self.config, settings)
        self.runner = TimedRunner(Model(self.config, self.weights), budget)
        if device.type == "cuda":
            self.runner.capture()
        sampling = Sampling(
            max_steps=size.steps, t_min=0.4, t_max=0.8, entropy_bound=0.1, confidence=0.0, stability=1,
            max_tokens=size.answer,
        )  # fmt: skip
        ids: Any = Ids()
        self._core = Core(self.runner, Scheduler(budget), ids, sampling, size.canvas, self.config.context)
        self._requests = count()

    def answer(self, batch: int, tokens: int) -> float:
        """Seconds that a batch of requests takes from its prompts to all of its tokens."""
        finished: list[Any] = []
        vocab, size = self.config.vocab, self.size
        prompts = torch.randint(vocab, (batch, size.prompt)).tolist()
        self.runner.log.clear()
        started = time.perf_counter()
        for prompt in prompts:
            messages = ({"content": prompt},)
            request = DraftRequest(
                request_id="", messages=messages, seed=next(self._requests), max_tokens=tokens, prefix_key=None
            )
            self._core.add(request, update=finished.append, done=finished.extend, failed=finished.append)
        while self._core.busy:
            self._core.step()
        seconds = time.perf_counter() - started
        assert [len(one.token_ids) for one in finished] == [tokens] * batch, finished
        return seconds

    def become(self, gain: float) -> None:
        """Make predictions flatter or more peaked; captured graphs read the same tensor."""
        self.weights.layers[-1].experts_norms.next.fill_(gain)


def config_of(size: Size) -> ModelConfig:
    """What config.json would say."""
    return ModelConfig.from_transformers(DiffusionGemmaConfig(text_config=dict(size.text), canvas_length=size.canvas))


def random_weights(config: ModelConfig, device: torch.device) -> Weights:
    """Matrices whose products keep their input's size, and norms of ones; a layer at a time."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    hidden = config.hidden

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype) * shape[-1] ** -0.5

    def ones(size: int) -> Tensor:
        return torch.ones(size, device=device, dtype=dtype)

    def mlp() -> GatedMLP:
        return GatedMLP(normal(2 * config.inner, hidden), normal(hidden, config.inner))

    def experts() -> Experts:
        inner, keep = config.expert_inner, None if device.type == "cuda" else dtype
        shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
        parts = [quantize(normal(config.experts, *shape), "modelopt") for shape in shapes]
        return Experts.from_nvfp4(*parts, keep=keep)  # the twins, on a CPU, want them decoded as well

    def layer(shape: LayerShape) -> Layer:
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        return Layer(
            shape=shape,
            qkv=normal(queries + (2 if shape.has_values else 1) * keys, hidden),
            qkv_bias=None,
            out=normal(hidden, queries),
            out_bias=None,
            q_norm=ones(shape.head_dim),
            k_norm=ones(shape.head_dim),
            attention_norms=AttentionNorms(ones(hidden), ones(hidden), ones(hidden), ones(hidden) * hidden**0.5),
            mlp=mlp(),
            router=normal(config.experts, hidden),
            per_expert_scale=ones(config.experts),
            experts=experts(),
            experts_norms=ExpertsNorms(*(ones(hidden) for _ in range(4))),
        )

    return Weights(
        embedding=normal(config.vocab, hidden),
        first_norm=ones(hidden),
        conditioning_norm=ones(hidden),
        conditioning=mlp(),
        layers=[layer(shape) for shape in config.layers],
        encoder_scalars=ones(len(config.layers)),
        decoder_scalars=ones(len(config.layers)),
    )


@torch.inference_mode()
def measure(size: Size, seed: int) -> dict[str, Any]:
    """Build the model and measure it; prints as it goes."""
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    roof = kernels.roofline(kernels.Clock(device, 10, size.probes.flush_bytes), size.probes)
    print(", ".join(f"{name} {value:.3g}" for name, value in roof.items()))
    served = Served(size, device)
    report: dict[str, Any] = {
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "size": {**dataclasses.asdict(size), "probes": None},
        "roofline": roof,
        "weights_bytes": weights_bytes(served.weights),
        "goals": GOALS,
        "published": VLLM,
    }
    if device.type == "cuda":
        torch.cuda.empty_cache()
    for kind, gain in GAINS.items():
        served.become(gain)
        report[kind] = [measure_batch(served, batch, roof) for batch in size.batches]
        for row in report[kind]:
            print(
                f"{kind:6} canvases {row['canvases']}: {row['step_ms']:8.2f} ms a step (goal for 1: {GOALS['step_ms']}), "
                f"{row['share_of_roofline']:6.1%} of the roofline, {row['tokens_per_s']:8.1f} tok/s "
                f"(goal for 1: {GOALS['tokens_per_s']}, {VLLM['of']}: {VLLM['tokens_per_s']})"
            )
    if device.type == "cuda":
        report["kernel_us_of_a_step"] = kernel_times(served)
    return report


def measure_batch(served: Served, batch: int, roof: dict[str, float]) -> dict[str, Any]:
    """A batch of requests, with their whole answers; a step's time is that of the first canvas's steps behind the one that encodes."""
    size, on_gpu = served.size, served.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    served.answer(batch, size.answer)  # compiles
    seconds, logs = [], []
    for _ in range(size.repeats):
        seconds.append(served.answer(batch, size.answer))
        logs.append(list(served.runner.log))
    alone = [step for log in logs for step in log[: size.steps] if not step.encodes]
    step_s = median(step.seconds for step in alone)
    floor = floor_of_a_step(served, batch, roof)
    return {
        "canvases": batch,
        "step_ms": 1e3 * step_s,
        "floor_ms": 1e3 * floor["seconds"],
        "share_of_roofline": floor["seconds"] / step_s,
        "bytes_of_a_step": floor["bytes"],
        "flops_of_a_step": floor["flops"],
        "mean_entropy_nats": mean(step.entropy for step in alone),
        "prompt_ms": 1e3
        * median(log[0].seconds for log in logs),  # encodes all prompts, and denoises for the first time
        "commit_ms": 1e3 * median(step.seconds for log in logs for step in log[1:] if step.encodes),  # denoises too
        "outside_runner_share": 1 - median(sum(step.seconds for step in log) for log in logs) / median(seconds),
        "tokens_per_s": batch * size.answer / median(seconds),
        "seconds": seconds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
    }


def floor_of_a_step(served: Served, batch: int, roof: dict[str, float]) -> dict[str, float]:
    """The least bytes and FLOPs that denoise so many canvases behind their prompts, and the seconds they take here."""
    cached, flops = work_of_a_canvas(served.config, served.size.prompt)
    moved = weights_bytes(served.weights) + batch * cached * served.runner.model.dtype.itemsize
    seconds = max(moved / roof["copy_bytes_per_s"], batch * flops / roof["bfloat16_flops_per_s"])
    return {"bytes": moved, "flops": batch * flops, "seconds": seconds}


def work_of_a_canvas(config: ModelConfig, context: int) -> tuple[int, int]:
    """Cached values that a step of one canvas reads, and its FLOPs."""
    rows, hidden = config.canvas, config.hidden
    weights = 3 * hidden * config.inner + 2 * config.vocab * hidden  # self-conditioning; head and its mean embedding
    attention, cached = 0, 0
    for layer in config.layers:
        seen = min(context, config.window - 1) if layer.kind == "sliding_attention" else context
        queries, keys = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
        weights += hidden * (2 * queries + (2 if layer.has_values else 1) * keys + config.experts)
        weights += 3 * hidden * (config.inner + config.top_k * config.expert_inner)
        attention += 4 * rows * (seen + rows) * queries
        cached += 2 * seen * keys
    return cached, 2 * rows * weights + attention


def weights_bytes(value: Any) -> int:
    """Bytes of all tensors in there, experts packed."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value) if field.name != "dense"]
    return sum(weights_bytes(part) for part in value) if isinstance(value, (list, tuple)) else 0


def kernel_times(served: Served) -> dict[str, float]:
    """Microseconds that a step of one canvas spends in each kernel, the longest first, from a whole answer's denoising."""
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        served.answer(1, served.size.canvas)
        torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    for event in recorded.events() or []:
        if event.device_type.name == "CUDA":
            spent[event.name] += event.time_range.elapsed_us()
    steps = len(served.runner.log)
    return {name: round(total / steps, 1) for name, total in spent.most_common(LISTED_KERNELS)}
