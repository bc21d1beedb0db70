"""Reads sums out of prose: tokens with their units, and what a run of them comes to."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from classifiers.api import Span

LONGEST_RUN = 80  # tokens; of a longer one nothing is read
DEEPEST = 20  # brackets within brackets
LARGEST_EXPONENT = 64
MOST_DIGITS = 30
MOST_BITS = 1000  # of a numerator or denominator, lest powers of powers take for ever
PERCENT_READINGS = ("share", "number", "change")  # 20 % is 0.2, or 20 of some unit; 50 - 20 % is 40

_AHEAD = r"(?=\s*\\?[$€£]?\s*[\d(])"
_TOKEN = re.compile(
    rf"""
    (?P<gap>[^\S\n]+ | \\[,;!\ ] | \\(?:left|right|boxed|displaystyle|quad)(?![a-zA-Z]) | \\?[$€£°&] | (?<=\d)-(?=[^\W\d_])
      | (?<![\d)])\*\* | \*\*(?![\d(]))
  | (?P<bad>\d+(?:st|nd|rd|th)\b | [^\W\d_]+\d(?:[\w.]*\w)? | \d+(?:[:.]\d+){{2,}} | \d+:\d+ | [<>!=~:]=+ | =[=~>]+ | [?!_~@√±∑∫#])
  | (?P<number>(?>(?:\d{{1,3}}(?:,\d{{3}})++|\d+)(?:\.\d+)?)(?![.,]?\d) | (?<![\d.,])\.\d+)
  | (?P<equals>=)
  | (?P<operator>\*\* | \\?[+*/^](?!\s?[^\W\d_]) | [×÷·−-] | \\(?:times|cdot|div)(?![a-zA-Z]) | (?<![^\W\d_])[xX]{_AHEAD}
      | \b(?:times|plus|minus|divided\ by|multiplied\ by)\b | \bof\b{_AHEAD})
  | (?P<power>[²³])
  | (?P<percent>\\?%|\bpercent\b)
  | (?P<frac>\\[dt]?frac(?=\s*\{{))
  | (?P<open>[({{])
  | (?P<close>[)}}])
  | (?P<word>/?\ ?\\(?:text|textbf|mathrm)\{{[^{{}}\n]*\}} | /?\ ?[^\W\d_]+(?:['’-][^\W\d_]+)*)
  | (?P<break>[\n;:,.|"“”•→—–…] | \\\\ | \\[()\[\]])
  | (?P<other>\d+(?:[.,]\d+)+ | .)
    """,  # noqa: RUF001
    re.VERBOSE,
)
_OPERATORS = {
    "×": "*", "·": "*", "x": "*", "X": "*", "times": "*", "multiplied by": "*", "\\times": "*", "\\cdot": "*",
    "÷": "/", "divided by": "/", "\\div": "/", "plus": "+", "minus": "-", "−": "-", "**": "^",
}  # fmt: skip
_SCALE = re.compile(r"half|hundred|thousand|million|billion|trillion|dozen|pair|score")  # behind a number: changes it
_NO_UNIT = re.compile(
    rf"[^\W\d_]|an|twice|double|triple|thrice|quarter|third|of|times|plus|minus|by|and|or|percent|les|more|than|over|to|from"
    rf"|{_SCALE.pattern}"
)  # behind a number: may belong to the sum; stems, as `_stem` leaves them


class Unreadable(ValueError):
    """A run of tokens that is no sum, or one too large to work out."""


@dataclass(slots=True, frozen=True)
class Token:
    """A piece of a sum. Numbers know their value, their units and whether a percent sign follows."""

    kind: str  # a group of the pattern; "bad": nothing that holds it can be read
    text: str
    span: Span
    tight: bool = True  # nothing stands between it and the token before
    value: Fraction = Fraction(0)
    decimals: int = 0
    percent: bool = False
    units: tuple[str, ...] = ()  # lower case, singular; "$" for every currency sign; of a rate such as km/h both


def stretches(text: str, span: Span) -> Iterator[list[Token]]:
    """The tokens of a part of the text, in stretches without a full stop, comma, colon or line break."""
    stretch: list[Token] = []
    for token in _tokens(text, span):
        if token.kind != "break":
            stretch.append(token)
        elif stretch:
            yield _with_units(stretch)
            stretch = []
    if stretch:
        yield _with_units(stretch)


def values(run: Sequence[Token]) -> list[Fraction]:
    """What the sum comes to, once for each way to read its percentages; [] when it divides by zero.

    Powers bind before signs, these before products, these before sums; of equals the left one first, of powers the right.
    Raises Unreadable.
    """
    if not run or len(run) > LONGEST_RUN or any(token.kind in ("bad", "other", "word", "power") for token in run):
        raise Unreadable("expected a short run of numbers, operators and brackets")
    readings = PERCENT_READINGS if any(token.percent for token in run) else PERCENT_READINGS[:1]
    found = []
    for reading in readings:
        try:
            value = _Parser(run, reading).parsed()
        except ZeroDivisionError:
            continue
        if value not in found:
            found.append(value)
    return found


def _tokens(text: str, span: Span) -> Iterator[Token]:
    tight, currency = False, None  # where the currency sign stands before the token
    for match in _TOKEN.finditer(text, *span):
        kind, written = match.lastgroup or "other", match[0]
        if kind == "gap":
            currency, tight = match.start() if written[-1] in "$€£" else currency, False
            continue
        token = Token(kind, written, match.span(), tight)
        if kind == "number":
            token = _number(token, currency)
        elif kind == "operator":
            token = replace(token, text=_OPERATORS.get(written, written.removeprefix("\\")))
        tight, currency = True, None
        yield token


def _number(token: Token, currency: int | None) -> Token:
    if len(token.text) > MOST_DIGITS:
        return replace(token, kind="bad")
    decimals = len(token.text.partition(".")[2])
    token = replace(token, value=Fraction(token.text.replace(",", "")), decimals=decimals)
    return token if currency is None else replace(token, units=("$",), span=(currency, token.span[1]))


def _with_units(tokens: list[Token]) -> list[Token]:
    """Words that only say of what there are so many become the units of the number before them."""
    result: list[Token] = []
    at = 0
    while at < len(tokens):
        token, at = tokens[at], at + 1
        if token.kind == "power":
            two_or_three = Fraction(2 if token.text == "²" else 3)
            result += [replace(token, kind="operator", text="^"), replace(token, kind="number", value=two_or_three)]
            continue
        if token.text == "of":
            token = replace(token, kind="operator", text="*") if _is_share(result) else replace(token, kind="word")
        if not result or result[-1].kind not in ("number", "close"):
            result.append(token)
            continue
        last = result[-1]
        if token.kind == "percent":
            result[-1] = replace(last, percent=last.kind == "number", span=(last.span[0], token.span[1]))
        elif token.kind == "word":
            end = _end_of_words(tokens, at)
            words = [_stem(word.text.strip("/ ").lower()) for word in (token, *tokens[at:end])]
            if (len(words[0]) == 1 and (token.tight or token.text[0] == "/")) or _SCALE.fullmatch(words[0]):
                result.append(replace(token, kind="bad"))  # 2x, 3 million
                continue
            rates = [_stem(word.text[1:].strip().lower()) for word in tokens[at:end] if word.text[0] == "/"]
            units = (*last.units, words[0], *rates, *(after for per, after in pairwise(words) if per == "per"))
            if _follows(tokens, end) in ("operator", "close", "equals") and not _belong(words):
                result[-1] = replace(last, units=units)
                at = end
            else:
                result[-1] = replace(last, units=units)
                result.append(token)
        elif token.kind == "open" and (end := _end_of_note(tokens, at)):
            at = end
        else:
            result.append(token)
    return result


def _end_of_words(tokens: list[Token], at: int) -> int:
    while at < len(tokens) and tokens[at].kind == "word":
        at += 1
    return at


def _end_of_note(tokens: list[Token], at: int) -> int:
    """Behind the bracket that closes a note in words such as "(apples)", 0 when it is no such note."""
    end = _end_of_words(tokens, at)
    return end + 1 if end > at and _follows(tokens, end) == "close" else 0


def _follows(tokens: list[Token], at: int) -> str:
    return tokens[at].kind if at < len(tokens) else "break"


def _belong(words: list[str]) -> bool:
    """May these words be part of the sum: a variable, or "of", or "more than"?"""
    return len(words) > 4 or any(_NO_UNIT.fullmatch(word) for word in words)


def _is_share(tokens: list[Token]) -> bool:
    """Does "of" behind these multiply: `20% of`, `1/2 of`, `0.5 of`, `(1/2) of`?"""
    if not tokens or tokens[-1].units:
        return False
    last = tokens[-1]
    fraction = len(tokens) > 1 and tokens[-2].text == "/"
    return last.kind == "close" or (last.kind == "number" and (last.percent or bool(last.decimals) or fraction))


def _stem(word: str) -> str:
    if word.endswith(("ches", "shes", "xes")):
        return word[:-2]
    return word.removesuffix("s") if len(word) > 2 else word


class _Parser:
    """Recursive descent over one run of tokens."""

    def __init__(self, run: Sequence[Token], percent: str) -> None:
        self._run, self._percent, self._at, self._depth = run, percent, 0, 0

    def parsed(self) -> Fraction:
        value = self._sum()
        if self._at < len(self._run):
            raise Unreadable(f"expected the end of the sum, got {self._run[self._at].text}")
        return value

    def _next(self, kind: str, texts: str = "") -> Token | None:
        """Take the next token if it is of this kind, and its text one of these characters."""
        if self._at == len(self._run):
            return None
        token = self._run[self._at]
        if token.kind != kind or (texts and token.text not in texts):
            return None
        self._at += 1
        return token

    def _sum(self) -> Fraction:
        value = self._product()
        while operator := self._next("operator", "+-"):
            begin = self._at
            term = self._product()
            if self._percent == "change" and self._at == begin + 1 and self._run[begin].percent:
                term *= value
            value = _small(value + term if operator.text == "+" else value - term)
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        division: Token | None = None
        while True:
            if operator := self._next("operator", "*/"):
                if operator.text == "/" and division is not None and division.tight != operator.tight:
                    raise Unreadable("expected equal spaces around both divisions, got `a / b/c`")
                division = operator if operator.text == "/" else None
                factor = self._signed()
                value = _small(value * factor if operator.text == "*" else value / factor)
            elif self._at < len(self._run) and self._run[self._at].kind == "open" and self._run[self._at].tight:
                value = _small(value * self._power())
            else:
                return value

    def _signed(self) -> Fraction:
        sign = self._next("operator", "-")
        return -self._power() if sign else self._power()

    def _power(self) -> Fraction:
        base = self._operand()
        if not self._next("operator", "^"):
            return base
        exponent = self._nested(self._signed)
        if exponent.denominator > 1 or abs(exponent) > LARGEST_EXPONENT:
            raise Unreadable(f"expected a whole exponent of at most {LARGEST_EXPONENT}, got {exponent}")
        return _small(base ** int(exponent))

    def _operand(self) -> Fraction:
        if self._next("frac"):
            return _small(self._group() / self._group())
        number = self._next("number")
        if number is None:
            return self._group()
        value = number.value / 100 if number.percent and self._percent != "number" else number.value
        return value + self._fraction_behind() if number.value.denominator == 1 else value

    def _fraction_behind(self) -> Fraction:
        """The 1/2 of `3 1/2`, 0 where there is none."""
        kinds = [token.text if token.kind == "operator" else token.kind for token in self._run[self._at : self._at + 3]]
        if kinds != ["number", "/", "number"]:
            return Fraction(0)
        over, under = self._run[self._at].value, self._run[self._at + 2].value
        if not 0 < over < under:
            raise Unreadable("expected an operator between two numbers, got none")
        self._at += 3
        return over / under

    def _group(self) -> Fraction:
        if not self._next("open"):
            raise Unreadable("expected a number")
        value = self._nested(self._sum)
        if not self._next("close"):
            raise Unreadable("expected a closing bracket")
        return value

    def _nested(self, part: Callable[[], Fraction]) -> Fraction:
        self._depth += 1
        if self._depth > DEEPEST:
            raise Unreadable(f"expected at most {DEEPEST} brackets within brackets, got more")
        value = part()
        self._depth -= 1
        return value


def _small(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise Unreadable(f"expected a value of at most {MOST_BITS} bits, got a larger one")
    return value
