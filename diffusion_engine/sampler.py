"""The canvases on the device, and what a denoising step does to them.

Everything here is tensor operations of fixed shapes without a host's decision, so that on a GPU it is part of the step's CUDA graph.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_engine.config import ModelConfig
from moe_kernels.denoise_head import DenoiseHead
from moe_kernels.random_tokens import random_tokens


class Inputs(NamedTuple):
    """What a step needs to know of each of its B canvases, as two tensors that are copied to the device at once."""

    whole: Tensor  # (5, B) int64
    real: Tensor  # (3, B) float32

    @property
    def slots(self) -> Tensor:
        """(B,) int64."""
        return self.whole[0]

    @property
    def start(self) -> Tensor:
        """(B,) int64: position of the first of the C."""
        return self.whole[1]

    @property
    def step(self) -> Tensor:
        """(B,) int64: 1 for a canvas's first."""
        return self.whole[2]

    @property
    def seed(self) -> Tensor:
        """(B,) int64."""
        return self.whole[3]

    @property
    def stability(self) -> Tensor:
        """(B,) int64."""
        return self.whole[4]

    @property
    def temperature(self) -> Tensor:
        """(B,) float32."""
        return self.real[0]

    @property
    def entropy_bound(self) -> Tensor:
        """(B,) float32, nats."""
        return self.real[1]

    @property
    def confidence(self) -> Tensor:
        """(B,) float32, nats."""
        return self.real[2]


@dataclass
class Canvases:
    """The state of every slot's canvas; C positions, S slots."""

    vocab: int
    tokens: Tensor  # (S, C) int64: what the next step reads
    given: Tensor  # (S, C) int64: a fixed token, or -1
    soft: Tensor  # (S, C, H): mean embedding of the last step's distribution, unscaled
    best: Tensor  # (S, C) int64: the most likely token after the last step
    logprob: Tensor  # (S, C) float32, of it
    entropy: Tensor  # (S, C) float32, nats, of the last step
    entropy_sum: Tensor  # (S, C) float32, over all steps
    changed_at: Tensor  # (S, C) int64: the last step that changed `best`
    taken: Tensor  # (S, C) bool: positions whose token the last step took
    agreed: Tensor  # (S,) int64: over how many steps `best` has stayed the same

    @classmethod
    def empty(cls, config: ModelConfig, slots: int, dtype: torch.dtype, device: torch.device) -> "Canvases":
        """Slots without a canvas."""
        shape = (slots, config.canvas)
        tokens, given, best, changed_at = torch.zeros((4, *shape), dtype=torch.int64, device=device)
        logprob, entropy, entropy_sum = torch.zeros((3, *shape), device=device)
        soft = torch.zeros(*shape, config.hidden, dtype=dtype, device=device)
        taken = torch.zeros(shape, dtype=torch.bool, device=device)
        agreed = torch.zeros(slots, dtype=torch.int64, device=device)
        return cls(config.vocab, tokens, given, soft, best, logprob, entropy, entropy_sum, changed_at, taken, agreed)

    def begin(self, slots: Tensor, start: Tensor, seed: Tensor, given: Tensor | None) -> None:
        """Put a canvas of noise, with the `given` tokens (B, C) in place, into each slot."""
        noise = self._noise(start, torch.zeros_like(start), seed)
        self.given[slots] = -1 if given is None else given
        self.tokens[slots] = noise if given is None else torch.where(given >= 0, given, noise)
        self.best[slots] = -1
        for state in (self.soft, self.entropy_sum, self.changed_at, self.agreed):
            state[slots] = 0

    def advance(self, now: Inputs, head: DenoiseHead) -> Tensor:
        """Take in what the head says of B canvases, and prepare their next step.

        Returns:
            (B, 2) float32: whether the canvas is stable and confident, and its mean entropy.

        Source: `EntropyBoundSampler` and `StableAndConfidentStoppingCriteria` in transformers.
        """
        slots, shape = now.slots, (len(now.slots), self.tokens.shape[1])
        best, entropy = head.argmax.view(shape), head.entropy.view(shape)
        taken = take(entropy, now.entropy_bound)
        tokens = head.sample.view(shape)
        if tokens.is_cuda or not taken.all():  # a graph can't choose; a CPU is spared the draws
            tokens = torch.where(taken, tokens, self._noise(now.start, now.step, now.seed))
            given = self.given[slots]
            tokens = torch.where(given >= 0, given, tokens)
        same = best == self.best[slots]
        agreed = torch.where(same.all(dim=1), self.agreed[slots] + 1, 0)
        mean = entropy.mean(dim=1)
        settled = (agreed >= now.stability) & (mean < now.confidence)
        self.changed_at[slots] = torch.where(same, self.changed_at[slots], now.step[:, None])
        self.entropy_sum[slots] += entropy
        self.tokens[slots], self.taken[slots], self.best[slots], self.agreed[slots] = tokens, taken, best, agreed
        self.entropy[slots], self.logprob[slots] = entropy, head.argmax_logprob.view(shape)
        self.soft[slots] = head.soft.view(*shape, -1)
        return torch.stack([settled, mean], dim=1)

    def _noise(self, start: Tensor, step: Tensor, seed: Tensor) -> Tensor:
        return random_tokens(seed, start, step, self.tokens.shape[1], self.vocab)


def take(entropy: Tensor, bound: Tensor) -> Tensor:
    """Which positions a step takes: in rising order of entropy, as long as those before sum up to at most the bound.

    Args:
        entropy: (B, C) float32, nats.
        bound: (B,) float32, nats.

    Returns:
        (B, C) bool; at least one of each row. Source: Ben-Hamu et al., arXiv 2505.24857.
    """
    rising, order = entropy.sort(dim=1)
    before = rising.cumsum(dim=1) - rising
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, before <= bound[:, None])
