"""A checkpoint's own chat template and tokenizer: the one place where an engine meets text."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer


class MessagesRefused(ValueError):
    """The checkpoint's chat template does not take these messages."""


class ChatTokenizer:
    """Messages to token ids and back."""

    def __init__(self, tokenizer: Any) -> None:
        """Take a loaded tokenizer of transformers with a Rust backend and a chat template."""
        self._tokenizer = tokenizer
        self.fingerprint = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
        vocab = tokenizer.get_vocab()
        # a byte-fallback vocabulary's 256 byte tokens; other vocabularies have none
        self.byte_ids = frozenset(vocab[byte] for byte in (f"<0x{b:02X}>" for b in range(256)) if byte in vocab)

    @classmethod
    def load(cls, checkpoint: str) -> "ChatTokenizer":
        """Load by name or folder. Raises OSError when there is none."""
        return cls(AutoTokenizer.from_pretrained(checkpoint))

    def prompt(self, messages: Iterable[dict[str, Any]]) -> list[int]:
        """Ids of a conversation, up to where the answer begins.

        Raises:
            MessagesRefused: by the template, such as for an order of roles it doesn't know.
        """
        try:
            ids = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)
        except TemplateError as err:
            raise MessagesRefused(f"expected messages that the model's chat template takes, got: {err}") from err
        return ids["input_ids"]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class TextStream:
    """Text of a growing list of ids, in pieces that never end inside a character.

    A run of byte tokens (`<0xE6>`) is decoded as a whole, all of it or none, so its text is known only when it has ended.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        """Start with no text."""
        self._tokenizer = tokenizer
        self.text = ""

    def advance(self, ids: Sequence[int], final: bool) -> str:
        """The text that is new since the last call; bytes of an unfinished character wait unless `final`."""
        whole = self._tokenizer.decode(ids)
        if not final and ids and (whole.endswith("�") or ids[-1] in self._tokenizer.byte_ids):
            return ""
        piece, self.text = whole[len(self.text) :], whole
        return piece


def fit(context_tokens: int, prompt_tokens: int, asked: int | None, limit: int) -> int:
    """How many tokens an answer may have: what is asked for, within the engine's limit and the context.

    Raises:
        ValueError: prompt and answer don't fit the context; says expected and got.
    """
    room = context_tokens - prompt_tokens
    if room < 1 or (asked or 0) > room:
        wanted = f"a prompt of {prompt_tokens}" + (f" and {asked} answer tokens" if asked else "")
        raise ValueError(f"expected at most {context_tokens} tokens in all, got {wanted}")
    return min(asked or room, limit, room)
