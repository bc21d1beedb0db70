"""Code blocks: each row says what the block is an example of."""

import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifiers.api import DraftEvidence
from classifiers.verifiers.code import blocks, code
from classifiers.verifiers.problem import Problem
from classifiers.verifiers.syntax import FAULTS


def fenced(language, text):
    return f"Like this:\n\n```{language}\n{text}\n```\nEnjoy."


def problem_of(text, request=""):
    return code(DraftEvidence(messages=({"role": "user", "content": request},), text=text))


def fault(text, request="") -> Problem:
    problem = problem_of(text, request)
    assert problem is not None
    return problem


PARSES = {
    "python file": ("python", "import os\n\ndef f(x):\n    return x\n"),
    "python, indented": ("py", "    for x in y:\n        print(x)"),
    "python session": ("python", ">>> for x in range(2):\n...     print(x)\n0\n1\n>>> x = (\n... 1)"),
    "python escapes that warn": ("python", 'x = "\\d" is 1'),
    "python notebook": ("python", "%matplotlib inline\n!pip install numpy\nx = 1\nx?"),
    "python at top level": ("python", "await f()\nreturn 1"),
    "python header": ("python", "class A:\n    def f(self, x: int) -> str:"),
    "python arguments": ("python", "a=1,\nb=[2, 3],"),
    "python entries": ("python", '"a": 1,\n"b": 2,'),
    "python branch": ("python", "elif x:\n    y = 1\nelse:\n    y = 2"),
    "python handler": ("python", "except ValueError:\n    pass"),
    "json": ("json", '{"a": [1, 2]}'),
    "json lines": ("json", '{"a": 1}\n{"b": 2}'),
    "json entry": ("json", '"a": {"b": 1},'),
    "json for people": ("jsonc", '{\n  // size\n  "a": 1, /* x */\n}'),
    "toml": ("toml", 'a = 1\n[b]\nc = "d"'),
    "xml": ("xml", '<?xml version="1.0"?>\n<a b="c"/>\n<d>&nbsp;</d>'),
    "xml with a document type": ("xml", "<!DOCTYPE a [<!ENTITY b '&c;'>]>\n<a>"),
    "yaml": ("yaml", "a: 1\nb:\n  - c\n---\nd: *e"),
    "javascript": ("js", "const f = async ({a, ...b}) => <div>{a ?? b}</div>;"),
    "javascript object": ("js", "{\n  a: 1,\n  b: { c: 2 },\n}"),
    "javascript entries": ("javascript", "a: 1,\nb() { return 2 },"),
    "javascript method": ("js", "async f(x) {\n  await x;\n}"),
    "javascript case": ("js", "case 1:\n  f();\n  break;"),
    "elements": ("jsx", "<A b='c' />\n<B />"),
    "typescript": ("ts", "const x = <T,>(a: T): T => a;\ninterface A { b?: string }\nlet y = <any>x;"),
    "typescript members": ("typescript", "a: string;\nb?: number;"),
    "java file": ("java", "public class A { private int b = 1; }"),
    "java statements": ("java", 'int x = 1;\nSystem.out.println(x);'),
    "java method": ("java", "public static int f(int x) {\n  return x;\n}"),
    "c": ("c", "#include <stdio.h>\nint main(void) { return 0; }"),
    "c statements": ("c", "for (int i = 0; i < 3; i++)\n  f(i);"),
    "c with a name that c++ reserves": ("c", "struct node *new = malloc(sizeof *new);"),
    "c++": ("cpp", "auto f = [](auto x) { return x; };\ntemplate <typename T> T g(T x);"),
    "c++ members": ("c++", "public:\n  int f() const;\nprivate:\n  int x_;"),
    "go": ("go", "package main\n\nfunc main() { x := 1; _ = x }"),
    "go statements": ("golang", "x, err := f()\nif err != nil {\n\treturn err\n}"),
    "rust": ("rust", "fn f<'a>(x: &'a str) -> &'a str { x }\nlet y = vec![1];"),
    "rust arms": ("rs", "Some(x) => x,\nNone => 0,"),
    "header": ("rust", "fn first(s: &str) -> &str {"),
    "unknown language": ("brainfuck", "((("),
    "no language": ("", "((("),
    "shell": ("bash", "if ((("),
    "nothing": ("python", ""),
    "left out": ("python", "def f(x, ...):\n    return ..."),
    "left out in a comment": ("java", "class A {\n  // … and so on\n"),
    "placeholder": ("python", "key = <your key>"),
    "template": ("yaml", "a: {{ b }}: c"),
    "diff": ("python", "- x = (1\n+ x = (2)"),
    "wrong on purpose": ("python", "x = = 1  # SyntaxError"),
    "python traceback": ("python", 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nZeroDivisionError: x y'),
    "python signatures": ("python", "d.keys()\nd.get(key[, default])"),
    "python signature with signs": ("python", "sorted(iterable, /, *, key=None, reverse=False)"),
    "python header without colon": ("python", "def f(a, *b) -> int\n\ndef g()"),
    "python output": ("python", "[1, 2]\nHello world"),
    "python 2 in a comment": ("python", "# Python 2\nprint 'x'"),
    "pseudocode": ("python", "for each item in items:\n    do something"),
    "http response": ("json", 'HTTP/1.1 200 OK\nContent-Type: application/json\n\n{"a": 1}'),
    "headers": ("json", 'Content-Type: application/json\n\n{"a": 1}'),
    "http request": ("json", 'POST /v1/x\n\n{"a": 1}'),
    "too long": ("python", "x = (\n" * 5000),
}  # fmt: skip
FAULTY = {
    "python bracket": ("python", "x = (1,\nprint(x)", "python that parses, got: '(' was never closed in line 1"),
    "python header without colon": ("python", "def f(x)\n    return x", "expected ':'"),
    "python print": ("py", 'print "x"', "parentheses"),
    "python indentation": ("python", "def f():\nreturn 1\n", "expected an indented block"),
    "python session": ("python", ">>> x = )\n1", "unmatched ')'"),
    "json": ("json", '{"a": 1 "b": 2}', "',' delimiter in line 1"),
    "toml": ("toml", "a = ", "toml that parses"),
    "xml": ("xml", "<a><b></a>", "mismatched tag in line 1"),
    "yaml": ("yaml", "a: [1\nb: 2", "line 2"),
    "javascript": ("js", "const f = (a => {\n  return a;\n}", "syntax error"),
    "typescript": ("ts", "interface A {\n  b: string\n\nf(1", "ts that parses"),
    "java": ("java", "class A {\n  void f( { }\n}", "line 2"),
    "c": ("c", "int main(void) { return 0", "c that parses"),
    "c++": ("cpp", "int x = f(1, 2;\ng();", "line 1"),
    "go": ("go", "func f( {\n\treturn\n}", "go that parses"),
    "rust": ("rust", "fn f() -> i32 {\n    let x = ;\n    x\n}", "line 2"),
}


@pytest.mark.parametrize(("language", "text"), PARSES.values(), ids=PARSES.keys())
def test_code_that_may_be_meant_so_passes(language, text):
    assert problem_of(fenced(language, text)) is None


@pytest.mark.parametrize(("language", "text", "says"), FAULTY.values(), ids=FAULTY.keys())
def test_code_that_does_not_parse_fails_with_its_block(language, text, says):
    answer = fenced(language, text)
    problem = fault(answer)
    assert says in problem.reason
    assert problem.span is not None
    assert answer[slice(*problem.span)].rstrip("\n") == text.rstrip("\n")


@pytest.mark.parametrize(
    "introduction",
    [
        "Python 2:",
        "This is wrong:",
        "The broken version:",
        "Output:",
        "**Sample output:**",
        "In pseudocode:",
        "It prints:",
        "Before:",
    ],
)
def test_the_line_before_a_block_may_say_that_it_does_not_parse(introduction):
    text = f"See.\n\n{introduction}\n\n```python\nprint 'x' (\n```"
    assert problem_of(text) is None


def test_another_line_before_a_block_says_nothing():
    block = "```python\nprint 'x'\n```"
    assert problem_of(f"This was wrong.\n\nThis function gives the output you want:\n{block}") is not None
    assert problem_of(block) is not None
    assert problem_of(block, "How did Python 2 print?") is None


def test_every_language_has_an_example_that_fails():
    languages = {language for language, _, _ in FAULTY.values()}
    assert {FAULTS[language] for language in languages} == set(FAULTS.values())


def test_code_that_the_request_brought_along_is_not_the_drafts_fault():
    answer = fenced("python", "x = (1,\nprint(x)")
    assert problem_of(answer, "Why does this fail?\n\n    x = (1,\n    print(x)") is None
    assert problem_of(answer, "Write a program.") is not None


def test_a_later_block_is_checked_too():
    answer = fenced("python", "x = 1") + fenced("json", "{") + fenced("python", "y = (")
    assert fault(answer).reason.startswith("expected json that parses")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```py\na\n```", [("py", "a\n")]),
        ("~~~~ Python title\na\n~~~\n~~~~", [("python", "a\n~~~\n")]),
        ("1. x\n   ```js\n   a\n     b\n   ```", [("js", "a\n  b\n")]),
        ("> ```c\n> a\n>  b\n> ```", [("c", "a\n b\n")]),
        ("```{.rust}\na\n```\n\n```c++\nb\n```", [("rust", "a\n"), ("c++", "b\n")]),
        ("```\n```", [("", "")]),
        ("an inline ```a``` and\n```b``` too", []),
        ("```py\nnever closed", []),
    ],
    ids=["plain", "tildes", "in a list", "quoted", "two", "empty", "inline", "open"],
)
def test_fenced_blocks_are_found_and_dedented(text, found):
    assert [(block.language, block.code) for block in blocks(text)] == found


