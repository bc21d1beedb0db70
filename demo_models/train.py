"""Train a demo model from nothing: `python -m demo_models.train --model draft|refine`.

The draft learns uniform-state diffusion: a canvas holding the answer is corrupted at a rate t ~ U[0, 1] with random tokens,
and the model predicts the clean one; in half of the steps it first makes a guess without gradient, which then comes back
to it as self-conditioning. The refiner learns the next token of the answer. Both see the training split only.

The draft ships with its experts in four bits: train it with `--out FOLDER`, remove demo_models/models/draft, and then
`draftgate convert FOLDER demo_models/models/draft --to modelopt`. The accuracies on its card are from before that.
"""

import argparse
import ctypes
import json
import math
import random
import subprocess
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from demo_models import configs, store
from demo_models.evaluate import accuracy_by_family
from demo_models.tasks import Conversation, Split, conversations
from demo_models.tokenizer import make_tokenizer

BATCH = 32
POOL = 16  # batches sorted by length together, to waste little on padding
WARMUP_STEPS = 100
PAD_WEIGHT = 0.1  # of the loss at canvas positions after the end of the answer
COMPLEX_SHARE = {"draft": 0.2, "refine": 0.6}
EVALUATE_EVERY, EVALUATE_FEW = 1500, 160  # steps, conversations: the curve of accuracy on the card
EMPHASIS = {  # families that are learned last come more often
    "draft": {"carrier": 4, "arrival": 4, "summary": 4, "which_sold": 4, "follow_up": 2},
    "refine": {"which_sold": 2, "cart_total": 2, "compare_carts": 3, "days_left": 2},
}
LEARNING_RATE = {"draft": 2e-3, "refine": 1.5e-3}
BUILD = Path(".build/demo_models")


