"""From finished sequences to results: text, signals, and which of several candidates is best."""

import math
from collections.abc import Sequence as Listed

from msgspec.structs import replace

from diffusion_engine.api import DraftResult, DraftSignals
from diffusion_engine.infill import Template
from diffusion_engine.sequence import Sequence
from engine_core.chat import ChatTokenizer


def result_of(sequence: Sequence, tokenizer: ChatTokenizer, template: Template | None, elapsed_s: float) -> DraftResult:
    """A sequence that has ended, as its caller sees it."""
    ids = sequence.answer()
    reports, count = sequence.reports, len(ids)
    late = [changed > math.ceil(report.steps * 2 / 3) for report in reports for changed in report.changed_at]
    return DraftResult(
        text=tokenizer.decode(ids),
        token_ids=tuple(ids),
        token_logprobs=tuple([number for report in reports for number in report.logprobs][:count]),
        tokenizer_fingerprint=tokenizer.fingerprint,
        finish_reason="stop" if template and sequence.finish == "length" else sequence.finish or "deadline",
        prompt_tokens=len(sequence.prompt),
        filled=tuple(tokenizer.decode(ids[start:end]) for start, end in template.gaps) if template else (),
        candidate=sequence.candidate,
        signals=DraftSignals(
            steps=tuple(report.steps for report in reports),
            converged=tuple(report.converged for report in reports),
            token_entropy=tuple([number for report in reports for number in report.entropy][:count]),
            mean_entropy=tuple([number for report in reports for number in report.mean_entropy][:count]),
            late_flips=sum(late[:count]),
            forwards=sequence.forwards,
            reused_tokens=sequence.reused,
        ),
        elapsed_s=elapsed_s,
    )


def rank(results: list[DraftResult]) -> list[DraftResult]:
    """Candidates, the best first: those that ended by themselves, then by agreement with the others, then by mean log-probability.

    Agreement is self-consistency (Wang et al., arXiv 2203.11171) for tokens: the mean over the other candidates of the share of
    positions with the same token.
    """
    if len(results) < 2:
        return results
    agreed = []
    for one in results:
        shares = [_shared(one.token_ids, other.token_ids) for other in results if other is not one]
        agreed.append(replace(one, signals=replace(one.signals, agreement=sum(shares) / len(shares))))
    return sorted(agreed, key=_goodness, reverse=True)


def _goodness(result: DraftResult) -> tuple[bool, float, float]:
    logprobs = result.token_logprobs
    mean = sum(logprobs) / len(logprobs) if logprobs else -math.inf  # else saying nothing would be the likeliest
    return result.finish_reason in ("stop", "length"), result.signals.agreement or 0.0, mean


def _shared(one: Listed[int], other: Listed[int]) -> float:
    longest = max(len(one), len(other))
    return sum(a == b for a, b in zip(one, other, strict=False)) / longest if longest else 1.0
