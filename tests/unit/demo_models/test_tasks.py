"""The task generator: its splits never mix, and its answers are right by arithmetic done again here."""

import operator
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice, product
from typing import Any, NamedTuple, get_args

import pytest

from demo_models import tasks
from demo_models.families import Case, Family
from demo_models.shop import CATALOGUE, MONTHS, Item
from demo_models.tasks import FAMILIES, Conversation, Split, conversations

SPLITS = get_args(Split)
COMPLEX = [family.name for family in FAMILIES.values() if family.is_complex]
BY_NAME = {item.name: item for item in CATALOGUE} | {item.plural: item for item in CATALOGUE}
YEAR_START = {month: sum(days for _, days in MONTHS[:at]) for at, (month, _) in enumerate(MONTHS)}
OPERATIONS = {"+": operator.add, "-": operator.sub, "x": operator.mul}


def sample(split: Split, count: int, seed: int = 1, **options: Any) -> list[Conversation]:
    return list(islice(conversations(split, seed, **options), count))


def question(conversation: Conversation) -> str:
    return conversation.messages[-1]["content"]


# Reproducible, varied, complete


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_conversations(split: Split):
    assert sample(split, 200) == sample(split, 200)
    assert sample(split, 200) != sample(split, 200, seed=2)


@pytest.mark.parametrize(
    ("split", "families"),
    [("train", FAMILIES.keys()), ("combinations", FAMILIES.keys()), ("wordings", FAMILIES.keys())],
)
def test_every_family_occurs_in_every_split(split: Split, families: set[str]):
    assert {c.family for c in sample(split, 3000)} == families


def test_there_are_at_least_twelve_simple_and_six_complex_families():
    assert len(COMPLEX) >= 6
    assert len(FAMILIES) - len(COMPLEX) >= 12


def test_there_are_thousands_of_surface_forms():
    assert len({question(c) for c in sample("train", 5000)}) > 4000


def test_the_share_of_complex_conversations_is_as_asked():
    assert sum(c.is_complex for c in sample("train", 4000, complex_share=0.3)) / 4000 == pytest.approx(0.3, abs=0.03)


def test_conversations_are_of_the_families_asked_for():
    assert {c.family for c in sample("train", 100, families=("price", "days_left"))} == {"price", "days_left"}


def test_conversations_take_turns_and_end_with_the_user():
    for conversation in sample("train", 2000):
        roles = [message["role"] for message in conversation.messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert all(message["content"].strip() for message in conversation.messages)


# Splits that never mix


class Drawn(NamedTuple):
    """What a conversation was made of, before openers and typos."""

    family: Family
    case: Case
    question: str

    @property
    def combination(self) -> tuple[object, ...]:
        return (self.family.name, self.case.key, self.question if self.family.small else "")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch):
    """Draw from a split, seeing the facts."""

    monkeypatch.setattr(tasks, "_converse", lambda family, case, question, rng: Drawn(family, case, question))
    return sample


def skeletons(wording: str) -> Iterator[str]:
    """Every form of a wording, its slots left open."""
    parts = re.split(r"\(([^()]*)\)", wording)
    choices = [part.split("|") if at % 2 else [part] for at, part in enumerate(parts)]
    return ("".join(form) for form in product(*choices))


def patterns(wordings: tuple[str, ...]) -> list[re.Pattern[str]]:
    forms = (re.split(r"\{\w+\}", form) for wording in wordings for form in skeletons(wording))
    return [re.compile(".+".join(map(re.escape, form))) for form in forms]


def test_no_combination_of_facts_is_both_trained_and_held_out(drawn):
    trained = {one.combination for one in drawn("train", 10_000)}
    held_out = {one.combination for one in drawn("combinations", 10_000)}
    assert not trained & held_out


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_no_unseen_wording_is_also_a_trained_one(family: Family):
    trained = {form.lower() for wording in family.wordings for form in skeletons(wording)}
    unseen = {form.lower() for wording in family.unseen_wordings for form in skeletons(wording)}
    assert unseen
    assert not trained & unseen


@pytest.mark.parametrize(("split", "is_unseen"), [("wordings", True), ("train", False), ("combinations", False)])
def test_unseen_wordings_are_all_of_their_split_and_of_no_other(drawn, split: Split, is_unseen: bool):
    unseen = {family.name: patterns(family.unseen_wordings) for family in FAMILIES.values()}
    for one in drawn(split, 5000):
        assert any(p.fullmatch(one.question) for p in unseen[one.family.name]) == is_unseen, one.question


# Right answers


def check_arithmetic(answer: str) -> int:
    """Do every sum of an answer again; returns how many there were."""
    sums = re.findall(r"(\d+) ([-+x]) (\d+) = (\d+)", answer)
    for left, sign, right, result in sums:
        assert OPERATIONS[sign](int(left), int(right)) == int(result), answer
    shares = re.findall(r"= (\d+), (\d+)% = (\d+)", answer)  # a share of the result before it
    for whole, percent, result in shares:
        assert int(whole) * int(percent) == 100 * int(result), answer
    assert answer.count("=") == len(sums) + len(shares), answer  # no sum in a form unknown here
    return len(sums) + len(shares)


def cart_sum(text: str) -> int:
    lines = re.findall(r"(\d+) ([a-z]+)", text)
    return sum(int(count) * BY_NAME[name].price for count, name in lines if name in BY_NAME)


