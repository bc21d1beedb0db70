"""Router card: `draftgate card --data DIR|FILE --complexity FOLDER [--acceptor FOLDER] --out card.md`.

How good a stored classifier is on labelled outcomes (`classifiers.outcomes` has their form), in Markdown with pictures beside
it: baselines, intervals, unseen groups and datasets, calibration, latency, data and licence. An artifact that was trained on
the very files given is judged by its recipe out of fold, for its own scores would flatter it. Drafts are judged by what the
gateway knows of them (`outcomes.as_served`). No text of the data is written.
"""

import argparse
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from tqdm import tqdm

from classifiers import card_plots
from classifiers.api import ArtifactError
from classifiers.complexity import Complexity
from classifiers.evaluation import (
    Calibration,
    EvaluationError,
    Interval,
    Recipe,
    Scorer,
    Scores,
    baselines,
    calibration,
    difference,
    group_folds,
    held_out,
    labels_of,
    latency,
    measure,
    out_of_fold,
    pgr,
    prompts_of,
    stratified_folds,
)
from classifiers.outcomes import Dataset, Outcome, OutcomesError, as_served, read_data
from classifiers.quality import Acceptor
from classifiers.train_complexity import fit_complexity
from classifiers.train_quality import fit_acceptor

FOLDS = 5
HEAD = ("router", "APGR", "CPT50", "CPT80", "AUROC needed", "AUROC draft wrong")
RANDOM = ("random, in theory", "0.500", "0.500", "0.800", "0.500", "0.500")
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
UNMEASURABLE = (EvaluationError, OutcomesError)  # what too few rows raise
LIMITS = """\
- A prompt-only score says which requests tend to need the refiner, not whether this draft is right: it saves drafts, it does
  not guard quality.
- The labels are of one pair of models. Another pair, or other traffic, has other needs: calibrate and make this card again.
- Intervals cover the drawing of rows (95 %, percentile bootstrap), not a change of traffic and not wrong labels.
- Whether rows were trained on is told by the SHA-256 of whole files; the same rows in another file are not recognised.
- Data of two models can't tell whether one model between them in size would serve better than routing.
- Near-duplicates are kept in one fold by their set of words; paraphrases are not recognised."""


class Stored(NamedTuple):
    """A stored classifier and how to make its like."""

    title: str
    folder: Path
    version: str
    score: Scorer  # higher: more in need of the refiner
    recipe: Recipe

    @property
    def about(self) -> dict[str, Any]:
        """What its model.json says."""
        return msgspec.json.decode((self.folder / "model.json").read_bytes(), type=dict[str, Any])


def complexity_recipe(train: Sequence[Outcome]) -> Scorer:
    """The shipped complexity model's recipe."""
    return _complexity(fit_complexity(train))


def acceptor_recipe(train: Sequence[Outcome]) -> Scorer:
    """The shipped acceptor's recipe, from rows with a draft. It scores 1 - P(the draft is good)."""
    return _acceptor(fit_acceptor([row for row in train if row.draft])[0])


def stored_complexity(folder: Path) -> Stored:
    """A stored complexity model. Raises ArtifactError."""
    model = Complexity.load(folder)
    title = "Complexity, from the conversation alone"
    return Stored(title, folder, model.version, _complexity(model), complexity_recipe)


def stored_acceptor(folder: Path) -> Stored:
    """A stored acceptor, scoring 1 - P(the draft is good). Raises ArtifactError."""
    model = Acceptor.load(folder)
    return Stored("Acceptor, from conversation and draft", folder, model.version, _acceptor(model), acceptor_recipe)


def trained_on(about: Mapping[str, Any], datasets: Mapping[str, Dataset]) -> set[str]:
    """Names of the datasets whose files an artifact was trained on, by what its model.json says."""
    known = {entry.get("sha256") for entry in about.get("data", ())}
    return {name for name, dataset in datasets.items() if dataset.sha256 in known}


def honest_scores(stored: Stored, datasets: Mapping[str, Sequence[Outcome]], seen: set[str]) -> dict[str, Scores]:
    """The artifact's scores; on datasets it was trained on those of its recipe, out of fold over all of them pooled."""
    found = {name: stored.score(rows) for name, rows in datasets.items() if name not in seen}
    pooled = {name: datasets[name] for name in datasets if name in seen}
    if pooled:
        rows, names = _pooled(pooled)
        scores = out_of_fold(stored.recipe, rows, stratified_folds(rows, FOLDS, dataset=names))
        found |= _parted(scores, names)
    return found


