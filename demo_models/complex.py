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
            return Case(
                {"first": _named(first), "second": _named(second)}, answer, tuple(sorted((_key(first), _key(second))))
            )


COMPLEX = (
    Family("cart_total", True, _cart_total, (
        "what (do I pay for|is the total of|do you charge for|is the price of) {cart} with {terms}?", "how much (are|is|do I pay for) {cart} with {terms}?",
        "I (want|would like) to (buy|order) {cart}. What (is the total|do I pay) with {terms}?",
        "(please add up|calculate|work out) {cart} with {terms}.", "{cart} with {terms}: (what is the total|how much is that|what do I pay)?",
        "with {terms}, (how much|what) (is|are|do I pay for) {cart}?", "(total|the total) (for|of) {cart} with {terms}?",
        "what does it cost to order {cart} with {terms}?", "I (buy|take|order) {cart} and get {terms}. (How much is that|What do I pay)?",
    ), ("if I take {cart}, what comes out with {terms}?", "put {cart} in my bag. What is due with {terms}?")),
    Family("days_left", True, _days_left, (
        "I bought (a|the|my) {item} on {bought}. Today is {today}. How (many days|long) (are left|do I have left|do I have) to return it?",
        "today is {today} and I bought (a|the|my) {item} on {bought}. How (long|many days) can I still return it?",
        "my {item} is from {bought}, and it is {today} (now|today). (Can I still|How long can I) return it?",
        "I (got|have|ordered) (a|the|my) {item} on {bought} and it is {today} (now|today). (Can I still|How long can I still) return it?",
        "bought on {bought}: a {item}. Today is {today}. (How many days are left|Can I return it|Is there time left)?",
        "it is {today}. On {bought} I (bought|got|ordered) a {item}. (Can I still send it back|How many days are left|How long can I return it)?",
        "how many days are left to return (a|the|my) {item} from {bought} if today is {today}?",
    ), ("since {bought} I own a {item}. It is {today}. How much time remains to return it?",
        "given that it is {today}, is a {item} purchased on {bought} still returnable?")),
    Family("sort_filter", True, _sort_filter, (
        "which of {items} cost less than ${limit} and are {condition}? Cheapest first.",
        "(show|list|give|tell) (me|) those of {items} that are {condition} and (under|below) ${limit}, sorted by price.",
        "from {items}, (what|which) is {condition} and (below|under) ${limit}? Sort by price.",
        "I have {items} in mind. Which are {condition} and (under|below|less than) ${limit}? Cheapest first.",
        "(out of|of) {items}, which are {condition} and cost less than ${limit}? (Sort by price|Cheapest first).",
        "{items}: which are {condition} and (under|below) ${limit}, (sorted by price|cheapest first)?",
        "(please|) sort by price what is {condition} and (under|below) ${limit} (of|from) {items}.",
    ), ("of {items}, name what is {condition} and below ${limit}, from cheap to expensive.",
        "with at most ${limit} minus a cent, which ones among {items} that are {condition} can I get, by price?")),
    Family("three_of", True, _three_of, (
        "(name|list|give me|show me) exactly three of {items}: the {extreme}, each with its price, in alphabetical order.",
        "from {items} (pick|choose|take) the three {extreme}, in alphabetical order (and with prices|with prices).",
        "which three of {items} are the {extreme}? In alphabetical order, each with its price.",
        "{items}: (name|list|give me) the three {extreme} (with prices|with their prices), in alphabetical order.",
        "what are the three {extreme} of {items}? (Sort them by name, with prices|In alphabetical order, with prices).",
        "I (need|want) the three {extreme} of {items}, in alphabetical order (and with prices|with their prices).",
        "in alphabetical order and with prices: (which|what) are the three {extreme} of {items}?",
    ), ("the three {extreme} out of {items}, please, with price and sorted by name.",
        "narrow {items} down to the three {extreme} and sort them from A to Z with prices.")),
    Family("two_policies", True, _two_policies, (
        "I bought (a|the|my) {item} {ago} ago and (now it is broken|it broke|it does not work|it is broken). (What can I do|Can I return it|What now)?",
        "my {item} is {ago} old and (broken|does not work|is broken). (Can I return it or use the warranty|What can I do|Is it under warranty)?",
        "{ago} ago I (got|bought|ordered) a {item}, and (now it is broken|it broke|it does not work). (Do I have to pay for the repair or can I return it|What can I do|Can I return it)?",
        "(the|my) {item} I (bought|got|ordered) {ago} ago (broke|is broken|does not work). (What can I do|Do you take it back or repair it|Can I return it)?",
        "(what can I do|can I return it|do you repair it) if (a|my) {item} breaks {ago} after I (bought|got) it?",
        "I (own|have) a {item} for {ago} and (it broke|now it is broken|it does not work). (Can I return it or get it repaired|What can I do)?",
    ), ("after {ago} my {item} failed. Which options are there?", "it took {ago} for the {item} to fall apart. Who pays for that?")),
    Family("compare_carts", True, _compare_carts, (
        "(which|what) (is cheaper|costs less), {first} or {second}, and by how much?",
        "compare {first} with {second}: which (costs less|is cheaper) and (how much less|by how much)?",
        "I can (buy|order|take) {first} or {second}. Which (one is cheaper|is cheaper|costs less) and by how much?",
        "{first} or {second}: which is cheaper(, and by how much|)?", "(should I|is it better to) (buy|take|order) {first} or {second} to (save money|pay less)?",
        "{first} or {second}: what is the difference in price?", "is {first} cheaper than {second}(, and by how much|)?",
        "how much do I save with the cheaper of {first} or {second}?", "first cart: {first}. Second cart: {second}. Which is cheaper and by how much?",
    ), ("{first} versus {second}: what saves money, and how much?", "I am torn between {first} on one side, {second} on the other. Where do I save?")),
)  # fmt: skip
