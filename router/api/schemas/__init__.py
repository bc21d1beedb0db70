"""The OpenAI wire format: what is accepted, what is sent back."""

from router.policy import Wanted

MODELS: dict[str, Wanted] = {
    "draftgate": "auto",
    "draftgate-draft": "draft",
    "draftgate-refine": "refine",
}
