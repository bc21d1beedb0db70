"""Constraint verifiers against IFEval's strict verdicts, and constraints read out of the prompts' text alone.

    python -m benchmarks.verifiers --data DIR [--json FILE]

DIR holds JSON lines in IFEval's form: key, prompt, instruction_id_list, kwargs, response, and followed, the strict verdict
on each instruction. A constraint that was read counts as right when its kind and its arguments equal a labelled one's; kinds
that IFEval has no instruction for are not counted, nor is English where a casing label implies it. Labels of one row that
bound the same count are one range, and all its keywords are one list.
"""

import argparse
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._harness import environment, publish
from classifiers.api import Constraint
from classifiers.asked import read_constraints
from classifiers.verifiers.constraints import arguments_of, check

PLAIN = (
    "Tell me how the river was named, who lived at its banks and what they traded with their neighbours there. " * 19
)
Row = dict[str, Any]
Key = tuple[str, str]  # kind, and arguments as JSON


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the constraint verifiers on IFEval's rows.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [
        json.loads(line) for path in sorted(options.data.glob("*.jsonl")) for line in path.read_bytes().splitlines()
    ]
    if not rows:
        parser.error(f"expected *.jsonl files with rows in {options.data.name}, got none")
    unknown = leave_out_unknown(rows)
    report = environment(seed=0) | {
        "rows": len(rows),
        "left_out": unknown,
        "agreement": agreement(rows),
        "read": reading(rows),
        "microseconds": latency(rows),
    }
    publish(report, options.json)


def leave_out_unknown(rows: Sequence[Row]) -> dict[str, int]:
    """Take instructions that we have no name for out of the rows; how many of each there were."""
    unknown = Counter(name for row in rows for name in row["instruction_id_list"] if name not in INSTRUCTIONS)
    for row in rows if unknown else ():
        keep = [at for at, name in enumerate(row["instruction_id_list"]) if name in INSTRUCTIONS]
        row.update({part: [row[part][at] for at in keep] for part in ("instruction_id_list", "kwargs", "followed")})
    return dict(sorted(unknown.items()))


def agreement(rows: Sequence[Row]) -> dict[str, Any]:
    """Share of verdicts equal to IFEval's strict ones, per instruction and per family."""
    equal: dict[str, list[bool]] = defaultdict(list)
    differ = []
    for row in rows:
        for name, kwargs, followed in zip(row["instruction_id_list"], row["kwargs"], row["followed"], strict=True):
            wanted = (labelled(name, kwargs), *IMPLIED.get(name, ()))
            passed = all(check(row["response"], constraint).passed for constraint in wanted)
            for group in ("overall", name.split(":")[0], name):
                equal[group].append(passed == followed)
            if passed != followed:
                differ.append({"key": row["key"], "instruction": name, "ours": passed, "strict": followed})
    shares = {group: {"count": len(hits)} | wilson(sum(hits), len(hits)) for group, hits in sorted(equal.items())}
    return {"by_group": shares, "disagreements": differ}


def reading(rows: Sequence[Row]) -> dict[str, Any]:
    """Precision and recall of what `read_constraints` finds in the prompts."""
    right, read, wanted = Counter[str](), Counter[str](), Counter[str]()
    wrong, missed = [], []
    for row in rows:
        labels = Counter(keys(labels_of(row)))
        found = Counter(key for key in keys(read_constraints(conversation(row))) if key[0] in KINDS)
        found -= Counter(set(keys(implied(row))) - set(labels))
        both = labels & found
        for counter, some in ((right, both), (read, found), (wanted, labels)):
            for key, count in some.items():
                counter.update({key[0]: count, "overall": count})
        wrong += [{"key": row["key"], "kind": key[0]} for key in (found - both).elements()]
        missed += [{"key": row["key"], "kind": key[0]} for key in (labels - both).elements()]
    kinds = {
        kind: {"precision": wilson(right[kind], read[kind]), "recall": wilson(right[kind], wanted[kind])}
        for kind in sorted(wanted | read)
    }
    return {"by_kind": kinds, "wrong": wrong, "missed": missed}


def latency(rows: Sequence[Row]) -> dict[str, Any]:
    """Microseconds a call: reading a request, a plain one of 2,000 characters, and each kind of check."""
    timings: dict[str, list[float]] = defaultdict(list)
    plain = ({"role": "user", "content": PLAIN[:2000]},)
    for row in rows:
        messages = conversation(row)
        timings["read_constraints"].append(microseconds(lambda messages=messages: read_constraints(messages)))
        timings["read_constraints, 2,000 plain characters"].append(microseconds(lambda: read_constraints(plain)))
        for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            constraint, text = labelled(name, kwargs), row["response"]
            timings[f"check {constraint.kind}"].append(
                microseconds(lambda text=text, constraint=constraint: check(text, constraint))
            )
    return {
        name: {"p50": round(float(np.percentile(values, 50)), 1), "p99": round(float(np.percentile(values, 99)), 1)}
        for name, values in sorted(timings.items())
    }


def microseconds(call: Callable[[], object]) -> float:
    call()
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1000


def conversation(row: Row) -> tuple[dict[str, Any], ...]:
    return ({"role": "user", "content": row["prompt"]},)


def labels_of(row: Row) -> list[Constraint]:
    """A row's labels, each once, bounds of the same count made one range and keywords one list."""
    ranges: dict[Key, dict[str, Any]] = {}
    for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        constraint = labelled(name, kwargs)
        arguments = dict(constraint.args)
        limits = {bound: arguments.pop(bound) for bound in ("low", "high") if bound in arguments}
        kind = constraint.kind
        if kind == "keyword_frequency" and limits == {"low": 1}:
            kind, arguments, limits = "keywords", {"words": (arguments["word"],)}, {}  # the same said twice
        words = arguments.pop("words", ())
        known = ranges.setdefault(key_of(kind, arguments), {"kind": kind, "args": arguments})
        known["args"] |= limits
        if words:
            known["args"]["words"] = (*known["args"].get("words", ()), *words)
    return [Constraint(**known) for known in ranges.values()]


