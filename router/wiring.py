"""Puts real engines and classifiers into the application; nothing else imports them.

Importing this module imports torch.
"""

from pathlib import Path
from typing import Literal

import msgspec

from ar_engine.engine import AutoregressiveEngine
from classifiers.complexity import LinearComplexity
from classifiers.quality import LogisticQuality
from demo_models import store as demo
from diffusion_engine.engine import DiffusionEngine
from router.app import Parts
from router.settings import Settings
from router.state.cache import fingerprint
from router.version import version

DEMO = "demo"


def build(settings: Settings) -> Parts:
    """Make what the application needs; weights load when the engines are started.

    Raises:
        ArtifactError: a classifier that can't be loaded.
    """
    draft = msgspec.structs.replace(settings.draft, model=_place("draft", settings.draft.model))
    refine = msgspec.structs.replace(settings.refine, model=_place("refine", settings.refine.model))
    complexity = Path(_place("complexity", settings.classifiers.complexity))
    quality = Path(_place("quality", settings.classifiers.quality))
    return Parts(
        draft=DiffusionEngine(draft),
        refine=AutoregressiveEngine(refine),
        complexity=LinearComplexity.load(complexity),
        quality=LogisticQuality.load(quality),
        revision=revision(draft.model, refine.model),
    )


def banner(settings: Settings) -> str:
    """One line for the start of the log."""
    models = (settings.draft.model, settings.refine.model)
    words = (
        f"draftgate {version()} on http://{settings.server.host}:{settings.server.port}"
        f", draft model: {models[0]}, refine model: {models[1]} ({settings.refine.mode})"
    )
    if DEMO in models:
        words += f"; {demo.NOTICE}"
    return words


def revision(*models: str) -> str:
    """Change whenever a local checkpoint does; names on a hub stand for themselves."""
    parts: list[object] = [*models]
    for model in models:
        files = sorted(path for path in Path(model).glob("*") if path.is_file())
        parts += [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return fingerprint(parts).hex()


def _place(part: Literal["draft", "refine", "complexity", "quality"], configured: str) -> str:
    return str(demo.path(part)) if configured == DEMO else configured
