"""Takes personal data and secrets out of a text that is kept for people to look at.

By form alone: addresses, numbers with check digits, keys. Names, and whatever else only a reader would recognise, stay. Every pattern reads its
text once: runs begin where no run goes on, and are taken whole or not at all.
"""

import ipaddress
import itertools
import re
from collections.abc import Callable

MARGIN = 1000  # characters; nothing that is looked for must be seen further to be recognised
PRINTED = ([4, 4, 4, 4, 3], [4, 4, 4, 4], [4, 6, 5], [4, 6, 4])  # a card's digits
LEAST_CHANGES = 0.38  # of the places in base64, 0.65 in the mean; joined words have fewer

_TOKEN = "A-Za-z0-9+/_-"

_CREDENTIALS = re.compile(r"(?<=://)[^\s/?#]*@")
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]++@[\w-]++(?:\.[\w-]++)++")
_KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:(?:sk|pk|rk|dg|hf|gh[oprsu]|github_pat|glpat|xox[abeprs])[_-]|AKIA|ASIA|AIza)"
    r"(?=[A-Za-z_-]*+\d)[A-Za-z0-9_-]{12,}+"
)
_RUN = re.compile(rf"(?<![{_TOKEN}])[{_TOKEN}]{{32,}}+={{0,2}}")
_HEX = re.compile(r"(?=[A-Fa-f]*+\d)(?=\d*+[A-Fa-f])[0-9A-Fa-f]++")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]){11,30}")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_DIGITS = re.compile(r"(?<!\d[.,])(?<!\d)\d++(?:[ -]\d++)*+")
_PHONE = re.compile(
    r"(?<![\w+])(?:\+|00)[1-9](?:[ ()./-]{0,2}\d){6,14}(?!\d)"  # from abroad
    r"|(?<![\w.,-])(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])"  # in North America
    r"|(?<![\w.,/-])\(?0[1-9]\d{0,3}\)?(?:[ /-]{1,3}\d{2,8}){1,4}(?![\w-])"  # after a zero elsewhere
    r"|(?<![\w.,-])0[1-9]\d{8,9}(?![\w-])"
)
_DATE = re.compile(r"\d{1,4}([/-])\d{1,2}\1\d{2,4}")

_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}


def redacted(text: str, most: int) -> str:
    """The first `most` characters of a text, with "[email]" and the like in place of what nobody should read."""
    window = text[: most + MARGIN]
    shown = redact(window)
    if len(window) < len(text):  # what the window cut in two was not recognised
        shown = shown[:-MARGIN]
    return shown[:most]


def redact(text: str) -> str:
    """A text with "[email]", "[phone]", "[card]", "[iban]", "[ip]", "[key]", "[secret]", "[credentials]" where there was one. Linear in time."""
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text)
    return text


def _secret(match: re.Match[str]) -> str:
    """Long and without words: hexadecimal, or base64, where at most places a character is of another kind than the one before."""
    run = match[0].rstrip("=")
    if _HEX.fullmatch(run):
        return "[secret]"
    kinds = [_kind(char) for char in run if char.isalnum()]
    changes = sum(one != two for one, two in itertools.pairwise(kinds))
    return "[secret]" if set(kinds) == {"a", "A", "0"} and changes >= LEAST_CHANGES * len(kinds) else match[0]


def _kind(char: str) -> str:
    if char.isdigit():
        return "0"
    return "A" if char.isupper() else "a"


def _iban(match: re.Match[str]) -> str:
    """The check: country and digits to the end, letters as 10 to 35, a number that leaves 1 of 97."""
    length = _IBAN_LENGTHS.get(match[0][:2].upper(), 0)
    ends = [at + 1 for at, char in enumerate(match[0]) if char != " "]
    if not 0 < length <= len(ends):
        return match[0]
    head, tail = match[0][: ends[length - 1]], match[0][ends[length - 1] :]
    compact = head.replace(" ", "")
    number = "".join(str(int(char, 36)) for char in compact[4:] + compact[:4])
    return "[iban]" + tail if int(number) % 97 == 1 else match[0]


def _ip(match: re.Match[str]) -> str:
    if not any(char.isdigit() for char in match[0]):  # `Face::add`
        return match[0]
    try:
        ipaddress.ip_address(match[0])
    except ValueError:  # a time, or a number too large
        return match[0]
    return "[ip]"


def _cards(match: re.Match[str]) -> str:
    """Cards among groups of digits: one whole, or written as cards are printed."""
    groups = list(re.finditer(r"\d+", match[0]))
    shown: list[str] = []
    at = first = 0
    while first < len(groups):
        count = next((n for n in (5, 4, 3, 1) if _is_card([group[0] for group in groups[first : first + n]], n)), 0)
        if count:
            shown += [match[0][at : groups[first].start()], "[card]"]
            at = groups[first + count - 1].end()
        first += count or 1
    return "".join(shown) + match[0][at:]


def _is_card(groups: list[str], count: int) -> bool:
    lengths, digits = [len(group) for group in groups], "".join(groups)
    if len(groups) != count or not 13 <= len(digits) <= 19 or digits[0] not in "23456":
        return False
    return (count == 1 or lengths in PRINTED) and _luhn(digits)


def _luhn(digits: str) -> bool:
    """From the right every second digit counts twice, and the digits' sum is a multiple of ten."""
    doubled = (int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits)))
    return sum(value // 10 + value % 10 for value in doubled) % 10 == 0


def _phone(match: re.Match[str]) -> str:
    digits = sum(char.isdigit() for char in match[0])
    if not 8 <= digits <= 15 or (match[0][0] != "+" and (digits < 9 or _DATE.match(match[0]))):
        return match[0]
    return "[phone]"


_STEPS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (_CREDENTIALS, "[credentials]@"),
    (_EMAIL, "[email]"),
    (_KEY, "[key]"),
    (_RUN, _secret),
    (_IBAN, _iban),
    (_IPV6, _ip),
    (_IPV4, _ip),
    (_DIGITS, _cards),
    (_PHONE, _phone),
)