def implied(row: Row) -> list[Constraint]:
    return [constraint for name in row["instruction_id_list"] for constraint in IMPLIED.get(name, ())]


def keys(constraints: Iterable[Constraint]) -> Iterable[Key]:
    for constraint in constraints:
        yield key_of(constraint.kind, arguments_of(constraint))


def key_of(kind: str, arguments: dict[str, Any]) -> Key:
    return kind, json.dumps({name: comparable(value) for name, value in sorted(arguments.items())}, ensure_ascii=False)


def comparable(value: Any) -> Any:
    """Case, order and white space don't tell arguments apart."""
    if isinstance(value, str):
        return " ".join(value.lower().split())
    return sorted({comparable(item) for item in value}) if isinstance(value, list | tuple) else value


def bounds(relation: str, count: int) -> dict[str, int]:
    """IFEval's two relations."""
    return {"low": count} if relation == "at least" else {"high": count - 1}


OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")  # IFEval has no others
INSTRUCTIONS: dict[str, Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]] = {
    "change_case:capital_word_frequency": lambda k: (
        "capital_words",
        bounds(k["capital_relation"], k["capital_frequency"]),
    ),
    "change_case:english_capital": lambda k: ("uppercase", {}),
    "change_case:english_lowercase": lambda k: ("lowercase", {}),
    "combination:repeat_prompt": lambda k: ("repeats_prompt", {"prompt": k["prompt_to_repeat"]}),
    "combination:two_responses": lambda k: ("two_responses", {}),
    "detectable_content:number_placeholders": lambda k: ("placeholders", {"low": k["num_placeholders"]}),
    "detectable_content:postscript": lambda k: ("postscript", {"marker": k["postscript_marker"]}),
    "detectable_format:constrained_response": lambda k: ("one_of", {"options": OPTIONS}),
    "detectable_format:json_format": lambda k: ("json", {}),
    "detectable_format:multiple_sections": lambda k: (
        "sections",
        {"marker": k["section_spliter"].strip(), "low": k["num_sections"]},
    ),
    "detectable_format:number_bullet_lists": lambda k: (
        "bullets",
        {"low": k["num_bullets"], "high": k["num_bullets"]},
    ),
    "detectable_format:number_highlighted_sections": lambda k: ("highlights", {"low": k["num_highlights"]}),
    "detectable_format:title": lambda k: ("title", {}),
    "keywords:existence": lambda k: ("keywords", {"words": tuple(k["keywords"])}),
    "keywords:forbidden_words": lambda k: ("forbidden", {"words": tuple(k["forbidden_words"])}),
    "keywords:frequency": lambda k: (
        "keyword_frequency",
        {"word": k["keyword"].strip()} | bounds(k["relation"], k["frequency"]),
    ),
    "keywords:letter_frequency": lambda k: (
        "letter_frequency",
        {"letter": k["letter"]} | bounds(k["let_relation"], k["let_frequency"]),
    ),
    "language:response_language": lambda k: ("language", {"code": k["language"]}),
    "length_constraints:nth_paragraph_first_word": lambda k: (
        "paragraph_first_word",
        {"paragraph": k["nth_paragraph"], "word": k["first_word"], "paragraphs": k["num_paragraphs"]},
    ),
    "length_constraints:number_paragraphs": lambda k: (
        "paragraphs",
        {"low": k["num_paragraphs"], "high": k["num_paragraphs"], "separator": "***"},
    ),
    "length_constraints:number_sentences": lambda k: ("sentences", bounds(k["relation"], k["num_sentences"])),
    "length_constraints:number_words": lambda k: ("words", bounds(k["relation"], k["num_words"])),
    "punctuation:no_comma": lambda k: ("forbidden_marks", {"marks": ","}),
    "startend:end_checker": lambda k: ("ends_with", {"phrase": k["end_phrase"]}),
    "startend:quotation": lambda k: ("quoted", {}),
}
ENGLISH = (Constraint(kind="language", args={"code": "en"}),)
IMPLIED = {"change_case:english_capital": ENGLISH, "change_case:english_lowercase": ENGLISH}  # checked, not always said
KINDS = {
    "capital_words", "uppercase", "lowercase", "repeats_prompt", "two_responses", "placeholders", "postscript", "one_of",
    "json", "sections", "bullets", "highlights", "title", "keywords", "forbidden", "keyword_frequency", "letter_frequency",
    "language", "paragraph_first_word", "paragraphs", "sentences", "words", "forbidden_marks", "ends_with", "quoted",
}  # fmt: skip


def labelled(name: str, kwargs: dict[str, Any]) -> Constraint:
    """Our name for one of IFEval's instructions."""
    kind, arguments = INSTRUCTIONS[name](kwargs)
    return Constraint(kind=kind, args=arguments)


def wilson(hits: int, count: int) -> dict[str, Any]:
    """A share and its 95 % interval. Source: Wilson, JASA 22 (1927)."""
    if not count:
        return {"share": None, "hits": 0, "of": 0}
    z, share = 1.96, hits / count
    middle, scale = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    interval = [round((middle - half) / scale, 4), round((middle + half) / scale, 4)]
    return {"share": round(share, 4), "interval_95": interval, "hits": hits, "of": count}


if __name__ == "__main__":
    main()
