"""How well requests are routed, and what deciding costs: `python -m benchmarks.routing --data DIR --json FILE`.

DIR holds JSON lines of outcomes (`classifiers.outcomes` has the form). Measured as RouteLLM does (`classifiers.evaluation`), with
95 % bootstrap intervals: the shipped artifact as it is; its recipe, the best recipe without a bound on latency, and a frontier
between them, five-fold out of fold, one model over all files; the acceptor on rows with drafts; each file by models that never
saw it. With `--train DIR` recipes learn from those files, near-duplicates of the data left out, instead of out of fold.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

import classifiers
from benchmarks._harness import environment, publish
from benchmarks._routing_recipes import BEST, RECIPES
from classifiers.api import ArtifactError
from classifiers.card import Stored, acceptor_recipe, stored_complexity, trained_on
from classifiers.evaluation import (
    EvaluationError,
    Recipe,
    Scores,
    baselines,
    calibration,
    difference,
    duplicate_key,
    labels_of,
    latency,
    measure,
    out_of_fold,
    prompts_of,
    stratified_folds,
)
from classifiers.outcomes import Dataset, Outcome, OutcomesError, read_data

GENERAL = Path(classifiers.__file__).parent / "models" / "general"
SHIPPED = "shipped"
FOLDS = 5
SMOKE_ROWS = 200  # of each file
SMOKE_RECIPES = ("length", "counts, linear", BEST)


@dataclass(frozen=True)
class Bench:
    """The rows of all files, one after the other, and how to measure a score of them."""

    datasets: Mapping[str, Dataset]
    train: Sequence[Outcome]  # for recipes; empty: out of fold
    bootstraps: int
    calls: int
    seed: int

    @cached_property
    def rows(self) -> list[Outcome]:
        return [row for dataset in self.datasets.values() for row in dataset.rows]

    @cached_property
    def names(self) -> list[str]:
        """The file of each row."""
        return [name for name, dataset in self.datasets.items() for _ in dataset.rows]

    @cached_property
    def fold(self) -> Any:
        return stratified_folds(self.rows, FOLDS, self.seed, self.names)

    def of(self, name: str) -> Any:
        """(n,) bool: the rows of one file."""
        return np.array(self.names) == name

    def scores(self, recipe: Recipe) -> Scores:
        """(n,) scores of rows that the recipe did not see."""
        if self.train:
            return np.asarray(recipe(self.train)(self.rows), dtype=float)
        return out_of_fold(recipe, self.rows, self.fold)

    def measured(self, scores: Scores, name: str) -> dict[str, Any]:
        draft, refine = labels_of(self.datasets[name].rows)
        return _plain(measure(scores, draft, refine, self.bootstraps, self.seed))


def dataset_report(bench: Bench, name: str, shipped: Stored, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """One file: base rates, baselines, the artifact as it is, and the recipes on rows they did not see."""
    rows, of = bench.datasets[name].rows, bench.of(name)
    draft, refine = labels_of(rows)
    routers = baselines(rows, bench.fold[of])
    own = shipped.score(rows)
    best, recipe = scores[BEST][of], scores[SHIPPED][of]
    versus_length = difference(recipe, routers["prompt length"], draft, refine, bench.bootstraps, bench.seed)
    return {
        "rows": len(rows),
        "left_out_without_refine_right": bench.datasets[name].unlabelled,
        "always_draft_right": float(draft.mean()),
        "always_refine_right": float(refine.mean()),
        "needed": float((~draft & refine).mean()),
        "only_draft_right": float((draft & ~refine).mean()),
        "baselines": {key: bench.measured(of_key, name) for key, of_key in routers.items()},
        "shipped_artifact": {
            "trained_on_these_rows": bool(trained_on(shipped.about, {name: bench.datasets[name]})),
            **bench.measured(own, name),
            "calibration": _plain(calibration(own, ~draft & refine)),
        },
        "shipped_recipe": {
            **bench.measured(recipe, name),
            "apgr_above_prompt_length": _plain(versus_length["apgr"]),
            "calibration": _plain(calibration(recipe, ~draft & refine)),
        },
        "best_recipe": bench.measured(best, name),
    }


def transfer(bench: Bench, recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """Each file by models trained on each single other file."""
    found: dict[str, Any] = {}
    for source in bench.datasets:
        for name, recipe in recipes.items():
            scorer = recipe(bench.datasets[source].rows)
            for target in bench.datasets:
                if target != source:
                    scores = np.asarray(scorer(bench.datasets[target].rows), dtype=float)
                    found.setdefault(f"{source} -> {target}", {})[name] = bench.measured(scores, target)
    return found


def draft_aware(bench: Bench) -> dict[str, Any]:
    """The acceptor on rows with a draft: score = 1 - P(the draft is good), out of fold or trained on `--train`."""
    drafted, _ = measurable(
        {name: data._replace(rows=[row for row in data.rows if row.draft]) for name, data in bench.datasets.items()}
    )
    found = {}
    for name, (rows, _, _) in drafted.items():
        if any(row.draft for row in bench.train):
            scores = np.asarray(acceptor_recipe(bench.train)(rows), dtype=float)
        else:
            scores = out_of_fold(acceptor_recipe, rows, stratified_folds(rows, FOLDS, bench.seed))
        draft, refine = labels_of(rows)
        found[name] = {
            "rows": len(rows),
            **_plain(measure(scores, draft, refine, bench.bootstraps, bench.seed)),
            "calibration": _plain(calibration(1 - scores, draft)),
        }
    return found


def latencies(bench: Bench, scorers: Mapping[str, Any]) -> dict[str, Any]:
    """Milliseconds a prompt of 2,000 characters, joined from the data's, batch 1, one thread."""
    texts = prompts_of(bench.rows, seed=bench.seed)
    prompts = [Outcome(messages=({"role": "user", "content": text},), draft_right=True) for text in texts]
    return {name: _plain(latency(lambda row, s=s: s([row]), prompts, bench.calls)) for name, s in scorers.items()}


