"""What keeps a piece of code from being parsed, by its language.

Python is parsed by `ast`, JSON, TOML, XML and YAML by their libraries, and the languages that answers hold most often by
tree-sitter's grammars: JavaScript and TypeScript (one grammar), Java, C, C++, Go and Rust; each further one would add
megabytes. Shell is left out: its blocks are transcripts and templates as often as scripts. A snippet is no file, so parts
of one pass: statements outside a function, members outside a class, the inside of brackets, a header without its body.
Parsers are imported when first needed.
"""

import ast
import importlib
import json
import re
import textwrap
import threading
import time
import tomllib
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING
from xml.parsers import expat

if TYPE_CHECKING:
    from tree_sitter import Language, Node

LONGEST_TREE_CHARS = (
    4_000  # of code for tree-sitter, whose recovery from errors is quadratic and seldom asks for the time
)

_PROMPT = re.compile(r"^\s*(?:>>>|\.\.\.)(?: |$)")
_MAGIC = re.compile(r"^([^\S\n]*)(?:[%!?].*|\w+\?+$)", re.MULTILINE)  # IPython's commands
_SIGNATURE = re.compile(
    r"^(?P<indent>[^\S\n]*)(?P<head>(?:async )?def [^\n]*\)(?: *->[^:\n]*)?)[^\S\n]*$"
    r"(?=\s*\Z|\n[^\S\n]*\n|\n(?P=indent)(?:async )?def )",
    re.MULTILINE,
)  # a header without colon and body, as documentation shows it
_WARNINGS = threading.Lock()  # `warnings.catch_warnings` changes what all threads see


class OutOfTime(Exception):
    """The clock ran out before a parser was through."""


class Clock:
    """Time that parsers may take together, in seconds of the thread's own processor time: a busy machine changes no verdict."""

    def __init__(self, seconds: float) -> None:
        self._end = time.thread_time() + seconds

    def is_over(self) -> bool:
        """Is none left?"""
        return time.thread_time() > self._end

    def check(self) -> None:
        """Raise OutOfTime if none is left."""
        if self.is_over():
            raise OutOfTime

    def grammar(self, module: str, function: str) -> "Language":
        """A grammar of tree-sitter; the time its import takes doesn't count."""
        begin = time.thread_time()
        grammar = _grammar(module, function)
        self._end += time.thread_time() - begin
        return grammar


def python(code: str, clock: Clock) -> str | None:
    """By `ast`; of a session only what stands behind the prompts."""
    lines = code.splitlines()
    if any(line.lstrip().startswith(">>>") for line in lines):
        code = "\n".join(_PROMPT.sub("", line) for line in lines if _PROMPT.match(line))
    code = _SIGNATURE.sub(r"\g<indent>\g<head>: pass", _MAGIC.sub(r"\1pass", code)).rstrip()
    last = code.rpartition("\n")[2]
    indent = last[: len(last) - len(last.lstrip())]
    parts = (
        f"{code}\n{indent}    pass",
        f"(\n{code}\n)",
        f"{{\n{code}\n}}",
        f"_(\n{code}\n)",
        f"if _:\n    pass\n{code}",
        f"try:\n    pass\n{code}",
    )
    return _first_fault(_python, code, parts, clock)


def json_values(code: str, clock: Clock) -> str | None:
    """One value or several, with the comments and trailing commas that people write for people."""
    bare = re.sub(r"^[^\S\n]*(?://|#).*|(?<=[\s,])//.*|/\*[^*]*\*/", "", code, flags=re.MULTILINE)
    bare = re.sub(r",(?=\s*[\]}]|\s*\Z)", "", bare)
    several = "[" + re.sub(r"([}\]])[^\S\n]*\n\s*(?=[\[{])", r"\1,", bare) + "]"
    return _first_fault(_json, code, (bare, f"{{{bare}}}", several), clock)


def toml(code: str, _: Clock) -> str | None:
    """By `tomllib`."""
    try:
        tomllib.loads(code)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        return None if isinstance(error, RecursionError) else str(error)
    return None


def xml(code: str, _: Clock) -> str | None:
    """By expat, several elements in a row allowed; nothing with a document type, which may define entities."""
    if "<!DOCTYPE" in code or "<!ENTITY" in code:
        return None
    body = re.sub(r"\A\s*<\?xml[^>]*\?>", "", code)
    try:
        expat.ParserCreate("utf-8").Parse(f"<_>{body}</_>".encode(errors="replace"), True)
    except expat.ExpatError as error:
        known = error.code != expat.errors.codes[expat.errors.XML_ERROR_UNDEFINED_ENTITY]
        return f"{expat.ErrorString(error.code)} in line {error.lineno}" if known else None
    return None


