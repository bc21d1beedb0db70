"""How often a demo model gives the one right answer, by family, decoded by transformers' own `generate`."""

from collections import defaultdict
from itertools import islice

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DiffusionGemmaForBlockDiffusion

from demo_models import store
from demo_models.tasks import Conversation, Split, conversations

BATCH = 32


def accuracy_by_family(name: str, split: Split, count: int, complex_share: float = 0.3, seed: int = 77) -> dict:
    """Share of exact answers of a stored model over `count` conversations: per family, and over simple and complex."""
    cases = list(islice(conversations(split, seed, complex_share), count))
    right: dict[str, list[bool]] = defaultdict(list)
    for case, answer in zip(cases, answers(name, cases), strict=True):
        for group in (case.family, "all complex" if case.is_complex else "all simple", "all"):
            right[group].append(case.is_right(answer))
    return {group: {"exact": round(sum(r) / len(r), 4), "of": len(r)} for group, r in sorted(right.items())}


def answers(name: str, cases: list[Conversation]) -> list[str]:
    """The stored model's greedy (refine) or seeded (draft) answers, in batches."""
    tokenizer = AutoTokenizer.from_pretrained(store.path(name))
    load = DiffusionGemmaForBlockDiffusion if name == "draft" else AutoModelForCausalLM
    model = load.from_pretrained(store.path(name), dtype=torch.float32).eval()
    torch.manual_seed(0)
    texts = []
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
        options = {} if name == "draft" else {"do_sample": False}
        output = model.generate(**inputs, **options)
        output = output if isinstance(output, torch.Tensor) else output.sequences
        texts += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts
