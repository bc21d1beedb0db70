"""From settings to a running core: weights, cache and scheduler on the device there is."""

import torch
from msgspec.structs import replace

from diffusion_engine.api import DraftRequest, DraftSettings
from diffusion_engine.config import sampling_defaults
from diffusion_engine.core import Core
from diffusion_engine.memory import budget_of, find_model, fitting_cache_tokens
from diffusion_engine.model import Model
from diffusion_engine.runner import Runner
from diffusion_engine.scheduler import Scheduler
from diffusion_engine.weights import load_weights
from engine_core.chat import ChatTokenizer
from engine_core.device import here, use_threads
from engine_core.published import checkpoint_folder


def load_core(settings: DraftSettings) -> Core:
    """Load a checkpoint by name or folder: bfloat16 on a GPU, float32 on a CPU.

    Raises:
        WrongModel: the checkpoint is not a DiffusionGemma.
        CheckpointError: its tensors are not what they should be.
        DoesNotFit: a GPU has no room for it.
        OSError: there is no such checkpoint.
    """
    on_gpu = torch.cuda.is_available()
    device, dtype = (torch.device("cuda"), torch.bfloat16) if on_gpu else (torch.device("cpu"), torch.float32)
    folder = checkpoint_folder(settings.model)
    config, stored = find_model(str(folder))
    if on_gpu and not settings.cache_tokens:  # the gateway has chosen already, for it knows the refiner too
        free = here(unused=True).room
        settings = replace(settings, cache_tokens=fitting_cache_tokens(config, settings, stored, free))
    torch.set_flush_denormal(True)  # of this thread: probabilities near 0 are many, and slow to compute with
    use_threads(settings.threads, config.hidden)
    quantize = on_gpu and settings.quantize
    weights = load_weights(folder, config, device, dtype, quantize=quantize, progress=settings.model)
    budget = budget_of(config, settings)
    defaults = sampling_defaults(folder)
    defaults = replace(
        defaults,
        max_steps=min(settings.max_steps or defaults.max_steps, defaults.max_steps),
        max_tokens=settings.max_tokens,
    )
    runner = Runner(Model(config, weights), budget)
    runner.capture()
    core = Core(runner, Scheduler(budget), ChatTokenizer.load(str(folder)), defaults, config.canvas, config.context)
    if on_gpu:
        warm_up(core, settings.encode_tokens)
    return core


def warm_up(core: Core, encode_tokens: int) -> None:
    """Answer prompts of a few lengths, so that the kernels of steps that encode are compiled before the first request comes."""
    for words in (1, 64, min(encode_tokens, core.context_tokens // 4)):
        request = DraftRequest(
            request_id="warm-up",
            messages=({"role": "user", "content": "word " * words},),
            max_tokens=1,
            max_steps=1,
            prefix_key=None,
        )
        core.add(request, update=_ignore, done=_ignore, failed=_ignore)
        while core.busy:
            core.step()


def _ignore(_: object) -> None: ...