def yaml(code: str, clock: Clock) -> str | None:
    """By libyaml's events: no value is built, so no alias is expanded."""
    from yaml import CSafeLoader, YAMLError, parse
    from yaml.error import MarkedYAMLError

    try:
        for _ in parse(code.encode(errors="replace"), CSafeLoader):
            clock.check()
    except MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        return f"{error.problem or error.context}{line}"
    except YAMLError as error:
        return str(error)
    return None


def _tree(
    grammars: tuple[tuple[str, str], ...], wholes: tuple[tuple[str, str], ...], code: str, clock: Clock
) -> str | None:
    """By tree-sitter: the fault that is left when no grammar takes the code, alone or as part of one of these wholes."""
    if len(code) > LONGEST_TREE_CHARS:
        return None
    code = f"{code}}}" if code.rstrip().endswith("{") else code  # a header without its body
    parts = [f"{before}\n{code}\n{after}" for before, after in wholes]
    faults = []
    for part in (code, *parts):
        for module, function in grammars:
            faults.append(_tree_fault(clock.grammar(module, function), part, clock))
            if faults[-1] is None:
                return None
    return faults[0]


def _tree_fault(grammar: "Language", code: str, clock: Clock) -> str | None:
    from tree_sitter import Parser

    clock.check()
    source = code.encode(errors="replace")
    try:  # a source in pieces, since only then the callback is asked
        tree = Parser(grammar).parse(lambda at, _: source[at:], progress_callback=lambda *_: clock.is_over())
    except ValueError as error:
        raise OutOfTime from error
    if not tree.root_node.has_error:
        return None
    node = _faulty(tree.root_node)
    what = f"no {node.type}" if node.is_missing else "a syntax error"
    return f"{what} in line {node.start_point.row + 1}"


def _faulty(node: "Node") -> "Node":
    """The first node in the text that tree-sitter could not understand."""
    while not (node.is_error or node.is_missing):
        child = next((child for child in node.children if child.has_error), None)
        if child is None:
            break
        node = child
    return node


@lru_cache
def _grammar(module: str, function: str) -> "Language":
    from tree_sitter import Language

    return Language(getattr(importlib.import_module(module), function)())


def _first_fault(parse: Callable[[str], str | None], code: str, parts: tuple[str, ...], clock: Clock) -> str | None:
    """What is wrong with the code, None when it or one of the parts made of it is right."""
    fault = parse(code)
    if fault is None:
        return None
    for part in parts:
        clock.check()
        if parse(part) is None:
            return None
    return fault


def _python(code: str) -> str | None:
    try:
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(textwrap.dedent(code))
    except SyntaxError as error:
        return f"{error.msg} in line {error.lineno}"
    except (ValueError, RecursionError, MemoryError):
        return None  # null characters, or nesting beyond every limit
    return None


def _json(code: str) -> str | None:
    try:
        json.loads(code)
    except json.JSONDecodeError as error:
        return f"{error.msg} in line {error.lineno}"
    except (ValueError, RecursionError):
        return None  # digits or nesting beyond every limit
    return None


_SCRIPT = partial(
    _tree,
    (("tree_sitter_typescript", "language_tsx"), ("tree_sitter_typescript", "language_typescript")),
    (("_ = {", "}"), ("class _ {", "}"), ("_(", ")"), ("type _ = {", "}"), ("switch (_) {", "}"), ("<>", "</>")),
)
_JAVA = partial(
    _tree, (("tree_sitter_java", "language"),), (("class _ {", "}"), ("class _ { void _() {", "}}"), ("_(", ");"))
)
_CPP = partial(_tree, (("tree_sitter_cpp", "language"),), (("class X {", "};"), ("void _() {", "}"), ("_(", ");")))
_C = partial(
    _tree,
    (("tree_sitter_c", "language"), ("tree_sitter_cpp", "language")),
    (("struct _ {", "};"), ("void _() {", "}"), ("_(", ");")),
)
_GO = partial(
    _tree,
    (("tree_sitter_go", "language"),),
    (("func _() {", "}"), ("type _ struct {", "}"), ("type _ interface {", "}")),
)
_RUST = partial(
    _tree,
    (("tree_sitter_rust", "language"),),
    (("fn _() {", "}"), ("impl X {", "}"), ("struct X {", "}"), ("match x {", "}")),
)

_LANGUAGES: tuple[tuple[str, Callable[[str, Clock], str | None]], ...] = (
    ("python python3 py py3 pycon ipython", python),
    ("json jsonc jsonl ndjson", json_values),
    ("toml", toml),
    ("xml svg", xml),
    ("yaml yml", yaml),
    ("javascript js jsx mjs typescript ts tsx", _SCRIPT),
    ("java", _JAVA),
    ("c", _C),
    ("cpp c++ cc cxx", _CPP),
    ("go golang", _GO),
    ("rust rs", _RUST),
)
FAULTS = {name: fault_of for names, fault_of in _LANGUAGES for name in names.split()}
