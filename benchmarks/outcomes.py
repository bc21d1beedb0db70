"""Label what the demo models get right, as data for the classifiers: `python -m benchmarks.outcomes --out FILE`.

Conversations come from one split with a seed of their own, so that nothing a benchmark asks has been seen. Each is drafted
twice as the server would (the first draft is the one it would show), scored by the refiner, and answered by it. The rows are
those of `classifiers.outcomes`.
"""

import argparse
import asyncio
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from ar_engine.api import Draft, DraftScore, RefineRequest, RefineResult, RefineSettings, ScoreRequest
from ar_engine.engine import AutoregressiveEngine
from demo_models import store
from demo_models.tasks import Conversation, conversations
from diffusion_engine import DiffusionGemmaModel
from diffusion_engine.api import DraftResult

BATCH = 64


def row(case: Conversation, draft: DraftResult, others: list[str], score: DraftScore, refined: str) -> dict[str, Any]:
    """An outcome as `classifiers.outcomes` reads it."""
    return {
        "group": case.family,
        "messages": case.messages,
        "draft": {
            "text": draft.text,
            "finish_reason": draft.finish_reason,
            "steps": draft.signals.steps,
            "converged": draft.signals.converged,
            "token_entropy": draft.signals.token_entropy,
            "token_logprobs": draft.token_logprobs,
            "late_flips": draft.signals.late_flips,
            "score": {
                "token_logprobs": score.token_logprobs,
                "token_ranks": score.token_ranks,
                "agreeing_prefix": score.agreeing_prefix,
            },
            "others": others,
        },
        "draft_right": case.is_right(draft.text),
        "refine_right": case.is_right(refined),
        "refined": refined,
    }


async def label(cases: list[Conversation], drafter: DiffusionGemmaModel, refiner: AutoregressiveEngine) -> list[dict]:
    """Draft, score and refine a batch."""
    drafts = drafter.drafts([list(case.messages) for case in cases], candidates=2)
    rows = []
    for case, candidates in zip(cases, drafts, strict=True):
        first, other = sorted(candidates, key=lambda draft: draft.candidate)
        rows.append((case, first, [other.text]))
    scored = await asyncio.gather(*(_score(refiner, case, draft) for case, draft, _ in rows))
    refined = await asyncio.gather(*(_refine(refiner, case) for case in cases))
    return [row(*one, score, text) for one, score, text in zip(rows, scored, refined, strict=True)]


async def _score(refiner: AutoregressiveEngine, case: Conversation, draft: DraftResult) -> DraftScore:
    asked = Draft(text=draft.text, token_ids=draft.token_ids, tokenizer_fingerprint=draft.tokenizer_fingerprint)
    return await refiner.score(ScoreRequest(request_id="", messages=case.messages, draft=asked))


async def _refine(refiner: AutoregressiveEngine, case: Conversation) -> str:
    request = RefineRequest(request_id="", messages=case.messages)
    (result,) = [event async for event in refiner.refine(request) if isinstance(event, RefineResult)]
    return result.text


async def run(options: argparse.Namespace) -> None:
    """Label in batches, writing each as it comes."""
    drafter = DiffusionGemmaModel.from_pretrained(str(store.path("draft")), max_running=2 * BATCH)
    refiner = AutoregressiveEngine(
        RefineSettings(model=str(store.path("refine")), max_running=BATCH, max_waiting=4 * BATCH)
    )
    await refiner.start()
    cases = list(islice(conversations(options.split, options.seed), options.count))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("wb") as out:
        for at in tqdm(range(0, len(cases), BATCH), unit="batch"):
            for one in await label(cases[at : at + BATCH], drafter, refiner):
                out.write(msgspec.json.encode(one) + b"\n")
    await refiner.close()


def main() -> None:
    """Parse the command line and label."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outcomes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1001)
    parser.add_argument("--split", choices=("train", "combinations", "wordings"), default="train")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
