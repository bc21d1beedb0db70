"""Where the demo models and the classifiers trained on them lie."""

from pathlib import Path
from typing import Literal

NOTICE = "demo models: they know the demo shop Fern and Fable and nothing else"


def path(name: Literal["draft", "refine", "complexity", "quality"]) -> Path:
    """The folder of one shipped model."""
    return Path(__file__).parent / "models" / name
