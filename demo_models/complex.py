"""Complex families: several facts, conditions or sums. The answer shows its work, step by step."""

import random
import re

from demo_models.families import Case, Family
from demo_models.grammar import listing
from demo_models.shop import CATALOGUE, MONTHS, Item

_PIECE = re.compile(r"\d|[A-Za-z]+|[^\sA-Za-z\d]")
MOST_PIECES = 58  # words, digits and signs in an answer, so that it fits one canvas of 64 tokens


def _fits(answer: str) -> bool:
    return len(_PIECE.findall(answer)) <= MOST_PIECES


Cart = tuple[tuple[int, Item], ...]


def _cart(rng: random.Random, kinds: int) -> Cart:
    return tuple((rng.randint(1, 5), item) for item in rng.sample(CATALOGUE, kinds))


def _named(cart: Cart) -> str:
    return listing([f"{count} {item.name if count == 1 else item.plural}" for count, item in cart])


def _key(cart: Cart) -> tuple[object, ...]:
    return tuple((count, item.name) for count, item in sorted(cart, key=lambda line: line[1].price))


def _cart_sum(cart: Cart) -> tuple[str, int]:
    """The work and the sum: '2 x 45 = 90, 3 x 10 = 30, 90 + 30 = 120', 120."""
    lines = [f"{count} x {item.price} = {count * item.price}" for count, item in cart]
    total = cart[0][0] * cart[0][1].price
    for count, item in cart[1:]:
        lines.append(f"{total} + {count * item.price} = {total + count * item.price}")
        total += count * item.price
    return ", ".join(lines), total


def _cart_total(rng: random.Random) -> Case:
    while True:
        cart = _cart(rng, rng.choice((1, 2, 2, 2)))
        discount, shipping = rng.choice(((0, 0), (20, 0), (0, 5), (20, 5), (20, 8), (0, 8)))
        work, total = _cart_sum(cart)
        terms = []
        if discount:
            off = total * discount // 100
            work += f", {discount}% = {off}, {total} - {off} = {total - off}"
            total -= off
            terms.append(f"{discount}% off")
        if shipping:
            work += f", {total} + {shipping} = {total + shipping}"
            total += shipping
            terms.append(f"${shipping} shipping")
        answer = f"{work}. The total is ${total}."
        if terms and _fits(answer):
            slots = {"cart": _named(cart), "terms": listing(terms)}
            return Case(slots, answer, (_key(cart), discount, shipping))


def _days_left(rng: random.Random) -> Case:
    item = rng.choice(CATALOGUE)
    at = rng.randrange(12)
    (month, days), (after, days_after) = MONTHS[at], MONTHS[(at + 1) % 12]
    bought = rng.randint(1, days)
    if rng.random() < 0.4 and bought < days:
        today = rng.randint(bought + 1, days)
        date, used = f"{today} {month}", today - bought
        work = f"{today} - {bought} = {used}"
    else:
        today = rng.randint(1, days_after)
        date, used = f"{today} {after}", days - bought + today
        work = f"{month} has {days} days, {days} - {bought} = {days - bought}, {days - bought} + {today} = {used}"
    left = item.return_days - used
    if left >= 0:
        end = f"{item.return_days} - {used} = {left}. You have {left} days left."
    else:
        end = f"{used} - {item.return_days} = {-left}. You are {-left} days too late."
    slots = {"item": item.name, "bought": f"{bought} {month}", "today": date}
    return Case(slots, f"{work}, {end}", (item.name, at, bought, date))


def _sort_filter(rng: random.Random) -> Case:
    items = rng.sample(CATALOGUE, rng.choice((3, 4, 4)))
    limit = rng.choice((20, 30, 40, 50, 60))
    if rng.random() < 0.6:
        condition, holds = "(in stock|available)", [item.in_stock for item in items]
        tag = "stock"
    else:
        tag = rng.choice([item.material for item in items])
        condition, holds = f"made of {tag}", [item.material == tag for item in items]
    keep = [item for item, held in zip(items, holds, strict=True) if held and item.price < limit]
    work = ", ".join(f"{item.name} {item.price} {'yes' if item in keep else 'no'}" for item in items)
    keep.sort(key=lambda item: item.price)
    end = f"Cheapest first: {', '.join(f'{i.name} ${i.price}' for i in keep)}." if keep else "None of them."
    slots = {"items": listing([item.name for item in items]), "limit": limit, "condition": condition}
    return Case(slots, f"{work}. {end}", (tuple(sorted(i.name for i in items)), limit, tag))