def write_card(
    out: Path,
    datasets: Mapping[str, Dataset],
    complexity: Stored,
    acceptor: Stored | None = None,
    licence: str = "",
    bootstraps: int = 300,
) -> None:
    """Measure, and write `out` and its pictures `<stem>_*.svg` beside it. What can't be measured says why in its place.

    Args:
        out: the Markdown file; its folder is made.
        datasets: by name, as `read_data` gives them.
        complexity: judged on every row.
        acceptor: judged on rows with a draft.
        licence: of the data, in words.
        bootstraps: resamples behind each interval.

    Raises:
        EvaluationError: no row has refine_right, or there are no bootstraps.
        OSError: the card can't be written.
    """
    rows = {name: dataset.rows for name, dataset in datasets.items() if dataset.rows}
    if not rows or bootstraps < 1:
        got = f"{sum(map(len, rows.values()))} rows and {bootstraps} bootstraps"
        raise EvaluationError(f"expected rows with refine_right and at least 1 bootstrap, got {got}")
    out.parent.mkdir(parents=True, exist_ok=True)
    seen = trained_on(complexity.about, datasets)
    parts = ["# Router card", _data(datasets, licence), _model(complexity, seen)]
    parts.append(_or_why(lambda: _prompt_only(out, rows, complexity, seen, bootstraps)))
    drafted = {name: kept for name, of in rows.items() if (kept := [row for row in of if row.draft is not None])}
    if acceptor and drafted:
        judged = trained_on(acceptor.about, datasets)
        parts.append(_model(acceptor, judged))
        parts.append(_or_why(lambda: _draft_aware(out, drafted, acceptor, judged, bootstraps)))
    parts += ["## Latency", _or_why(lambda: _latency(rows, complexity)), "## What it can't do", LIMITS]
    out.write_text("\n\n".join(parts) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, write the card. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="draftgate card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="JSON lines of outcomes, or a folder of such files")
    parser.add_argument("--complexity", type=Path, required=True, help="folder of a stored complexity model")
    parser.add_argument("--acceptor", type=Path, help="folder of a stored acceptor")
    parser.add_argument("--out", type=Path, required=True, help="the card; its pictures go beside it")
    parser.add_argument("--licence", help="of the data; default: the head of a LICENSE file beside it")
    parser.add_argument("--bootstraps", type=int, default=300, help="resamples behind each interval")
    options = parser.parse_args(argv)
    try:
        datasets = read_data(options.data)
        acceptor = stored_acceptor(options.acceptor) if options.acceptor else None
        licence = options.licence or _licence(options.data)
        write_card(options.out, datasets, stored_complexity(options.complexity), acceptor, licence, options.bootstraps)
    except (ArtifactError, EvaluationError, OutcomesError, OSError) as error:
        sys.stderr.write(f"draftgate card: {error}\n")
        return 2
    return 0


def _complexity(model: Complexity) -> Scorer:
    return lambda rows: np.array([model.score(row.messages) for row in _bar(rows)])


def _acceptor(model: Acceptor) -> Scorer:
    return lambda rows: np.array([1 - model.judge(as_served(row.draft)).quality for row in _bar(rows) if row.draft])


def _bar(rows: Sequence[Outcome]) -> Iterable[Outcome]:
    return rows if len(rows) < 100 else tqdm(rows, desc="scores", unit="row", disable=None, leave=False)


def _licence(data: Path) -> str:
    """The first two lines of each LICENSE file in the data's folder or below."""
    folder = data if data.is_dir() else data.parent
    texts = (file.read_text("utf-8", "replace") for file in folder.rglob("LICENSE*") if file.is_file())
    heads = ([line.strip() for line in text.splitlines() if line.strip()] for text in texts)
    return "; ".join(sorted({" ".join(head[:2]) for head in heads}))


def _data(datasets: Mapping[str, Dataset], licence: str) -> str:
    table = []
    for name, dataset in datasets.items():
        shares = ["-"] * 4
        if dataset.rows:
            draft, refine = labels_of(dataset.rows)
            shares = [_share(each) for each in (draft, refine, ~draft & refine, draft & ~refine)]
        table.append((name, len(dataset.rows), dataset.unlabelled, *shares, f"`{dataset.sha256[:12]}`"))
    head = ("dataset", "rows", "left out, no refine_right", "always draft: right", "always refine: right",
            "needed: only the refiner right", "only the draft right", "SHA-256")  # fmt: skip
    return f"## Data\n\n{_table(head, table)}\n\nLicence: {licence or 'not stated'}."


def _or_why(part: Callable[[], str]) -> str:
    """A part of the card, or why there is none."""
    try:
        return part()
    except UNMEASURABLE as error:
        return f"not measurable: {error}"


def _unfoldable(datasets: Mapping[str, Sequence[Outcome]]) -> dict[str, str]:
    """Why, of the datasets that hold too little for folds."""
    found = {}
    for name, rows in datasets.items():
        try:
            stratified_folds(rows, FOLDS)
        except EvaluationError as error:
            found[name] = f"not measurable: {error}"
    return found


def _prompt_only(
    out: Path, datasets: Mapping[str, list[Outcome]], stored: Stored, seen: set[str], bootstraps: int
) -> str:
    parts: list[str] = []
    curves: dict[str, Mapping[str, Scores]] = {}
    reliabilities: dict[str, Calibration] = {}
    failed = _unfoldable(datasets)
    scores = honest_scores(stored, {name: rows for name, rows in datasets.items() if name not in failed}, seen)

    def measured(name: str) -> str:
        rows, label = datasets[name], "model, out of fold" if name in seen else "model"
        others = [row for other, of in datasets.items() if other != name for row in of]
        text, curve = _routers(rows, {label: scores[name]}, others, stored.recipe, bootstraps)
        draft, refine = labels_of(rows)
        reliability = calibration(scores[name], ~draft & refine)
        curves[name], reliabilities[name] = curve, reliability
        said = [text, _calibrated("needed", reliability), _thresholds("P(needed)", scores[name], draft, refine)]
        return "\n\n".join(said)

    for name in datasets:
        parts += [f"### {name}", failed.get(name) or _or_why(lambda name=name: measured(name))]
    if curves:
        card_plots.recovered(curves, out.with_name(f"{out.stem}_pgr.svg"))
        card_plots.reliability(reliabilities, out.with_name(f"{out.stem}_calibration.svg"))
        parts += [f"![quality recovered]({out.stem}_pgr.svg)", f"![reliability]({out.stem}_calibration.svg)"]
    return "\n\n".join(parts)


def _routers(
    rows: Sequence[Outcome], model: Mapping[str, Scores], others: Sequence[Outcome], recipe: Recipe, bootstraps: int
) -> tuple[str, dict[str, Scores]]:
    """Of one dataset: the table of routers, with what the model gains, and the curves of PGR."""
    draft, refine = labels_of(rows)
    routers = baselines(rows, stratified_folds(rows, FOLDS))
    oracle = routers.pop("oracle")
    routers |= model

    def unseen(name: str, scores: Callable[[], Scores]) -> tuple[object, ...]:
        try:
            return (name, *measure(scores(), draft, refine, bootstraps).values())
        except UNMEASURABLE as error:
            return (name, f"not measurable: {error}", *("-",) * (len(HEAD) - 2))

    table: list[Iterable[object]] = [RANDOM]
    table += [(name, *measure(of, draft, refine, bootstraps).values()) for name, of in routers.items()]
    if len({row.group for row in rows}) >= FOLDS:
        table.append(unseen("recipe, groups unseen", lambda: out_of_fold(recipe, rows, group_folds(rows, FOLDS))))
    if others:
        table.append(unseen("recipe, dataset unseen", lambda: held_out(recipe, others, rows)))
    table.append(("oracle", *measure(oracle, draft, refine, bootstraps).values()))
    (scores,) = model.values()
    gained = difference(scores, routers["prompt length"], draft, refine, bootstraps)["apgr"]
    curves = {name: pgr(of, draft, refine, card_plots.SHARES) for name, of in (routers | {"oracle": oracle}).items()}
    return f"{_table(HEAD, table)}\n\nAPGR above that of prompt length: {gained}.", curves


def _draft_aware(
    out: Path, datasets: Mapping[str, list[Outcome]], stored: Stored, seen: set[str], bootstraps: int
) -> str:
    parts: list[str] = []
    reliabilities: dict[str, Calibration] = {}
    failed = _unfoldable({name: rows for name, rows in datasets.items() if name in seen})
    scores = honest_scores(stored, {name: rows for name, rows in datasets.items() if name not in failed}, seen)

    def measured(name: str) -> str:
        draft, refine = labels_of(datasets[name])
        found = measure(scores[name], draft, refine, bootstraps)
        reliability = reliabilities[name] = calibration(1 - scores[name], draft)
        row = ("model, out of fold" if name in seen else "model", *found.values())
        thresholds = _thresholds("1 - P(draft right)", scores[name], draft, refine)
        return "\n\n".join([_table(HEAD, [RANDOM, row]), _calibrated("draft right", reliability), thresholds])

    for name, rows in datasets.items():
        parts += [f"### {name}: {len(rows)} drafts", failed.get(name) or _or_why(lambda name=name: measured(name))]
    if reliabilities:
        card_plots.reliability(reliabilities, out.with_name(f"{out.stem}_quality.svg"))
        parts.append(f"![reliability]({out.stem}_quality.svg)")
    return "\n\n".join(parts)


def _model(stored: Stored, seen: set[str]) -> str:
    about = stored.about
    size = sum(file.stat().st_size for file in stored.folder.rglob("*") if file.is_file())
    table = [
        ("version", stored.version),
        ("feature version", about.get("feature_version", "not stated")),
        ("trained at", about.get("trained_at", "not stated")),
        ("size", f"{size / 1e3:,.0f} kB"),
        *(("trained on", _named(entry)) for entry in about.get("data", ())),
    ]
    if seen:
        said = (
            f"**It was trained on {', '.join(sorted(seen))}.** There, its row is its recipe's, {FOLDS}-fold out of fold over "
            "these datasets pooled; the stored model itself saw all of these rows."
        )
    else:
        said = (
            "Its training data, as model.json lists it, is none of the files measured here: its own scores are shown."
        )
    return f"## {stored.title}\n\n{_table(('', ''), table)}\n\n{said}"


def _named(entry: Mapping[str, Any]) -> str:
    """A file of training data, as model.json names it."""
    said = f"{entry.get('name')}, {entry.get('rows')} rows, `{str(entry.get('sha256'))[:12]}`"
    return f"{said}, {entry['licence']}" if "licence" in entry else said


def _latency(datasets: Mapping[str, list[Outcome]], stored: Stored) -> str:
    rows = [row for of in datasets.values() for row in of]
    texts = prompts_of(rows)
    long = [Outcome(messages=({"role": "user", "content": text},), draft_right=True) for text in texts]
    table = []
    for name, inputs in (("this data's prompts", rows), ("prompts of 2,000 characters", long)):
        found = latency(lambda row: stored.score([row]), inputs)
        table.append((name, f"{found.p50_ms:.2f}", f"{found.p99_ms:.2f}", found.calls))
    where = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
    return f"{_table(('', 'p50 ms', 'p99 ms', 'calls'), table)}\n\nBatch 1, one thread; {where}."


def _calibrated(event: str, found: Calibration) -> str:
    return (
        f"P({event}): Brier score {found.brier:.4f} ({found.brier_of_base_rate:.4f} for always saying the base rate), expected "
        f"calibration error {found.ece:.4f}."
    )


def _thresholds(score: str, values: Scores, draft: NDArray[np.bool_], refine: NDArray[np.bool_]) -> str:
    """What a threshold means: how much is refined, and how much is right then."""
    table = []
    for threshold in THRESHOLDS:
        refined = values >= threshold
        bad = _share(~draft[~refined]) if not refined.all() else "-"
        table.append((threshold, f"{refined.mean():.3f}", _share(np.where(refined, refine, draft)), bad))
    head = (f"refine where {score} is at least", "share refined", "answers right", "wrong among drafts kept")
    return _table(head, table)


def _share(happened: Any) -> str:
    exact = binomtest(int(happened.sum()), len(happened)).proportion_ci(0.95)
    return str(Interval(float(happened.mean()), float(exact.low), float(exact.high)))


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = (f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))
    return "\n".join(lines)


def _pooled(datasets: Mapping[str, Sequence[Outcome]]) -> tuple[list[Outcome], list[str]]:
    """All rows, and the dataset of each."""
    return [row for rows in datasets.values() for row in rows], [name for name, rows in datasets.items() for _ in rows]


def _parted(scores: Scores, names: Sequence[str]) -> dict[str, Scores]:
    of = np.array(names)
    return {name: scores[of == name] for name in dict.fromkeys(names)}
