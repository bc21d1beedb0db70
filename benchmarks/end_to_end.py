"""The whole service over HTTP on held-out conversations: `python -m benchmarks.end_to_end --requests 500 --json FILE`.

One client asks each conversation under three policies: always draft, always refine, routed. The cache is off. The curve over
thresholds is replayed from the first two runs: at given thresholds a request takes its draft's time, its refinement's
time, or both, and gets the answer of the model that had the last word (in `exact` mode a refined draft is the refiner's own
answer). Its times leave out what the kept part of a draft saves, so the measured routed point may lie left of it.
"""

import argparse
import time
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

import httpx
from tqdm import tqdm

from benchmarks._harness import environment, publish
from benchmarks._server import running_server
from demo_models.tasks import Conversation, conversations
from router.policy import Policy

POLICIES = {"always draft": "draftgate-draft", "always refine": "draftgate-refine", "routed": "draftgate"}
WARM_UP = 5


def ask(client: httpx.Client, model: str, case: Conversation) -> dict[str, Any]:
    """One request: what was answered, whether that is right, how long it took, and why it took its route."""
    body = {"model": model, "messages": case.messages, "temperature": 0, "draftgate": {"cache": False}}
    started = time.perf_counter()
    response = client.post("/v1/chat/completions", json=body)
    seconds = time.perf_counter() - started
    response.raise_for_status()
    answer = response.json()
    text = answer["choices"][0]["message"]["content"]
    return {
        "family": case.family,
        "complex": case.is_complex,
        "right": case.is_right(text),
        "seconds": seconds,
        "tokens": answer["usage"]["completion_tokens"],
        **{key: response.headers.get(f"x-draftgate-{key}", "") for key in ("route", "reason", "complexity", "quality")},
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy by family, route mix and latency of one policy."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        for group in (row["family"], "all complex" if row["complex"] else "all simple", "all"):
            groups[group].append(row["right"])
    seconds = [row["seconds"] for row in rows]
    cuts = quantiles(seconds, n=20, method="inclusive")
    return {
        "exact_share": {group: [round(mean(right), 4), len(right)] for group, right in sorted(groups.items())},
        "routes": {route: round(count / len(rows), 4) for route, count in Counter(r["route"] for r in rows).items()},
        "reasons": dict(Counter(row["reason"] for row in rows)),
        "seconds": {"mean": mean(seconds), "p50": cuts[9], "p95": cuts[18]},
        "mean_tokens": mean(row["tokens"] for row in rows),
    }


def replay(draft: list[dict], refine: list[dict], complexity: float, quality: float) -> dict[str, float]:
    """Accuracy, mean seconds and share of drafts served at a pair of thresholds."""
    right, seconds, served = [], [], 0
    for drafted, refined in zip(draft, refine, strict=True):
        goes_direct = float(drafted["complexity"]) >= complexity
        accepted = not goes_direct and float(drafted["quality"]) >= quality
        served += accepted
        right.append(drafted["right"] if accepted else refined["right"])
        seconds.append((0 if goes_direct else drafted["seconds"]) + (0 if accepted else refined["seconds"]))
    return {
        "complexity_threshold": complexity,
        "quality_threshold": quality,
        "exact_share": mean(right),
        "mean_s": mean(seconds),
        "served_from_drafts": served / len(right),
    }


def picture(report: dict[str, Any], path: Path) -> None:
    """Accuracy against mean latency: three measured points and the replayed curve over complexity thresholds."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    curve = report["curve"]
    axes.plot([p["mean_s"] * 1e3 for p in curve], [p["exact_share"] * 100 for p in curve], "-", color="#888888",
              marker=".", label="routed, replayed over complexity thresholds")  # fmt: skip
    for (name, result), marker in zip(report["policies"].items(), "os*", strict=True):
        point = (result["seconds"]["mean"] * 1e3, result["exact_share"]["all"][0] * 100)
        axes.plot(*point, marker, markersize=11, label=f"{name} (measured)")
        axes.annotate(name, point, textcoords="offset points", xytext=(8, -12))
    axes.set_xlabel("mean latency of a request, ms")
    axes.set_ylabel("exact answers, %")
    axes.set_title(f"{report['requests']} held-out demo conversations, 70 % simple and 30 % complex")
    axes.legend(loc="center right")
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--split", choices=("combinations", "wordings"), default="combinations")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--json", type=Path, help="write the report here; the picture goes beside it as .svg")
    options = parser.parse_args()
    cases = list(islice(conversations(options.split, options.seed), options.requests + WARM_UP))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in POLICIES}
    with running_server({}) as address, httpx.Client(base_url=address, timeout=120) as client:
        for case in tqdm(cases, unit="conversation"):
            for name, model in POLICIES.items():  # in turn, so that a noisy minute hits all alike
                rows[name].append(ask(client, model, case))
    rows = {name: found[WARM_UP:] for name, found in rows.items()}
    policies = {name: summary(found) for name, found in rows.items()}
    quality = Policy().quality_threshold
    thresholds = sorted({0.0, *(i / 20 for i in range(1, 20)), 1.01})
    report = {
        **environment(options.seed),
        "split": options.split,
        "requests": options.requests,
        "policies": policies,
        "latency_ratio_routed_to_refine": policies["routed"]["seconds"]["mean"]
        / policies["always refine"]["seconds"]["mean"],
        "curve": [replay(rows["always draft"], rows["always refine"], at, quality) for at in thresholds],
    }
    publish(report, options.json)
    if options.json:
        picture(report, options.json.with_suffix(".svg"))


if __name__ == "__main__":
    main()