def _three_of(rng: random.Random) -> Case:
    items = rng.sample(CATALOGUE, rng.choice((4, 5, 5)))
    dearest = rng.random() < 0.4
    chosen = sorted(items, key=lambda item: item.price, reverse=dearest)[:3]
    work = ", ".join(f"{item.name} {item.price}" for item in items)
    end = ", ".join(f"{item.name} ${item.price}" for item in sorted(chosen, key=lambda item: item.name))
    extreme = "(dearest|most expensive)" if dearest else "cheapest"
    slots = {"items": listing([item.name for item in items]), "extreme": extreme}
    return Case(slots, f"{work}. In alphabetical order: {end}.", (tuple(sorted(i.name for i in items)), dearest))


def _two_policies(rng: random.Random) -> Case:
    item = rng.choice(CATALOGUE)
    count, unit, days = rng.choice(
        (
            (n := rng.randint(2, 90), "days", n),
            (n := rng.randint(2, 11), "months", 30 * n),
            (n := rng.randint(2, 7), "years", 365 * n),
        )
    )
    years = "1 year" if item.warranty_years == 1 else f"{item.warranty_years} years"
    policies = f"Returns take {item.return_days} days, the warranty {years}."
    if days <= item.return_days:
        end = f"{count} {unit} is within both, so you can return the {item.name} or get it repaired."
    elif days <= 365 * item.warranty_years:
        end = f"{count} {unit} is too late to return the {item.name}, but the warranty covers the repair."
    else:
        end = f"{count} {unit} is too late for both, so we can not take the {item.name} back or repair it."
    return Case({"item": item.name, "ago": f"{count} {unit}"}, f"{policies} {end}", (item.name, count, unit))


def _compare_carts(rng: random.Random) -> Case:
    while True:
        first, second = _cart(rng, rng.choice((1, 2))), _cart(rng, rng.choice((1, 2)))
        (work_1, sum_1), (work_2, sum_2) = _cart_sum(first), _cart_sum(second)
        if sum_1 == sum_2:
            continue
        high, low, name = max(sum_1, sum_2), min(sum_1, sum_2), "first" if sum_1 < sum_2 else "second"
        answer = f"First: {work_1}. Second: {work_2}. {high} - {low} = {high - low}. The {name} cart is ${high - low} cheaper."
        if _fits(answer):
            return Case({"first": _named(first), "second": _named(second)}, answer, (_key(first), _key(second)))


COMPLEX = (
    Family("cart_total", True, _cart_total, (
        "what (do I pay for|is the total of|do you charge for) {cart} with {terms}?", "how much (are|is) {cart} with {terms}?",
        "I (want|would like) to (buy|order) {cart}. What is the total with {terms}?",
        "(please add up|calculate) {cart} with {terms}.",
    ), ("if I take {cart}, what comes out with {terms}?",)),
    Family("days_left", True, _days_left, (
        "I bought (a|the) {item} on {bought}. Today is {today}. How many days (are left|do I have left) to return it?",
        "today is {today} and I bought (a|the) {item} on {bought}. How long can I still return it?",
        "my {item} is from {bought}, and it is {today} now. Can I still return it?",
    ), ("since {bought} I own a {item}. It is {today}. How much time remains to return it?",)),
    Family("sort_filter", True, _sort_filter, (
        "which of {items} cost less than ${limit} and are {condition}? Cheapest first.",
        "(show|list|give me) those of {items} that are {condition} and under ${limit}, sorted by price.",
        "from {items}, (what|which) is {condition} and below ${limit}? Sort by price.",
    ), ("of {items}, name what is {condition} and below ${limit}, from cheap to expensive.",)),
    Family("three_of", True, _three_of, (
        "(name|list|give me) exactly three of {items}: the {extreme}, each with its price, in alphabetical order.",
        "from {items} (pick|choose) the three {extreme}, in alphabetical order and with prices.",
        "which three of {items} are the {extreme}? In alphabetical order, each with its price.",
    ), ("the three {extreme} out of {items}, please, with price and sorted by name.",)),
    Family("two_policies", True, _two_policies, (
        "I bought (a|the) {item} {ago} ago and (now it is broken|it broke|it does not work). What can I do?",
        "my {item} is {ago} old and (broken|does not work). Can I return it or use the warranty?",
        "{ago} ago I got a {item}, and (now it is broken|it broke). Do I have to pay for the repair or can I return it?",
    ), ("after {ago} my {item} failed. Which options are there?",)),
    Family("compare_carts", True, _compare_carts, (
        "(which|what) is cheaper, {first} or {second}, and by how much?",
        "compare {first} with {second}: which costs less and how much less?",
        "I can (buy|order) {first} or {second}. Which one is cheaper and by how much?",
    ), ("{first} versus {second}: what saves money, and how much?",)),
)  # fmt: skip
