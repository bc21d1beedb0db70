"""A model's tool call, as it wrote it, turned into a name and JSON."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

SPELT = {"True": True, "False": False, "None": None}  # a template that prints Python's values teaches them to the model
NAME = re.compile(r"\s*call:\s*([^\s{}\[\],:\0]+)\s*(?={)")
KEY = re.compile(r"[^\s{}\[\],:\0]+")
BARE = re.compile(r'"(?:[^"\\]|\\.)*"|[^{}\[\],\0]+', re.DOTALL)


class MalformedCall(ValueError):
    """What stands between a call's markers is no call; the message says what was expected."""


class Call(NamedTuple):
    """A call of a tool."""

    name: str
    arguments: str  # a JSON object


def read_json(pieces: Sequence[str]) -> Call:
    """Read `{"name": ..., "arguments": {...}}`, as Qwen 3 writes it.

    Raises:
        MalformedCall: it is something else.
    """
    try:
        call = json.loads("".join(pieces), parse_constant=_refuse)
        name, arguments = call["name"], call.get("arguments", {})
        if isinstance(arguments, str):
            arguments = json.loads(arguments, parse_constant=_refuse)
        return _call(name, arguments)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as err:
        raise MalformedCall(f"expected a JSON object with name and arguments, got: {err}") from err


def read_gemma(pieces: Sequence[str]) -> Call:
    """Read `call:name{key:value,...}`, as Gemma 4 writes it.

    Values are strings between quote tokens, numbers, true, false, null, objects and lists; a bare word is a string as well.

    Args:
        pieces: the call's text split at the quote tokens, so that each second one is a string.

    Raises:
        MalformedCall: it is something else.
    """
    if len(pieces) % 2 == 0:
        raise MalformedCall("expected an end of the last string, got none")
    try:
        reader = _GemmaReader("\0".join(piece.replace("\0", "") for piece in pieces[::2]), iter(pieces[1::2]))
        return reader.call()
    except RecursionError as err:
        raise MalformedCall("expected values nested less deeply") from err


def _call(name: Any, arguments: Any) -> Call:
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise MalformedCall(f"expected a name and an object of arguments, got {name!r} and {type(arguments).__name__}")
    try:
        return Call(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))
    except ValueError as err:  # 1e999 is a number to Python's reader, but infinite
        raise MalformedCall(f"expected arguments that JSON has, got: {err}") from err


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"expected JSON, got {constant}")


class _GemmaReader:
    """Recursive descent over a text in which each zero character stands for the next of some strings."""

    def __init__(self, text: str, strings: Iterator[str]) -> None:
        self._text = text
        self._strings = strings
        self._at = 0

    def call(self) -> Call:
        name = NAME.match(self._text)
        if name is None:
            raise MalformedCall("expected call:name{")
        self._at = name.end()
        arguments = self._value()
        if self._next():
            raise MalformedCall(f"expected nothing behind the arguments, got {self._next()!r}")
        return _call(name.group(1), arguments)

    def _value(self) -> Any:
        sign = self._next()
        if sign == "\0":
            self._at += 1
            return next(self._strings)
        if sign == "{":
            return dict(self._items("}", self._member))
        if sign == "[":
            return list(self._items("]", self._value))
        bare = self._match(BARE, "a value").strip()
        if bare in SPELT:
            return SPELT[bare]
        try:
            return json.loads(bare, parse_constant=_refuse)
        except ValueError:
            return bare

    def _member(self) -> tuple[str, Any]:
        if self._next() == "\0":
            self._at += 1
            key = next(self._strings)
        else:
            key = self._match(KEY, "a key")
        self._expect(":")
        return key, self._value()

    def _items(self, end: str, item: Any) -> Iterator[Any]:
        self._at += 1
        while self._next() != end:
            yield item()
            if self._next() != end:
                self._expect(",")
        self._at += 1

    def _next(self) -> str:
        """The next character that is no white space; empty at the end."""
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _expect(self, sign: str) -> None:
        if self._next() != sign:
            raise MalformedCall(f"expected {sign!r}, got {self._next()!r}")
        self._at += 1

    def _match(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise MalformedCall(f"expected {what}, got {self._next()!r}")
        self._at = found.end()
        return found.group()