def dense_experts(experts: nn.Module, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """All experts on all tokens as two large products, weighted by the router (0 where not chosen).

    y[t] = sum_e weight[t, e] * down[e] (gelu(gate[e] x[t]) * up[e] x[t]); hidden and y (T, H), top_k_index and
    top_k_weights (T, K). Eight tiny experts train faster this way than gathered one by one.
    """
    tokens, count = hidden.shape[0], experts.num_experts
    weights = hidden.new_zeros(tokens, count).scatter(1, top_k_index, top_k_weights.to(hidden.dtype))
    gate, up = (hidden @ experts.gate_up_proj.flatten(0, 1).T).view(tokens, count, -1).chunk(2, dim=-1)
    inner = experts.act_fn(gate) * up * weights[..., None]
    return inner.flatten(1) @ experts.down_proj.transpose(1, 2).flatten(0, 1)


class Batch:
    """Token ids of some conversations, prompts and answers apart, padded on the right."""

    def __init__(self, examples: list[tuple[list[int], list[int]]], pad: int) -> None:
        """Pad `(prompt ids, answer ids with end of turn)` pairs."""
        self.prompt_lengths = torch.tensor([len(prompt) for prompt, _ in examples])
        self.prompts = _padded([prompt for prompt, _ in examples], int(self.prompt_lengths.max()), pad)
        self.canvases = _padded([answer for _, answer in examples], configs.CANVAS, pad)
        self.answer_lengths = torch.tensor([len(answer) for _, answer in examples])
        self.whole = [prompt + answer for prompt, answer in examples]


def _padded(rows: list[list[int]], length: int, pad: int) -> Tensor:
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


def batches(model: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[Batch]:
    """Endless batches of the training split."""
    rng = random.Random(seed)
    source = conversations("train", seed, COMPLEX_SHARE[model], emphasis=EMPHASIS[model])
    end = [tokenizer.convert_tokens_to_ids("<turn|>")]
    while True:
        pool = [_encode(conversation, tokenizer, end) for conversation in islice(source, BATCH * POOL)]
        pool.sort(key=lambda example: len(example[0]) + (len(example[1]) if model == "refine" else 0))
        chunks = [pool[at : at + BATCH] for at in range(0, len(pool), BATCH)]
        rng.shuffle(chunks)
        yield from (Batch(chunk, tokenizer.pad_token_id) for chunk in chunks)


def _encode(
    conversation: Conversation, tokenizer: PreTrainedTokenizerFast, end: list[int]
) -> tuple[list[int], list[int]]:
    text = tokenizer.apply_chat_template(list(conversation.messages), add_generation_prompt=True, tokenize=False)
    encode = tokenizer.backend_tokenizer.encode
    answer = encode(conversation.answer).ids + end
    if len(answer) > configs.CANVAS:
        raise ValueError(f"an answer must fit one canvas of {configs.CANVAS} tokens, got {len(answer)}")
    return encode(text).ids, answer


def draft_loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
    """Cross-entropy of the clean canvas given a corrupted one, mean over positions with padding at `PAD_WEIGHT`."""
    config = model.config
    size, canvas = batch.canvases.shape
    rate = torch.rand(size, 1, generator=rng)
    noise = torch.randint(config.text_config.vocab_size, (size, canvas), generator=rng)
    corrupted = torch.where(torch.rand(size, canvas, generator=rng) < rate, noise, batch.canvases)
    prompt = torch.arange(batch.prompts.shape[1]) < batch.prompt_lengths[:, None]
    inputs = {
        "past_key_values": model.model.encoder(input_ids=batch.prompts).past_key_values,
        "decoder_input_ids": corrupted,
        "decoder_attention_mask": torch.cat([prompt, torch.ones(size, canvas, dtype=torch.bool)], dim=1),
        "decoder_position_ids": batch.prompt_lengths[:, None] + torch.arange(canvas),
    }
    guess = None
    if torch.rand((), generator=rng) < 0.5:
        with torch.no_grad():  # sampling conditions on logits divided by the step's temperature
            temperature = 0.4 + 0.4 * rate[..., None]
            guess = model(**inputs).logits / temperature
    logits = model(self_conditioning_logits=guess, **inputs).logits
    weight = torch.where(torch.arange(canvas) < batch.answer_lengths[:, None], 1.0, PAD_WEIGHT)
    loss = cross_entropy(logits.flatten(0, 1), batch.canvases.flatten(), reduction="none")
    return (loss * weight.flatten()).sum() / weight.sum()


def refine_loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
    """Cross-entropy of the next token, mean over the answers' tokens; causal attention needs no padding mask."""
    length = max(len(row) for row in batch.whole)
    ids = _padded(batch.whole, length, model.config.pad_token_id)
    at = torch.arange(length)
    first = batch.prompt_lengths[:, None]
    is_answer = (at >= first) & (at < first + batch.answer_lengths[:, None])
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][is_answer[:, 1:]]
    logits = model.lm_head(hidden)
    cap = model.config.final_logit_softcapping
    return cross_entropy(torch.tanh(logits / cap) * cap, ids[:, 1:][is_answer[:, 1:]])


def _optimizers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for everything else.

    On the draft Muon needs half the steps of AdamW alone: loss 0.48 against 0.65 after 750 steps, at the same time a step.
    """
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and ".layers." in name]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]


def train(name: str, steps: int, seed: int, threads: int, evaluate: int, out: Path) -> None:
    """Train, resuming from the last checkpoint of the same run, then evaluate and write the model to `out`."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    torch.manual_seed(seed)
    model, loss_of = (configs.new_draft(), draft_loss) if name == "draft" else (configs.new_refine(), refine_loss)
    if name == "draft":
        ALL_EXPERTS_FUNCTIONS.register("dense", dense_experts)
        model.set_experts_implementation("dense")
    model.train()
    optimizers = _optimizers(model, LEARNING_RATE[name])
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / WARMUP_STEPS, max(0.0, (steps - step) / (steps - WARMUP_STEPS)))
        )
        for optimizer in optimizers
    ]
    rng = torch.Generator().manual_seed(seed)
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / "checkpoint.pt", folder / "log.jsonl"
    done, curve, accuracy, spent = 0, [], [], 0.0
    if checkpoint.exists():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for schedule, saved in zip(schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        rng.set_state(state["rng"])
        done, curve, accuracy, spent = state["done"], state["curve"], state["accuracy"], state["spent"]
    else:
        tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    started, recent = time.monotonic() - spent, []
    source = islice(batches(name, tokenizer, seed + done), steps - done)
    with tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True) as bar:
        for step, batch in enumerate(source, start=done + 1):
            loss = loss_of(model, batch, rng)
            model.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            recent.append(loss.item())
            bar.update()
            if step % 50 == 0 or step == steps:
                mean, recent = sum(recent) / len(recent), []
                if not math.isfinite(mean):
                    raise RuntimeError(f"the loss must stay finite, got {mean} at step {step}")
                curve.append([step, round(mean, 4)])
                seconds = round(time.monotonic() - started)
                bar.set_postfix(loss=f"{mean:.4f}")
                with log.open("a") as lines:
                    lines.write(json.dumps({"step": step, "loss": mean, "seconds": seconds}) + "\n")
            if step % EVALUATE_EVERY == 0 and step < steps:
                found = _accuracy(name, model, tokenizer, "combinations", EVALUATE_FEW)
                accuracy.append([step, *(found[group]["exact"] for group in ("all simple", "all complex"))])
            if step % 250 == 0 or step == steps:
                state = {
                    "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "schedules": [schedule.state_dict() for schedule in schedules],
                    "rng": rng.get_state(),
                    "done": step,
                    "curve": curve,
                    "accuracy": accuracy,
                }
                torch.save(state | {"spent": time.monotonic() - started}, folder / "checkpoint.tmp")
                (folder / "checkpoint.tmp").rename(checkpoint)
    _ship(out, name, model, tokenizer, {
        "seed": seed,
        "steps": steps,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE[name],
        "complex_share": COMPLEX_SHARE[name],
        "training_seconds": round(time.monotonic() - started),
        "threads": threads,
        "loss_curve": curve,
        "accuracy_curve": {"of": EVALUATE_FEW, "step, simple, complex": accuracy},
    }, evaluate)  # fmt: skip