HOSTILE = ("(" * 19_000, "[" * 19_000, "{" * 19_000, "<a>" * 6000, "a<" * 1900, "/*" * 9000, "/* " * 1300, "#" * 19_000,
           '"\'' * 9000, "-" * 19_000 + "1", "a." * 9000 + "a", "- " * 9000, "&a [*a," * 2500, "\\" * 19_000, "<a_" * 6000,
           "\n" * 19_000 + "(", "\ud800(", "\x00(", "# not " * 3000 + "(")  # fmt: skip


@pytest.mark.parametrize("language", ["python", "json", "toml", "xml", "yaml", "ts", "java", "c", "cpp", "go", "rust"])
def test_hostile_code_is_checked_in_bounded_work(language):
    for text in HOSTILE:
        problem_of(fenced(language, text))


@pytest.mark.parametrize("language", ["js", "java", "c", "cpp", "go", "rust", "yaml", "python", "json"])
@pytest.mark.parametrize("piece", ["/*\n", "template<", "f(", "{", "a.b", "a<b,", "{}\n"])
@pytest.mark.timeout(30)  # against parsers that never give up
def test_hostile_code_is_given_up_on(language, piece):
    text = "".join(fenced(language, piece * (size // len(piece))) for size in (800, 1500, 3900, 12_000))
    found = problem_of(text)
    assert found is None or found.reason


def test_out_of_time_nothing_is_said(monkeypatch):
    answer = fenced("js", "const f = (a => {\n  return a;\n}")
    monkeypatch.setattr(sys.modules[code.__module__], "MOST_SECONDS", -1)
    assert problem_of(answer) is None


@settings(deadline=None, derandomize=True)
@given(language=st.sampled_from(sorted(FAULTS)), text=st.text(max_size=80))
def test_no_code_breaks_a_parser(language, text):
    problem_of(fenced(language, text))


def test_parsers_are_not_imported_before_they_are_needed():
    program = """
        import sys
        from classifiers.api import DraftEvidence
        from classifiers.verifiers import verify

        verify(DraftEvidence(messages=(), text="Fine."))
        print(sorted({"tree_sitter", "yaml", "jsonschema", "regex"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
