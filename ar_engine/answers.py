"""An answer's token ids turned into text, thoughts and tool calls, as they are written.

Markers are found by token id, so text that merely spells one is text. Whatever a model does, nothing here raises:

* Thoughts go to `reasoning`, also where the request didn't ask for them: that flag steers the template, not this.
* Tool calls count only where tools were offered; elsewhere their markers mean nothing and the call is text.
* A call comes out whole, once it has ended, so its arguments are always valid JSON. One that doesn't parse, or breaks off,
  comes out as the text it was. A call inside a thought ends the thought.
* Newlines at the start of a thought and behind a marker belong to the protocol and are left out.

Sources: https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4 and the chat templates of Gemma 4 and Qwen 3.
"""

import secrets
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Self

from ar_engine.api import RefineDelta, ToolCall
from ar_engine.calls import Call, MalformedCall, read_gemma, read_json
from engine_core.chat import ChatTokenizer, TextStream


class AnswerFormat(NamedTuple):
    """How a checkpoint marks thoughts and tool calls; -1 for a token it doesn't have."""

    think_open: int = -1
    think_close: int = -1
    think_label: str = ""  # what a thought begins with, before the thought itself
    call_open: int = -1
    call_close: int = -1
    call_quote: int = -1  # stands before and after a string in a call
    read_call: Callable[[Sequence[str]], Call] = read_json  # of a call's text split at the quotes
    end_ids: frozenset[int] = frozenset()  # end an answer, besides the checkpoint's own

    @classmethod
    def of(cls, tokenizer: ChatTokenizer) -> Self:
        """The checkpoint's format, told by the markers in its vocabulary; without them an answer is all text."""

        def token(name: str) -> int:
            found = tokenizer.token_id(name)
            return -1 if found is None else found

        if token("<|channel>") >= 0:
            return cls(
                think_open=token("<|channel>"),
                think_close=token("<channel|>"),
                think_label="thought\n",
                call_open=token("<|tool_call>"),
                call_close=token("<tool_call|>"),
                call_quote=token('<|"|>'),
                read_call=read_gemma,
                end_ids=frozenset({token("<|tool_response>")} - {-1}),  # the model leaves the rest to the tool
            )
        return cls(
            think_open=token("<think>"),
            think_close=token("</think>"),
            call_open=token("<tool_call>"),
            call_close=token("</tool_call>"),
        )

    def thinks_after(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends inside a thought."""
        marks = (self.think_open, self.think_close)
        return next((token == self.think_open for token in reversed(prompt) if token in marks), False)


class Answer:
    """One answer, as far as it is written: a run of parts, each of which is text, a thought or a call."""

    def __init__(
        self, tokenizer: ChatTokenizer, form: AnswerFormat, tools: bool = False, prompt: Sequence[int] = ()
    ) -> None:
        """Start an answer.

        Args:
            tokenizer: the checkpoint's.
            form: the checkpoint's.
            tools: whether the prompt shows any.
            prompt: ids; where it ends inside a thought, as some templates open one, the answer begins there.
        """
        self.text = ""
        self.reasoning = ""
        self.reasoning_tokens = 0  # markers included
        self.tool_calls: tuple[ToolCall, ...] = ()
        self._tokenizer = tokenizer
        self._form = form
        self._opens: dict[int, _Part] = {form.think_open: "thought"}
        if tools:
            self._opens[form.call_open] = "call"
        self._read = 0  # ids taken in
        thinks = bool(prompt) and form.thinks_after(prompt)
        self._begin("thought" if thinks else "text")
        self._at_start = thinks

    @property
    def finish_reason(self) -> Literal["stop", "tool_calls"]:
        """Why an answer ended that ended by itself."""
        return "tool_calls" if self.tool_calls else "stop"

    def advance(self, ids: Sequence[int], final: bool) -> RefineDelta | None:
        """What is new, if anything; what waits for more, such as the bytes of a character, comes out when `final`.

        Args:
            ids: the whole answer so far, without the token that ended it.
            final: whether no more will come.
        """
        text, reasoning, calls = len(self.text), len(self.reasoning), len(self.tool_calls)
        for token in ids[self._read :]:
            self._take(token)
        self._read = len(ids)
        if final:
            self._end()
            self._begin("text")
        elif self._part != "call":
            self._tell(final=False)
        delta = RefineDelta(
            text=self.text[text:], reasoning=self.reasoning[reasoning:], tool_calls=self.tool_calls[calls:]
        )
        return delta if delta.text or delta.reasoning or delta.tool_calls else None

    def _take(self, token: int) -> None:
        thinks = self._part == "thought"
        self._sort(token)
        self.reasoning_tokens += thinks or self._part == "thought"

    def _sort(self, token: int) -> None:
        if opened := self._opens.get(token):
            self._end()
            self._begin(opened, self._form.think_label)
            if opened == "call":
                self._ids.append(token)
        elif token == self._form.think_close and self._part != "call":
            self._end()
            self._begin("text")
        else:
            self._ids.append(token)
            if token == self._form.call_close and self._part == "call":
                self._end()
                self._begin("text")

    def _begin(self, part: "_Part", label: str = "") -> None:
        self._part: _Part = part
        self._ids: list[int] = []
        self._stream = TextStream(self._tokenizer)
        self._label = label  # still to be left out
        self._held = ""  # may become the label
        self._at_start = True  # newlines here belong to the protocol

    def _end(self) -> None:
        if self._part == "call":
            self._call()
        else:
            self._tell(final=True)

    def _tell(self, final: bool) -> None:
        """Move what can be told of a text or thought from its stream to the answer."""
        self._held += self._stream.advance(self._ids, final)
        if self._label.startswith(self._held):  # which holds for no label only when nothing is held
            if final or self._held == self._label:
                self._label = self._held = ""
            return
        told = self._held.removeprefix(self._label)
        self._label = self._held = ""
        if self._at_start:
            told = told.lstrip("\n")
            self._at_start = not told
        if self._part == "thought":
            self.reasoning += told
        else:
            self.text += told

    def _call(self) -> None:
        """Read the call that ended, whose first id is the marker, and the last as well unless it broke off."""
        inner = self._ids[1 : -1 if self._ids[-1] == self._form.call_close else None]
        pieces = [self._tokenizer.decode(run, special=True) for run in _split(inner, self._form.call_quote)]
        try:
            call = self._form.read_call(pieces)
        except MalformedCall:
            self.text += self._tokenizer.decode(self._ids, special=True)
            return
        told = ToolCall(index=len(self.tool_calls), id=f"call_{secrets.token_hex(12)}", **call._asdict())
        self.tool_calls = (*self.tool_calls, told)


_Part = Literal["text", "thought", "call"]


def _split(ids: Sequence[int], at: int) -> list[list[int]]:
    """Runs of ids between those that equal `at`, as `str.split` has them."""
    runs: list[list[int]] = [[]]
    for token in ids:
        if token == at:
            runs.append([])
        else:
            runs[-1].append(token)
    return runs
