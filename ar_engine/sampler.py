"""Choosing tokens from logits, each row on its own.

A row's choice is a function of its logits, its request's seed and its position, and of nothing else: not of its neighbours, nor of what was
tried there. So a tried token x is right with probability p(x), and where it is wrong, the choice has the distribution of p without x: what
speculative sampling asks for (Leviathan et al., arXiv 2211.17192, with a proposal that puts all its mass on x), and the same seed gives the same
answer with any draft or none.
"""

import numpy as np
import torch
from torch import Tensor

from ar_engine.sequence import Choice, Row

PIECE = 64  # rows looked at together: of 262,144 logits each, what is made of them takes 1.1 GB


def choose(logits: Tensor, rows: list[Row], typical_floor: float, typical_share: float) -> list[Choice]:
    """What each row says.

    Args:
        logits: (R, V) of any float dtype.
        rows: R of them.
        typical_floor: a tried token is likely enough if p(x) >= min(typical_floor, typical_share * exp(-H)), where p is the model's distribution
            and H its entropy in nats (typical acceptance: Cai et al., arXiv 2401.10774) ...
        typical_share: ... where that is asked.
    """
    pieces = [slice(begin, begin + PIECE) for begin in range(0, len(rows), PIECE)]
    return [choice for at in pieces for choice in _choose(logits[at].float(), rows[at], typical_floor, typical_share)]


def _choose(logits: Tensor, rows: list[Row], typical_floor: float, typical_share: float) -> list[Choice]:
    adjusted = _penalised(logits, rows)
    tokens = adjusted.argmax(dim=-1)
    for cut in (
        False,
        True,
    ):  # apart, because the order in which probabilities are summed decides what a random number means
        drawn = [i for i, row in enumerate(rows) if row.sampling.temperature > 0 and _cuts(row) == cut]
        if drawn:
            tokens[drawn] = _draw(adjusted[drawn], [rows[i] for i in drawn], cut)
    choices = [Choice(token) for token in tokens.tolist()]
    asked = [i for i, row in enumerate(rows) if row.told or row.lenient]
    if asked:
        told = _tell(logits[asked], tokens[asked], [rows[i] for i in asked], typical_floor, typical_share)
        for i, choice in zip(asked, told, strict=True):
            choices[i] = choice
    return choices


def random_number(seed: int, position: int) -> float:
    """In [0, 1), of a seed and a position; Philox as NumPy has it."""
    return np.random.Generator(np.random.Philox(key=seed % 2**64, counter=position)).random()


def _penalised(logits: Tensor, rows: list[Row]) -> Tensor:
    """Logits z, for tokens seen so far z / r where z > 0 and z * r elsewhere, less presence + frequency * count for those of the answer.

    Source: Keskar et al., arXiv 1909.05858 (repetition); OpenAI's API reference (presence, frequency).
    """
    if not any(row.sampling.penalises for row in rows):
        return logits
    logits = logits.clone()
    for i, row in enumerate(rows):
        sampling, z = row.sampling, logits[i]
        if sampling.repetition_penalty != 1:
            seen = torch.tensor(sorted({*row.prompt, *row.answer}), device=z.device)
            score, penalty = z[seen], sampling.repetition_penalty
            z[seen] = torch.where(score > 0, score / penalty, score * penalty)
        if row.answer and (sampling.presence_penalty or sampling.frequency_penalty):
            said, count = torch.tensor(row.answer, device=z.device).unique(return_counts=True)
            z[said] -= sampling.presence_penalty + sampling.frequency_penalty * count
    return logits


def _cuts(row: Row) -> bool:
    return row.sampling.top_p < 1 or row.sampling.top_k > 0


def _draw(logits: Tensor, rows: list[Row], cut: bool) -> Tensor:
    """(R,) int64, each drawn from its softmax(z / T), perhaps cut to the most likely tokens, by inverting the sum of probabilities."""
    device = logits.device
    temperature = torch.tensor([row.sampling.temperature for row in rows], device=device)
    number = torch.tensor([random_number(row.sampling.seed, row.position) for row in rows], dtype=torch.float64)
    scaled = logits / temperature[:, None]
    order = None
    if cut:
        scaled, order = scaled.sort(dim=-1, descending=True, stable=True)
    p = scaled.double().softmax(dim=-1)
    if cut:
        p = _cut(p, rows)
    total = p.cumsum(dim=-1)
    # The last sum may fall short of 1 by rounding; below the sum of all there is always a token whose probability is not 0.
    target = number.to(device)[:, None] * total[:, -1:]
    index = torch.searchsorted(total, target, right=True).clamp_(max=logits.shape[1] - 1)
    return (index if order is None else order.gather(1, index)).squeeze(1)


def _cut(p: Tensor, rows: list[Row]) -> Tensor:
    """Falling probabilities (R, V) with 0 for those beyond the first top_k, and then beyond the first that sum up to top_p of the rest."""
    most = torch.tensor([row.sampling.top_k or p.shape[1] for row in rows], device=p.device)
    p = p.masked_fill(torch.arange(p.shape[1], device=p.device) >= most[:, None], 0.0)
    share = torch.tensor([row.sampling.top_p for row in rows], dtype=p.dtype, device=p.device)
    before = p.cumsum(dim=-1) - p
    beyond = before >= (share * p.sum(dim=-1))[:, None]
    beyond[:, 0] = False
    return p.masked_fill(beyond & (share < 1)[:, None], 0.0)


def _tell(logits: Tensor, tokens: Tensor, rows: list[Row], typical_floor: float, typical_share: float) -> list[Choice]:
    logprobs = logits.log_softmax(dim=-1)
    entropy = -(logprobs.exp() * logprobs.clamp(min=-1e30)).sum(dim=-1)
    tried = torch.tensor([max(row.tried, 0) for row in rows], device=logits.device)
    of_tried = logprobs.gather(1, tried[:, None])
    rank = (logits > logits.gather(1, tried[:, None])).sum(dim=-1)
    least = (typical_share * (-entropy).exp()).clamp(max=typical_floor)
    likely = of_tried.squeeze(1).exp() >= least
    asked = max(row.sampling.logprobs or 0 for row in rows)
    top = logprobs.topk(min(asked, logits.shape[1]), dim=-1)
    columns = (
        tokens.tolist(),
        likely.tolist(),
        logprobs.gather(1, tokens[:, None]).squeeze(1).tolist(),
        of_tried.squeeze(1).tolist(),
        rank.tolist(),
        logits.argmax(dim=-1).tolist(),
        top.indices.tolist(),
        top.values.tolist(),
    )
    return [
        Choice(
            token,
            row.lenient and good,
            own,
            other,
            place,
            best,
            tuple(zip(ids, values, strict=True))[: row.sampling.logprobs or 0],
        )
        for row, token, good, own, other, place, best, ids, values in zip(rows, *columns, strict=True)
    ]
