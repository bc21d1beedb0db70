"""How often a demo model gives the one right answer, by family, decoded by transformers' own `generate`."""

from collections import defaultdict
from itertools import islice

import torch
from transformers import DiffusionGemmaForBlockDiffusion, PreTrainedModel, PreTrainedTokenizerBase

from demo_models.tasks import Conversation, Split, conversations

BATCH = 32


def accuracy_by_family(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    count: int,
    complex_share: float = 0.3,
    seed: int = 77,
) -> dict[str, dict[str, float]]:
    """Share of exact answers over `count` conversations: per family, and over simple and complex."""
    cases = list(islice(conversations(split, seed, complex_share), count))
    right: dict[str, list[bool]] = defaultdict(list)
    for case, answer in zip(cases, answers(model, tokenizer, cases), strict=True):
        for group in (case.family, "all complex" if case.is_complex else "all simple", "all"):
            right[group].append(case.is_right(answer))
    return {group: {"exact": round(sum(r) / len(r), 4), "of": len(r)} for group, r in sorted(right.items())}


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cases: list[Conversation]) -> list[str]:
    """The model's greedy (autoregressive) or seeded (diffusion) answers, in batches."""
    options = {} if isinstance(model, DiffusionGemmaForBlockDiffusion) else {"do_sample": False}
    texts = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for at in range(0, len(cases), BATCH):
            prompts = [list(case.messages) for case in cases[at : at + BATCH]]
            inputs = tokenizer.apply_chat_template(
                prompts,
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
                padding=True,
                padding_side="left",
            )
            output = model.generate(**inputs, **options)
            output = output if isinstance(output, torch.Tensor) else output.sequences
            texts += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts
