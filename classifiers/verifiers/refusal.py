"""An answer that declines to answer."""

import re

from classifiers.api import DraftEvidence
from classifiers.verifiers.problem import Problem

OPENING_CHARS = 400  # refusals stand at the beginning

_I_CANNOT = r"I\s*(?:can\s*not|can['\u2019]t|am\s+(?:not\s+able|unable)\s+to|['\u2019]m\s+(?:not\s+able|unable)\s+to|won['\u2019]t|will\s+not)"
_OBJECT = (
    r"(?:access|answer|assist|browse|complete|comply|continue|create|discuss|do|engage|fulfil+|generate|give|help|make|offer"
    r"|open|participate|perform|process|produce|provide|recommend|respond|search|see|share|support|view|write)\b"
)
_REFUSAL = re.compile(
    rf"""(?:^|(?<=[.!?,]\s)|(?<=\n)|(?<=\bbut\s)) \W{{0,2}}
    (?: {_I_CANNOT}\s+(?:\w+ly\s+|directly\s+|currently\s+)?{_OBJECT}
      | as\s+an?\s+(?:AI|artificial\s+intelligence|(?:large\s+)?language\s+model|text-based)\b
      | I(?:\s+am|['\u2019]m)\s+(?:just\s+|only\s+)?an?\s+(?:AI|(?:large\s+)?language\s+model)\b
      | I\s+(?:don['\u2019]t|do\s+not)\s+have\s+(?:access|the\s+(?:ability|capability)|real-time|enough\s+information)
      | I\s+(?:must|have\s+to|need\s+to)\s+(?:respectfully\s+)?decline | I\s+(?:respectfully\s+)?decline\s+to
      | I(?:\s+am|['\u2019]m)\s+(?:so\s+|very\s+|really\s+)?sorry,?\s+(?:but\s+)?(?:I\s+)?(?:can|could|am|do|won|that)\w*
      | (?:unfortunately|regrettably|sorry|I\s+apologi[sz]e),?\s+(?:but\s+)?{_I_CANNOT} )""",
    re.IGNORECASE | re.VERBOSE,
)


def refusal(evidence: DraftEvidence) -> Problem | None:
    """The answer doesn't begin by declining. Some refusals are right: this is a hint."""
    opening = evidence.text[:OPENING_CHARS]
    found = _REFUSAL.search(opening)
    return Problem(f'expected an answer, got "{found[0].strip()}"', found.span()) if found else None
