"""How a rejected draft is shown to a model that is to write the answer anew."""

from collections.abc import Sequence
from typing import Any

POLISH = (
    "Your last answer is a draft that failed a check: it may be wrong, incomplete or badly worded. "
    "Answer my message before it again, correctly and completely, and keep what is right in the draft. "
    "Reply with the new answer only; do not mention the draft."
)


def polished(messages: Sequence[dict[str, Any]], draft_text: str) -> tuple[dict[str, Any], ...]:
    """A conversation with the draft as its last answer and `POLISH` as the next question."""
    return (*messages, {"role": "assistant", "content": draft_text}, {"role": "user", "content": POLISH})
