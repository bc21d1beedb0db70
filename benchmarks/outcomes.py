"""Label what the demo models get right, as training data for the classifiers: `python -m benchmarks.outcomes --out FILE`.

Conversations come from the training split with a seed of their own, so that nothing a benchmark asks has been seen. Each is
drafted as the server would; the refiner answers in batches. The rows are those that `classifiers.train` reads.
"""

import argparse
from itertools import islice
from pathlib import Path

import msgspec
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo_models import store
from demo_models.evaluate import answers
from demo_models.tasks import conversations
from diffusion_engine import DiffusionGemmaModel

BATCH = 64


def main() -> None:
    """Parse the command line and label."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outcomes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1001)
    parser.add_argument("--split", choices=("train", "combinations", "wordings"), default="train")
    options = parser.parse_args()
    drafter = DiffusionGemmaModel.from_pretrained(str(store.path("draft")))
    cases = list(islice(conversations(options.split, options.seed), options.count))
    drafts = [
        draft
        for at in tqdm(range(0, len(cases), BATCH), unit="batch")
        for (draft,) in drafter.drafts([list(case.messages) for case in cases[at : at + BATCH]])
    ]
    refiner = AutoModelForCausalLM.from_pretrained(store.path("refine"), dtype=torch.float32).eval()
    refined = answers(refiner, AutoTokenizer.from_pretrained(store.path("refine")), cases)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("wb") as out:
        for case, draft, answer in zip(cases, drafts, refined, strict=True):
            row = {
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
                },
                "draft_right": case.is_right(draft.text),
                "refine_right": case.is_right(answer),
            }
            out.write(msgspec.json.encode(row) + b"\n")


if __name__ == "__main__":
    main()
