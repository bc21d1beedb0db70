"""Puts real engines and classifiers into the application; nothing else imports them.

Importing this module imports torch.
"""

from pathlib import Path
from typing import Literal

import msgspec

from ar_engine import memory as refine_memory
from ar_engine.engine import AutoregressiveEngine
from ar_engine.remote import RemoteEngine
from classifiers import models
from classifiers.complexity import Complexity
from classifiers.quality import Acceptor
from demo_models import store as demo
from diffusion_engine import memory as draft_memory
from diffusion_engine.engine import DiffusionEngine
from diffusion_engine.remote import RemoteDraftEngine
from engine_core.device import here
from engine_core.loop import Company
from engine_core.memory import Device, Memory
from router import plan
from router.app import Parts
from router.settings import Settings
from router.state.cache import fingerprint
from router.version import version

DEMO = "demo"
GENERAL: Literal["general"] = "general"
REMOTE = Memory(0, 0, 0, 0, 0)  # what a model takes here that runs elsewhere
MODEST_CACHE = 65_536  # positions of the draft engine's cache where nothing is known of the models yet


def build(settings: Settings, device: Device | None = None) -> Parts:
    """Make what the application needs; weights load when the engines are started.

    Args:
        settings: of all of it.
        device: what the engines will load onto; None for what is unused of the device that is here.

    Raises:
        ArtifactError: a classifier that can't be loaded.
        PairDoesNotFit: the engines need more memory than there is.
    """
    device = device or here(unused=True)
    try:
        found = sizes(settings, device)
    except (OSError, ValueError):
        # Not a model, or one that is still to be fetched: the engine says so, or tries it, when it starts. On a GPU it would take all memory
        # for its cache, and leave the refiner none.
        if device.kind == "cuda" and not settings.draft.cache_tokens:
            modest = msgspec.structs.replace(settings.draft, cache_tokens=MODEST_CACHE)
            settings = msgspec.structs.replace(settings, draft=modest)
    else:
        settings = plan.admit(settings, found, device)
    draft = msgspec.structs.replace(settings.draft, model=_place("draft", settings.draft.model))
    refine = msgspec.structs.replace(settings.refine, model=_place("refine", settings.refine.model))
    company = Company()
    return Parts(
        draft=RemoteDraftEngine(draft) if draft.upstream.base_url else DiffusionEngine(draft, company=company),
        refine=RemoteEngine(refine) if refine.upstream.base_url else AutoregressiveEngine(refine, company=company),
        complexity=Complexity.load(_place("complexity", settings.classifiers.complexity)),
        quality=Acceptor.load(_place("quality", settings.classifiers.quality)),
        revision=revision(draft.model, refine.model),
    )


class PairSizes:
    """What a pair of models takes under any settings: the `Sizes` of `router.plan`."""

    def __init__(self, draft: str | None, refine: str | None, device: Device) -> None:
        """Look at configs; no weights are read.

        Args:
            draft: a model's name or folder; None for one that an upstream runs.
            refine: likewise.
            device: that the others will load onto.

        Raises:
            OSError, ValueError: a model isn't here, or isn't one.
        """
        self._on_gpu = device.kind == "cuda"
        self._draft = draft_memory.find_model(draft) if draft is not None else None
        self._refiner = refine_memory.RefinerShape.load(refine, on_gpu=self._on_gpu) if refine is not None else None

    def draft(self, settings: Settings) -> Memory:
        """The draft engine's."""
        if self._draft is None:
            return REMOTE
        config, form = self._draft
        chosen = settings.draft
        if self._on_gpu and not chosen.cache_tokens:
            chosen = msgspec.structs.replace(chosen, cache_tokens=_longest(config, settings))
        return draft_memory.memory_of(config, chosen, form, on_gpu=self._on_gpu)

    def refine(self, settings: Settings) -> Memory:
        """The refine engine's."""
        if self._refiner is None:
            return REMOTE
        chosen = settings.refine
        if self._on_gpu:
            tokens = refine_memory.gpu_cache_tokens(chosen, self._refiner.context, settings.server.max_prompt_chars)
            chosen = msgspec.structs.replace(chosen, cache_tokens=tokens)
        return refine_memory.memory_of(self._refiner, chosen, on_gpu=self._on_gpu)

    def cache_tokens(self, settings: Settings, free: int) -> int:
        """The draft engine's cache when so many bytes are its own."""
        if self._draft is None:
            return 0
        config, form = self._draft
        return draft_memory.fitting_cache_tokens(config, settings.draft, form, free, _longest(config, settings))


def sizes(settings: Settings, device: Device) -> PairSizes:
    """Those of the configured models. Raises OSError or ValueError: a model isn't here, or isn't one."""
    draft = None if settings.draft.upstream.base_url else _place("draft", settings.draft.model)
    refine = None if settings.refine.upstream.base_url else _place("refine", settings.refine.model)
    return PairSizes(draft, refine, device)


def banner(settings: Settings) -> str:
    """One line for the start of the log."""
    models = (plan.named(settings.draft), plan.named(settings.refine))
    words = (
        f"draftgate {version()} on http://{settings.server.host}:{settings.server.port}"
        f", draft model: {models[0]}, refine model: {models[1]} ({settings.refine.mode})"
    )
    if DEMO in models:
        words += f"; {demo.NOTICE}"
    if models != (DEMO, DEMO) and DEMO in (settings.classifiers.complexity, settings.classifiers.quality):
        words += "; the demo classifiers say nothing of other models: draftgate train"
    return words


def revision(*models: str) -> str:
    """Change whenever a local checkpoint does; names on a hub stand for themselves."""
    parts: list[object] = [*models]
    for model in models:
        files = sorted(path for path in Path(model).glob("*") if path.is_file())
        parts += [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return fingerprint(parts).hex()


def _place(part: Literal["draft", "refine", "complexity", "quality"], configured: str) -> str:
    if part == "complexity" and configured == GENERAL:
        return str(models.path(GENERAL))
    return str(demo.path(part)) if configured == DEMO else configured


def _longest(config: draft_memory.ModelConfig, settings: Settings) -> int:
    return draft_memory.longest(config, settings.draft, settings.server.max_prompt_chars)