def _accuracy(name: str, model: nn.Module, tokenizer: PreTrainedTokenizerFast, split: Split, count: int) -> dict:
    """Accuracy as the model will be served: the experts as transformers ships them, no dropout, weights as they are."""
    if name == "draft":
        model.set_experts_implementation("eager")
    model.eval()
    try:
        return accuracy_by_family(model, tokenizer, split, count)
    finally:
        model.train()
        if name == "draft":
            model.set_experts_implementation("dense")


def _ship(
    folder: Path, name: str, model: nn.Module, tokenizer: PreTrainedTokenizerFast, run: dict, evaluate: int
) -> None:
    """Write weights (bfloat16), configs, tokenizer and the card, with accuracies of the model as stored."""
    if name == "draft":
        model.set_experts_implementation("eager")
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stored = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    card = {
        "model": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "git_sha": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "torch": torch.__version__,
        **run,
        "accuracy": {
            split: accuracy_by_family(stored, tokenizer, split, evaluate) for split in ("combinations", "wordings")
        },
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks instead of mapping fresh ones each step: page faults cost a third of the time."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    trim_threshold, mmap_max = -1, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m demo_models.train", description=__doc__)
    parser.add_argument("--model", choices=("draft", "refine"), required=True)
    parser.add_argument("--steps", type=int, default=6000, help="also sets the length of the learning rate's decay")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=max(1, torch.get_num_threads()))
    parser.add_argument(
        "--evaluate", type=int, default=1000, help="conversations of each split in the final evaluation"
    )
    parser.add_argument("--out", type=Path, help="where the result goes; by default where the shipped one lies")
    options = parser.parse_args()
    out = options.out or store.path(options.model)
    train(options.model, options.steps, options.seed, options.threads, options.evaluate, out)


if __name__ == "__main__":
    main()
