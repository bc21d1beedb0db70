"""A checkpoint's own chat template and tokenizer: the one place where an engine meets text.

What a user writes never becomes a control token: where a text spells one, such as "<turn|>", it is encoded as the letters
it is made of (`sanitize_control_tokens` of transformers, which marks it with U+F0000 and U+F0001, and so drops these two from
texts). Any other text gets the ids that plain `apply_chat_template` gives.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from itertools import groupby
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, __version__

logger = logging.getLogger(__name__)

READS_PARTS = re.compile(r"""\.text\b|\[\s*['"]text['"]\s*\]|\.get\(\s*['"]text['"]""")


class ContextExceeded(ValueError):
    """A prompt and its answer together are longer than what the model reads."""


class MessagesRefused(ValueError):
    """The checkpoint's chat template does not take these messages."""


class ChatTokenizer:
    """Messages to token ids and back."""

    byte_ids: frozenset[int] = frozenset()  # a byte-fallback vocabulary's 256 byte tokens; other vocabularies have none
    silent_ids: frozenset[int] = frozenset()  # special tokens, which have no text

    def __init__(self, tokenizer: Any) -> None:
        """Take a loaded tokenizer of transformers with a Rust backend and a chat template."""
        self._tokenizer = tokenizer
        self.fingerprint = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
        self._sanitizes = "sanitize_control_tokens" in signature(tokenizer.apply_chat_template).parameters
        if not self._sanitizes:
            logger.warning(
                "control tokens in users' texts take effect: expected transformers 5.20 or newer, got %s", __version__
            )
        vocab = tokenizer.get_vocab()
        self.byte_ids = frozenset(vocab[byte] for byte in (f"<0x{b:02X}>" for b in range(256)) if byte in vocab)
        added = tokenizer.added_tokens_decoder
        self.silent_ids = frozenset(token for token, entry in added.items() if entry.special)
        self._controls = re.compile(
            "|".join(re.escape(e.content) for e in added.values() if e.content.strip()) or "(?!)"
        )

    @classmethod
    def load(cls, checkpoint: str) -> "ChatTokenizer":
        """Load by name or folder. Raises OSError when there is none."""
        return cls(AutoTokenizer.from_pretrained(checkpoint))

    def prompt(
        self, messages: Iterable[Mapping[str, Any]], tools: Sequence[dict[str, Any]] = (), **variables: Any
    ) -> list[int]:
        """Ids of a conversation, up to where the answer begins; `variables` are for the template.

        Raises:
            MessagesRefused: by the template, such as for an order of roles it doesn't know, or tools where it knows none.
        """
        shown = list(tools) or None
        try:
            template = self._tokenizer.get_chat_template(tools=shown)
            if shown and "tools" not in template:
                raise ValueError(f"{len(shown)} tools, which the template doesn't know")
            self._check_names(tools)
            takes_parts = READS_PARTS.search(template) is not None
            ids = self._tokenizer.apply_chat_template(
                [self._told(message, takes_parts) for message in messages],
                tools=shown,
                add_generation_prompt=True,
                **({"sanitize_control_tokens": True} if self._sanitizes else {}),
                **variables,
            )
        # a template is a program; what it doesn't expect makes it fail in any of these ways
        except (TemplateError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as err:
            raise MessagesRefused(f"expected messages that the model's chat template takes, got: {err}") from err
        return ids["input_ids"]

    def _told(self, message: Mapping[str, Any], takes_parts: bool) -> dict[str, Any]:
        """A message as the template gets it: texts in parts become one text if it knows no parts."""
        self._check_names(message)
        parts = message.get("content")
        if not isinstance(parts, list | tuple):
            return dict(message)
        if other := {part["type"] for part in parts} - {"text", "image"}:
            raise ValueError(f"parts of type {', '.join(map(repr, sorted(other)))}")  # a template would just skip them
        if not takes_parts and all(part["type"] == "text" for part in parts):
            return {**message, "content": "\n".join(part["text"] for part in parts)}
        content: list[Any] = []
        for is_text, group in groupby(parts, lambda part: part["type"] == "text"):
            run = list(group)
            content += self._apart([part["text"] for part in run]) if is_text else run
        return {**message, "content": content}

    def _apart(self, texts: Sequence[str]) -> list[dict[str, str]]:
        """Parts of neighbouring texts: a single one if a control token would come of a template that joins them."""
        spelt = self._controls.findall("".join(text.strip() for text in texts))
        if len(spelt) > sum(len(self._controls.findall(text)) for text in texts):
            texts = ["\n".join(texts)]
        return [{"type": "text", "text": text} for text in texts]

    def _check_names(self, value: Any) -> None:
        """Refuse control tokens in names of arguments and properties, which reach the template as they are."""
        if isinstance(value, Mapping):
            for name, inner in value.items():
                if found := self._controls.search(str(name)):
                    raise ValueError(f"a name with the control token {found.group()!r}")
                self._check_names(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                self._check_names(inner)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of ids, special tokens left out unless asked for."""
        return self._tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)

    def token_id(self, token: str) -> int | None:
        """The id of a token by its name, if there is one."""
        return self._tokenizer.backend_tokenizer.token_to_id(token)


class TextStream:
    """Text of a growing list of ids, in pieces that never end inside a character; together they are `decode(ids)`.

    A run of byte tokens (`<0xE6>`) is decoded as a whole, all of it or none, so its text is known only when it has ended.
    Each token is decoded a few times, however long the text: after the piece before it, as a tokenizer may write the first
    token of a text differently from the same token later on.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        """Start with no text."""
        self.text = ""
        self._tokenizer = tokenizer
        self._read = 0  # ids taken in
        self._before: list[int] = []  # the ids of the last piece
        self._before_text = ""
        self._waiting: list[int] = []  # ids taken in whose text isn't out
        self._enough = 1  # so many waiting ids are worth a look

    def advance(self, ids: Sequence[int], final: bool) -> str:
        """The text that is new since the last call; bytes of an unfinished character wait unless `final`."""
        self._waiting += [token for token in ids[self._read :] if token not in self._tokenizer.silent_ids]
        self._read = len(ids)
        waits = len(self._waiting) < self._enough or self._waiting[-1] in self._tokenizer.byte_ids
        if not self._waiting or (waits and not final):
            return ""
        piece = self._tokenizer.decode([*self._before, *self._waiting])[len(self._before_text) :]
        if piece.endswith("�") and not final:
            # the next token may finish the character; after many that didn't, look less often
            self._enough = len(self._waiting) + len(self._waiting) // 4 + 1
            return ""
        if piece:
            self._before, self._waiting = self._waiting, []
            self._before_text = self._tokenizer.decode(self._before)
            self.text += piece
        self._enough = 1
        return piece


def fit(context_tokens: int, prompt_tokens: int, asked: int | None, limit: int) -> int:
    """How many tokens an answer may have: what is asked for, within the engine's limit and the context.

    Raises:
        ContextExceeded: prompt and answer don't fit the context; says expected and got.
    """
    room = context_tokens - prompt_tokens
    if room < 1 or (asked or 0) > room:
        wanted = f"a prompt of {prompt_tokens}" + (f" and {asked} answer tokens" if asked else "")
        raise ContextExceeded(f"expected at most {context_tokens} tokens in all, got {wanted}")
    return min(asked or room, limit, room)
