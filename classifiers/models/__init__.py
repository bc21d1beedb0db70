"""Classifiers that come with the package, beside those of the demo store."""

from pathlib import Path
from typing import Literal


def path(name: Literal["general"]) -> Path:
    """The folder of a shipped model. `general`: complexity, trained on the outcomes that RouteLLM published."""
    return Path(__file__).parent / name