def run(bench: Bench, shipped: Stored, recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """Everything, as one report."""
    recipes = {**recipes, SHIPPED: shipped.recipe}
    bar = tqdm(recipes.items(), desc="recipes", unit="recipe")
    scores = {name: bench.scores(recipe) for name, recipe in bar}
    known = bench.train or bench.rows
    scorers = {name: recipe(known) for name, recipe in tqdm(recipes.items(), desc="fitted on all rows", unit="recipe")}
    took = latencies(bench, {**scorers, SHIPPED: shipped.score})
    return {
        "recipes_see": "--train" if bench.train else f"{FOLDS - 1} of {FOLDS} folds",
        "shipped_version": shipped.version,
        "datasets": {name: dataset_report(bench, name, shipped, scores) for name in bench.datasets},
        "draft_aware": draft_aware(bench),
        "transfer": transfer(bench, {name: recipes[name] for name in (SHIPPED, BEST)}),
        "frontier": {
            name: {
                "latency": took[name],
                "apgr": {dataset: bench.measured(of[bench.of(dataset)], dataset)["apgr"] for dataset in bench.datasets},
            }
            for name, of in scores.items()
        },
    }


def picture(report: Mapping[str, Any], file: Path) -> None:
    """APGR against latency: a panel for each file, a point for each recipe."""
    from matplotlib.figure import Figure

    names = list(report["datasets"])
    figure = Figure(figsize=(1 + 5 * len(names), 5), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, dataset in zip(panels, names, strict=True):
        for name, found in report["frontier"].items():
            apgr, at = found["apgr"][dataset], found["latency"]["p50_ms"]
            errors = [[apgr["value"] - apgr["low"]], [apgr["high"] - apgr["value"]]]
            marker = "D" if name == SHIPPED else "o"
            axes.errorbar(at, apgr["value"], yerr=errors, fmt=marker, capsize=3, label=name)
        axes.axvline(1, color="#888888", linewidth=1)
        axes.axhline(0.5, color="#888888", linewidth=1)
        axes.set(title=dataset, xlabel="p50 ms a prompt of 2,000 characters", xscale="log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("APGR, 95 % interval")
    panels[-1].legend(fontsize="small")
    figure.savefig(file.with_name(f"{file.stem}_frontier.svg"), metadata={"Date": None})


def measurable(datasets: Mapping[str, Dataset]) -> tuple[dict[str, Dataset], dict[str, str]]:
    """The datasets in which something can be measured; and why not, for the others."""
    kept, left_out = {}, {}
    for name, dataset in datasets.items():
        try:
            draft, refine = labels_of(dataset.rows)
            measure(np.zeros(len(draft)), draft, refine, bootstraps=20)
            stratified_folds(dataset.rows, FOLDS)
        except EvaluationError as error:
            left_out[name] = str(error)
        else:
            kept[name] = dataset
    return kept, left_out


def _few(dataset: Dataset) -> Dataset:
    """Rows evenly spread over the file, which may be sorted by subject."""
    count = min(SMOKE_ROWS, len(dataset.rows))
    return dataset._replace(rows=[dataset.rows[i * len(dataset.rows) // count] for i in range(count)])


def _plain(found: Any) -> Any:
    return msgspec.to_builtins(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder of JSON lines, or one file")
    parser.add_argument("--train", type=Path, help="let recipes learn from these files; default: out of fold")
    parser.add_argument("--shipped", type=Path, default=GENERAL, help="folder of the complexity artifact")
    parser.add_argument("--json", type=Path, help="write the report here; the picture goes beside it as .svg")
    parser.add_argument("--bootstraps", type=int, default=300)
    parser.add_argument("--calls", type=int, default=500, help="timed calls of each recipe")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--smoke", action="store_true", help="a few rows, recipes and resamples")
    options = parser.parse_args(arguments)
    try:
        given = read_data(options.data)
        datasets, left_out = measurable({name: _few(one) for name, one in given.items()} if options.smoke else given)
        if not datasets:
            raise EvaluationError(f"expected a file in which something can be measured, got {left_out}")
        train: list[Outcome] = []
        if options.train:
            asked = {duplicate_key(row) for dataset in datasets.values() for row in dataset.rows}
            learned = [row for dataset in read_data(options.train).values() for row in dataset.rows]
            train = [row for row in learned if duplicate_key(row) not in asked]
        bootstraps, calls = (20, 20) if options.smoke else (options.bootstraps, options.calls)
        recipes = {name: RECIPES[name] for name in SMOKE_RECIPES} if options.smoke else RECIPES
        bench = Bench(datasets, train, bootstraps, calls, options.seed)
        measured = run(bench, stored_complexity(options.shipped), recipes)
    except (ArtifactError, EvaluationError, OutcomesError) as error:
        sys.stderr.write(f"benchmarks.routing: {error}\n")
        return 2
    report = {**environment(options.seed), "bootstraps": bootstraps, "left_out": left_out, **measured}
    publish(report, options.json)
    if options.json:
        picture(report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
