"""Where greedy answers in bfloat16 differ, and by how little.

The reference is transformers' `generate`, one by one, in bfloat16. A matrix product in bfloat16 is rounded differently for one row than for
many, so two right programs part where the two best tokens are (nearly) equally likely; how far apart their logits are says whether it is that.
"""

from collections.abc import Sequence
from copy import copy
from functools import partial
from statistics import mean
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ar_engine.api import Draft, RefineResult
from benchmarks._refine_systems import DEMO, Theirs, demo, our_engine, refine
from demo_models.tasks import Conversation

BATCH = 16
END = -1  # stands for any token that ends an answer


async def bfloat16(cases: Sequence[Conversation], drafts: Sequence[Draft]) -> dict[str, Any]:
    """Ours without and with drafts, and what transformers itself does in batches and in float32."""
    make = partial(demo, torch.bfloat16)
    theirs, exact = Theirs(make), Theirs(demo)
    said, gaps = zip(*(_with_gaps(theirs, case) for case in tqdm(cases, desc="bfloat16", disable=None)), strict=True)
    found: dict[str, list[list[int]]] = {"ours, fresh": [], "ours, exact, with drafts": []}
    async with our_engine(make) as engine:
        for case, draft in zip(cases, drafts, strict=True):
            found["ours, fresh"].append(_ids((await refine(engine, case))[0]))
            result, _ = await refine(engine, case, mode="exact", draft=draft)
            found["ours, exact, with drafts"].append(_ids(result))
    batches = [theirs.answers(cases[first : first + BATCH]) for first in range(0, len(cases), BATCH)]
    found[f"transformers, batches of {BATCH}"] = [_ended(one) for batch in batches for one in batch]
    found["transformers, float32"] = [_ended(exact.answers([case])[0]) for case in cases]
    every = np.concatenate(gaps)
    return {
        "requests": len(cases),
        "checkpoint": DEMO.rsplit("/", 1)[-1],
        "reference": "transformers' generate, one by one, bfloat16",
        "tokens": len(every),
        "top2_gap_of_all_tokens": {
            "p1": float(np.quantile(every, 0.01)),
            "p5": float(np.quantile(every, 0.05)),
            "p50": float(np.quantile(every, 0.5)),
            "ties_share": float(np.mean(every == 0)),
        },
        "reference_right_share": _right(cases, said, theirs),
        "systems": {
            name: {
                "mismatch_rate": mean(a != b for a, b in zip(answers, said, strict=True)),
                "right_share": _right(cases, answers, theirs),
                "mismatches": [
                    _mismatch(*one, theirs, exact)
                    for one in zip(cases, answers, said, gaps, strict=True)
                    if one[1] != one[2]
                ],
            }
            for name, answers in found.items()
        },
    }


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """Where two lists part; the shorter one's length where it is the other's beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _mismatch(
    case: Conversation, answer: list[int], said: list[int], gaps: np.ndarray, theirs: Theirs, exact: Theirs
) -> dict[str, Any]:
    """The first token that differs: the distance of the two best logits there, in the reference and in float32."""
    at = first_difference(answer, said)
    ids = torch.tensor([[*theirs.prompt(case), *said[:at]]])
    with torch.inference_mode():
        best = exact.model(input_ids=ids, logits_to_keep=1).logits[0, -1].topk(2).values
    return {
        "family": case.family,
        "at": at,
        "of": len(said),
        "top2_gap": float(gaps[at]),
        "top2_gap_in_float32": float(best[0] - best[1]),
    }


def _with_gaps(theirs: Theirs, case: Conversation) -> tuple[list[int], np.ndarray]:
    """The reference's answer, and for each of its tokens how far the best logit is from the second."""
    ids = torch.tensor([theirs.prompt(case)])
    generation = copy(theirs.generation)
    generation.output_logits = generation.return_dict_in_generate = True
    output = theirs.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=generation)
    best = torch.cat(output.logits).float().topk(2, dim=-1).values
    answer = theirs.read(0, output.sequences[0, ids.shape[1] :].tolist())
    return _ended(answer), (best[:, 0] - best[:, 1]).numpy()[: answer.tokens]


def _ended(answer: Any) -> list[int]:
    return [*answer.ids, *[END] * (answer.tokens - len(answer.ids))]


def _ids(result: RefineResult) -> list[int]:
    return [*result.token_ids, *[END] * (result.completion_tokens - len(result.token_ids))]


def _right(cases: Sequence[Conversation], answers: Sequence[list[int]], theirs: Theirs) -> float:
    texts = [
        theirs.tokenizer.decode([token for token in ids if token != END], skip_special_tokens=True) for ids in answers
    ]
    return mean(case.is_right(text) for case, text in zip(cases, texts, strict=True))
