"""The pictures of a router card: quality recovered against calls, and reliability. SVG, the same bytes for the same numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from classifiers.evaluation import Calibration, Scores

GREY = "#888888"
SHARES = np.linspace(0, 1, 101)


def recovered(curves: Mapping[str, Mapping[str, Scores]], file: Path) -> None:
    """PGR over SHARES, (101,): a panel for each dataset, a line for each router."""
    figure, panels = _panels(len(curves))
    for axes, (name, routers) in zip(panels, curves.items(), strict=True):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="random")
        for router, values in routers.items():
            axes.plot(SHARES, values, label=router, linestyle="--" if router == "oracle" else "-")
        axes.set(title=name, xlabel="share of requests refined", ylim=(0, 1.1))
    panels[0].set_ylabel("share of the quality gap recovered (PGR)")
    _save(figure, panels, file)


def reliability(measured: Mapping[str, Calibration], file: Path) -> None:
    """Observed against predicted shares with 95 % Clopper-Pearson intervals: a panel for each dataset."""
    figure, panels = _panels(len(measured))
    for axes, (name, found) in zip(panels, measured.items(), strict=True):
        observed = np.array(found.observed)
        errors = np.maximum([observed - found.low, found.high - observed], 0)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="perfect")
        axes.errorbar(found.predicted, observed, yerr=errors, fmt="o", capsize=3, label="observed, 95 % interval")
        top = 1.05 * max(*found.predicted, *found.high)
        axes.set(title=name, xlabel="predicted", xlim=(0, top), ylim=(0, top))
    panels[0].set_ylabel("observed")
    _save(figure, panels, file)


def _panels(count: int) -> tuple[Any, Any]:
    figure = Figure(figsize=(1 + 4.5 * count, 4.5), layout="constrained")  # pyplot would look for a screen
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _save(figure: Any, panels: Any, file: Path) -> None:
    for axes in panels:
        axes.grid(alpha=0.3)
    panels[-1].legend()
    with mpl.rc_context({"svg.hashsalt": file.name}):
        figure.savefig(file, metadata={"Date": None})
