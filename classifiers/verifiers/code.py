"""Code blocks that parse."""

import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from classifiers import text as texts
from classifiers.api import DraftEvidence, Span
from classifiers.verifiers.problem import Problem
from classifiers.verifiers.syntax import FAULTS, Clock, OutOfTime

LONGEST_CHARS = 20_000  # of all blocks together: parsers must not hold up the gateway
MOST_SECONDS = 0.05  # the same of their time; a usual block takes 1 ms, a hostile one seconds
INTRODUCTION_CHARS = 400  # looked at before a block

_FENCE = re.compile(r"[^\S\n]*(?:>[^\S\n]*)*(?P<fence>`{3,}|~{3,})[^\S\n]*\{?\.?(?P<language>[\w+#-]*)(?P<rest>[^\n]*)")
_QUOTE = re.compile(r"^[^\S\n]*(?:>[^\S\n]?)+", re.MULTILINE)
_PLACEHOLDER = re.compile(
    r"(?<![\w.])\.\.\.(?!\w)|…|<(?=\w{1,40}[ _-])[A-Za-z][\w -]{0,60}>|<[A-Z_]{2,40}>|\{\{|\{%|\[[A-Za-z]+ [A-Za-z ]+\]"
)
_COMMENT = re.compile(r"(?:#|//|/\*).*")
_DELIBERATE = re.compile(
    r"syntax ?error|\b(?:not|fails? to|never) (?:\w{1,20} )?(?:compile|parse|valid)|n['\u2019]t (?:compile|parse)"
    r"|\b(?:invalid|bad|wrong|incorrect|broken|buggy|faulty|pseudo-?(?:code)?)\b|❌",
    re.IGNORECASE,
)
_NOT_CODE = re.compile(
    r"^\W*(?:[\w']+ ){0,4}(?:outputs?|prints?|printed|results?|errors?|traceback|before|signatures?)(?: (?:is|will be|looks like))?\W*$",
    re.IGNORECASE,
)  # a line before a block of no code: "Output:"
_PYTHON_2 = re.compile(r"\bpython ?2", re.IGNORECASE)
_SHOWN = re.compile(
    r"^Traceback \(|^HTTP/\d|^(?:GET|POST|PUT|PATCH|DELETE|HEAD) +\S|^curl |^[A-Z][A-Za-z-]+: \S[^\n]*\n\s*[{\[]",
    re.MULTILINE,
)  # a traceback, or headers before a body
_SIGNATURE = re.compile(r"\[,|[(,] ?/ ?[,)]|, ?\*,|^for each\b", re.MULTILINE)  # of documentation, and pseudocode
_SIGN_OF_PYTHON = re.compile(
    r"[=(){}@]|:[^\S\n]*$|^[^\S\n]*(?:>>>|print|import|from|def|class|return|for|while|if|del|raise|assert|with)\b",
    re.MULTILINE,
)
_DIFF = re.compile(r"^(?:[-+]{3} |@@ |[-+] ?\S)", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block."""

    language: str  # lower case, "" when the fence names none
    code: str  # dedented
    span: Span  # of its lines, fences left out


def code(evidence: DraftEvidence) -> Problem | None:
    """Every fenced block in a language of `syntax.FAULTS` parses, as a file or as a part of one.

    Not checked are a block with a placeholder (`...`, `<your key>`), one that says that it is wrong or that the line before it
    calls so, output, documentation's signatures, Python 2, a diff, code that the request brought along, and what is beyond the
    limits of size and time.
    """
    if "```" not in evidence.text and "~~~" not in evidence.text:
        return None
    try:
        return _code(evidence)
    except OutOfTime:
        return None


def _code(evidence: DraftEvidence) -> Problem | None:
    asked = _squeezed("\n".join(texts.text_of(turn) for turn in evidence.messages))
    left_chars, clock = LONGEST_CHARS, Clock(MOST_SECONDS)
    for block in blocks(evidence.text):
        fault_of = FAULTS.get(block.language)
        if fault_of is None or len(block.code) > left_chars or _squeezed(block.code) in asked:
            continue
        left_chars -= len(block.code)
        clock.check()
        fault = fault_of(block.code, clock)
        if fault and not _is_open(block, _introduction(evidence.text, block), asked):
            return Problem(f"expected {block.language} that parses, got: {fault}", block.span)
    return None


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a Markdown text, be they indented or quoted; one that is never closed is none.

    Source: CommonMark 0.31, section 4.5.
    """
    opening, begin = None, 0
    for start, end in texts.lines(text):
        fence = _FENCE.match(text, start, end)
        if fence is None:
            continue
        if opening is None:
            inline = "`" in fence["rest"] and fence["fence"][0] == "`"
            opening, begin = (None, 0) if inline else (fence, min(end + 1, len(text)))
        elif fence["fence"].startswith(opening["fence"]) and not (fence["language"] + fence["rest"]).strip():
            lines = text[begin:start]
            bare = _QUOTE.sub("", lines) if ">" in opening[0] else lines
            yield Block(opening["language"].lower(), textwrap.dedent(bare), (begin, start))
            opening = None


def _introduction(text: str, block: Block) -> str:
    """The last line before a block's opening fence that isn't empty."""
    begin = block.span[0]
    lines = text[max(0, begin - INTRODUCTION_CHARS) : begin].split("\n")[:-2]
    return next((line for line in reversed(lines) if line.strip()), "")


def _is_open(block: Block, introduction: str, asked: str) -> bool:
    """May the block be meant not to parse?"""
    code = block.code
    comments = "\n".join(_COMMENT.findall(code))
    if _PLACEHOLDER.search(code) or _DELIBERATE.search(comments) or len(_DIFF.findall(code)) > 1 or _SHOWN.search(code):
        return True
    if _DELIBERATE.search(introduction) or _NOT_CODE.match(introduction):
        return True
    if not block.language.startswith(("py", "ipy")):
        return False
    python_2 = any(_PYTHON_2.search(part) for part in (introduction, comments, asked))
    return python_2 or bool(_SIGNATURE.search(code)) or not _SIGN_OF_PYTHON.search(code)


def _squeezed(text: str) -> str:
    return " ".join(text.split())