def items_in(text: str) -> list[Item]:
    return [BY_NAME[name] for name in re.findall(r"[a-z]+", text) if name in BY_NAME]


def day_of_year(day: str, month: str) -> int:
    return YEAR_START[month] + int(day)


def right_cart_total(q: str) -> str:
    total = cart_sum(q)
    if off := re.search(r"(\d+)% off", q):
        total -= total * int(off[1]) // 100
    if shipping := re.search(r"\$(\d+) shipping", q):
        total += int(shipping[1])
    return f"The total is ${total}."


def right_days_left(q: str) -> str:
    (item,) = items_in(q)
    date = rf"(\d+) ({'|'.join(YEAR_START)})"
    today = re.search(rf"(?:today|it) is {date}", q, re.IGNORECASE).groups()  # pyright: ignore[reportOptionalMemberAccess]
    (bought,) = (found for found in re.findall(date, q) if found != today)
    left = item.return_days - (day_of_year(*today) - day_of_year(*bought)) % 365
    return f"You have {left} days left." if left >= 0 else f"You are {-left} days too late."


def right_sort_filter(q: str) -> str:
    limit = int(re.search(r"\$(\d+)", q)[1])  # pyright: ignore[reportOptionalSubscript]
    material = re.search(r"made of (\w+)", q)
    fits = [i for i in items_in(q) if (i.material == material[1] if material else i.in_stock) and i.price < limit]
    fits.sort(key=lambda item: item.price)
    return f"Cheapest first: {', '.join(f'{i.name} ${i.price}' for i in fits)}." if fits else "None of them."


def right_three_of(q: str) -> str:
    dearest = "dearest" in q or "most expensive" in q
    chosen = sorted(items_in(q), key=lambda item: -item.price if dearest else item.price)[:3]
    named = sorted(f"{item.name} ${item.price}" for item in chosen)
    return f"In alphabetical order: {', '.join(named)}."


def right_two_policies(q: str) -> str:
    (item,) = items_in(q)
    count, unit = re.search(r"(\d+) (days|months|years)", q).groups()  # pyright: ignore[reportOptionalMemberAccess]
    days = int(count) * {"days": 1, "months": 30, "years": 365}[unit]
    if days <= item.return_days:
        return f"is within both, so you can return the {item.name} or get it repaired."
    if days <= 365 * item.warranty_years:
        return f"is too late to return the {item.name}, but the warranty covers the repair."
    return f"is too late for both, so we can not take the {item.name} back or repair it."


def right_compare_carts(q: str) -> str:
    first, second = re.split(r" or | with (?=\d)| versus | than |second cart| on one side, ", q, flags=re.IGNORECASE)[
        :2
    ]
    a, b = cart_sum(first), cart_sum(second)
    return f"The {'first' if a < b else 'second'} cart is ${abs(a - b)} cheaper."


RIGHT = {name.removeprefix("right_"): check for name, check in globals().items() if name.startswith("right_")}


@pytest.mark.parametrize("name", COMPLEX)
@pytest.mark.parametrize("split", SPLITS)
def test_every_complex_answer_is_right(drawn, split: Split, name: str):
    for one in drawn(split, 500, families=(name,)):
        check_arithmetic(one.case.answer)
        assert one.case.answer.endswith(RIGHT[name](one.question)), one


@pytest.mark.parametrize("name", ["cart_total", "days_left", "compare_carts"])
def test_answers_to_sums_show_their_work(name: str):
    assert all(check_arithmetic(c.answer) for c in sample("train", 200, families=(name,)))


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_no_sum_is_wrong_among_very_many_answers(split: Split):
    for conversation in islice(conversations(split, seed=3, complex_share=1.0), 50_000):
        check_arithmetic(conversation.answer)


def test_facts_survive_typos():
    """What an answer is made of stands in the conversation letter by letter, or is the shop's own knowledge."""
    named = defaultdict(int)
    for conversation in sample("train", 5000):
        text = " ".join(message["content"] for message in conversation.messages).lower()
        if conversation.family in ("price", "stock", "material", "return_window", "warranty"):
            named[conversation.family] += 1
            (item,) = items_in(conversation.answer)
            assert re.search(rf"\b({item.name}|{item.plural})\b", text), text
        if conversation.family in ("carrier", "arrival"):
            number, fact = re.fullmatch(r"Order (\d+) (?:is sent with|arrives on) (.+)\.", conversation.answer).groups()  # pyright: ignore[reportOptionalMemberAccess]
            assert number in text
            assert fact.lower() in text
    assert len(named) == 5


@pytest.mark.parametrize(
    ("given", "right"),
    [("We are closed on Sunday.", True), (" We are  closed on Sunday.\n", True), ("We are closed on Monday.", False)],
)
def test_an_answer_is_right_word_for_word_white_space_aside(given: str, right: bool):
    conversation = Conversation(family="hours", is_complex=False, messages=(), answer="We are closed on Sunday.")
    assert conversation.is_right(given) == right


def test_a_split_without_conversations_says_so_instead_of_searching_forever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks, "_is_held_out", lambda *_: False)
    with pytest.raises(ValueError, match="expected families that have combinations, got \\('contact',\\)"):
        next(conversations("combinations", seed=0, families=("contact",)))


def test_emphasis_makes_a_family_as_many_times_as_frequent():
    drawn = [c.family for c in sample("train", 4000, complex_share=0.0, emphasis={"carrier": 5})]
    assert drawn.count("carrier") / len(drawn) == pytest.approx(5 / 19, abs=0.03)
