"""DiffusionGemma in a script, without a server.

from diffusion_engine import DiffusionGemmaModel
model = DiffusionGemmaModel.from_pretrained("google/diffusiongemma-26B-A4B-it")
print(model.generate(prompt="Why is the sky blue?", num_diffusion_steps=16, max_tokens=512))
"""

from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, overload

from diffusion_engine.api import DraftEvent, DraftRequest, DraftResult, DraftSettings
from diffusion_engine.core import Core, Job
from diffusion_engine.load import load_core

Inbox = deque[DraftEvent | Exception | None]


class DiffusionGemmaModel:
    """A checkpoint, loaded on the device there is. Not for several threads at once."""

    def __init__(self, core: Core) -> None:
        """Take a loaded core; `from_pretrained` is the usual way here."""
        self._core = core

    @classmethod
    def from_pretrained(cls, name: str, **settings: Any) -> "DiffusionGemmaModel":
        """Load a checkpoint, of any of the forms that `weights` knows, by folder or by its name on the hub.

        Args:
            name: folder or name.
            settings: fields of `DraftSettings`, such as max_running=8.

        Raises:
            WrongModel: the checkpoint is not a DiffusionGemma.
            CheckpointError: its tensors are not what they should be.
            OSError: there is no such checkpoint.
        """
        return cls(load_core(DraftSettings(model=name, **settings)))

    @overload
    def generate(
        self, prompt: str, *, num_diffusion_steps: int | None = None, max_tokens: int | None = None, **options: Any
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: list[str],
        *,
        num_diffusion_steps: int | None = None,
        max_tokens: int | None = None,
        **options: Any,
    ) -> list[str]: ...
    def generate(
        self,
        prompt: str | list[str],
        *,
        num_diffusion_steps: int | None = None,
        max_tokens: int | None = None,
        **options: Any,
    ) -> str | list[str]:
        """Answer a prompt, or several in one batch; what `drafts` says, without its signals.

        Args:
            prompt: what the user says, one turn each.
            num_diffusion_steps: most denoising steps a canvas; None: what the checkpoint says.
            max_tokens: most tokens of an answer; None: the settings' own.
            options: other fields of `DraftRequest`, such as seed=7 or candidates=4; with candidates, the best one's text comes back.

        Raises:
            DraftRejected: an option is out of range, or prompt and answer don't fit the context.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        conversations = [[{"role": "user", "content": text}] for text in prompts]
        texts = [
            results[0].text
            for results in self.drafts(conversations, max_steps=num_diffusion_steps, max_tokens=max_tokens, **options)
        ]
        return texts[0] if isinstance(prompt, str) else texts

    def drafts(self, conversations: list[list[dict[str, Any]]], **options: Any) -> list[list[DraftResult]]:
        """Answer conversations in one batch: for each its candidates, best first, with all their signals.

        Args:
            conversations: each a list of {"role", "content"}.
            options: fields of `DraftRequest`, the same for all.

        Raises:
            DraftRejected: as `generate`.
        """
        jobs: list[Job] = []
        try:
            inboxes = []
            for messages in conversations:
                job, inbox = self._add(messages, options)
                jobs.append(job)
                inboxes.append(inbox)
            return [[event for event in self._drain(inbox) if isinstance(event, DraftResult)] for inbox in inboxes]
        finally:  # after an error, the others would go on with the next call
            for job in jobs:
                self._core.drop(job)

    def stream(self, prompt: str, **options: Any) -> Generator[DraftEvent, None, None]:
        """Yield the canvas as it settles, a CanvasUpdate after each step, and last the DraftResult of each candidate.

        Args:
            prompt: what the user says.
            options: fields of `DraftRequest`.

        Raises:
            DraftRejected: as `generate`.
        """
        job, inbox = self._add([{"role": "user", "content": prompt}], options | {"updates": True})
        try:
            yield from self._drain(inbox)
        finally:  # also when nobody wants the rest
            self._core.drop(job)

    def _add(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> tuple[Job, Inbox]:
        """Put a conversation in line; its events, and None after the last, will be in the inbox."""
        inbox: Inbox = deque()
        job = self._core.add(
            DraftRequest(request_id="", messages=tuple(messages), **options),
            update=inbox.append,
            done=lambda results: inbox.extend([*results, None]),
            failed=inbox.append,
        )
        return job, inbox

    def _drain(self, inbox: Inbox) -> Iterator[DraftEvent]:
        while True:
            while not inbox:
                self._core.step()
            event = inbox.popleft()
            if isinstance(event, Exception):
                raise event
            if event is None:
                return
            yield event
