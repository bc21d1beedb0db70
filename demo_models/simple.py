"""Simple families: one fact looked up, copied or recognised. A draft should get these right."""

import random

from demo_models.families import Case, Family, Turn
from demo_models.grammar import expand, listing
from demo_models.shop import CARRIERS, CATALOGUE, EMAIL, HOURS, NAMES, NOT_SOLD, SHOP, WEEKDAYS, Item


def _hours(rng: random.Random) -> Case:
    day = rng.choice(WEEKDAYS)
    answer = f"On {day} we are open from {HOURS[day]}." if day in HOURS else f"We are closed on {day}."
    return Case({"day": day}, answer, (day,))


def _price(item: Item) -> str:
    return f"The {item.name} costs ${item.price}."


def _stock(item: Item) -> str:
    return f"Yes, the {item.name} is in stock." if item.in_stock else f"Sorry, the {item.name} is sold out."


def _material(item: Item) -> str:
    return f"The {item.name} is made of {item.material}."


def _return_window(item: Item) -> str:
    return f"You can return the {item.name} within {item.return_days} days."


def _warranty(item: Item) -> str:
    years = "1 year" if item.warranty_years == 1 else f"{item.warranty_years} years"
    return f"The warranty on the {item.name} is {years}."


_ASPECTS = {
    "price": (_price, ("how much is the {item}?", "what does the {item} cost?"), "(and how much is it|and what does it cost|and the price)?"),
    "stock": (_stock, ("is the {item} in stock?", "do you have the {item} right now?"), "(and is it in stock|and do you have it right now|is it available too)?"),
    "material": (_material, ("what is the {item} made of?", "which material is the {item}?"), "(and what is it made of|and which material is it|and the material)?"),
    "return": (_return_window, ("how long can I return the {item}?",), "(and how long can I return it|and the return window|and until when can I send it back)?"),
    "warranty": (_warranty, ("how long is the warranty on the {item}?",), "(and how long is the warranty|and the warranty|and does it have a warranty)?"),
}  # fmt: skip


def _about_item(aspect: str):
    def sample(rng: random.Random) -> Case:
        item = rng.choice(CATALOGUE)
        return Case({"item": item.name, "items": item.plural}, _ASPECTS[aspect][0](item), (item.name,))

    return sample


def _follow_up(rng: random.Random) -> Case:
    first, second = rng.sample(sorted(_ASPECTS), 2)
    item, other = rng.sample(CATALOGUE, 2)
    answer, questions, _ = _ASPECTS[first]
    before: tuple[Turn, ...] = (
        ("user", expand(rng.choice(questions), rng, item=item.name)),
        ("assistant", answer(item)),
    )
    if rng.random() < 0.5:  # another aspect of the same item
        question = expand(_ASPECTS[second][2], rng)
        return Case({"question": question}, _ASPECTS[second][0](item), (first, second, item.name), before)
    question = expand("(and the {other}|what about the {other}|and for the {other})?", rng, other=other.name)
    return Case({"question": question}, answer(other), (first, item.name, other.name), before)


def _order_note(rng: random.Random) -> tuple[str, dict[str, str]]:
    ordered, arrives = rng.sample(WEEKDAYS, 2)
    facts = {
        "number": str(rng.randrange(100, 1000)),
        "carrier": rng.choice(CARRIERS),
        "arrives": arrives,
    }
    item = rng.choice(CATALOGUE)
    lines = [
        expand("(Carrier|Sent with|Shipped by): {carrier}.", rng, **facts),
        expand("(Arrives|Delivery|Expected): {arrives}.", rng, **facts),
        expand("(Ordered|Placed|Bought): {ordered}.", rng, ordered=ordered),
        expand("(Item|Article|Contents): {item}.", rng, item=item.name),
    ]
    rng.shuffle(lines)
    return f"Order {facts['number']}. " + " ".join(lines), facts


def _carrier(rng: random.Random) -> Case:
    note, facts = _order_note(rng)
    answer = f"Order {facts['number']} is sent with {facts['carrier']}."
    return Case({}, answer, (facts["number"], facts["carrier"]), document=note)


def _arrival(rng: random.Random) -> Case:
    note, facts = _order_note(rng)
    answer = f"Order {facts['number']} arrives on {facts['arrives']}."
    return Case({}, answer, (facts["number"], facts["arrives"]), document=note)


_PROBLEMS = (
    "arrived broken",
    "is scratched",
    "is too small",
    "has the wrong color",
    "arrived too late",
    "is incomplete",
)
_WISHES = ("a refund", "a replacement", "a discount", "a call back")


def _summary(rng: random.Random) -> Case:
    name, item, problem, wish = rng.choice(NAMES), rng.choice(CATALOGUE), rng.choice(_PROBLEMS), rng.choice(_WISHES)
    lines = [
        expand("(I ordered|I bought|I got) a {item} (last week|from you|online|some days ago).", rng, item=item.name),
        expand("(The {item}|My {item}|Now the {item}) {problem}.", rng, item=item.name, problem=problem),
        expand("(I want|I would like|Please give me) {wish}.", rng, wish=wish),
    ]
    if rng.random() < 0.3:
        lines = [lines[2], lines[0], lines[1]]
    ticket = expand("Ticket (from|by) {name}: ", rng, name=name) + " ".join(lines)
    answer = f"{name} wants {wish} because the {item.name} {problem}."
    return Case({}, answer, (name, item.name, problem, wish), document=ticket)


def _which_sold(rng: random.Random) -> Case:
    sold = [item.name for item in rng.sample(CATALOGUE, rng.randint(0, 3))]
    others = rng.sample(NOT_SOLD, rng.randint(1, 2) if sold else 2)
    named = [*sold, *others]
    rng.shuffle(named)
    ours = [f"the {name}" for name in named if name in sold]
    answer = f"We sell {listing(ours)}." if ours else "We sell none of these."
    return Case({"these": listing([f"a {n}" for n in named], "or"), "plain": listing(named)}, answer, tuple(named))


def _fixed(answer: str):
    return lambda rng: Case({}, answer, ("",))


SIMPLE = (
    Family("hours", False, _hours, (
        "when (are you|is the shop|is your store) open on {day}?", "what are your (opening hours|hours) on {day}?",
        "(are you|is the shop) open on {day}?", "(can|could) I come by on {day}?",
    ), ("until what time may customers visit on {day}?",), small=True),
    Family("price", False, _about_item("price"), (
        "how much is (the|a) {item}?", "what (does|would) (the|a) {item} cost?", "what is the price of (the|a) {item}?",
        "(could|can) you tell me the price of the {item}?", "how much do I pay for a {item}?",
    ), ("I wonder how many dollars a {item} sets me back?",), small=True),
    Family("stock", False, _about_item("stock"), (
        "is the {item} in stock?", "do you have (the|a) {item} (right now|in stock|available)?",
        "is (the|a) {item} available?", "(can|could) I (buy|get) a {item} today?",
    ), ("are there any {items} left?",), small=True),
    Family("material", False, _about_item("material"), (
        "what is the {item} made of?", "which material is the {item}?", "what material (do|did) you use for the {item}?",
        "(can|could) you tell me what the {item} is made of?",
    ), ("what is your {item} made from?",), small=True),
    Family("return_window", False, _about_item("return"), (
        "how long can I return (the|a) {item}?", "how many days do I have to return (the|a) {item}?",
        "what is the return window for (the|a) {item}?", "until when can I send (the|a) {item} back?",
    ), ("within how many days can a {item} be returned?",), small=True),
    Family("warranty", False, _about_item("warranty"), (
        "how long is the warranty on (the|a) {item}?", "what warranty (does|do you give on) the {item} (have|come with)?",
        "does the {item} have a warranty?", "how many years of warranty are on (the|a) {item}?",
    ), ("for how long is a {item} under warranty?",), small=True),
    Family("carrier", False, _carrier, (
        "(which|what) carrier (brings|has|delivers) (this|my) order?", "who (delivers|brings|ships) (this|my) order?",
        "with whom is this order sent?",
    ), ("(which|what) company is my parcel with?",)),
    Family("arrival", False, _arrival, (
        "when (does|will) (this|my) order (arrive|come)?", "(which|what) day will (this|my) order be here?",
        "on which day does it arrive?",
    ), ("what day should I expect my parcel?",)),
    Family("summary", False, _summary, (
        "(summarize|sum up) this ticket in one sentence.", "what does this customer want, in one sentence?",
        "give me a one sentence summary.", "(write|make) a short summary of this ticket.",
    ), ("what is this ticket about? One sentence.",)),
    Family("greeting", False, _fixed("Hello! How can I help you?"), (
        "(hi|hello|hey)(!|.|)", "(hi|hello|hey) there(!|.|)", "good (morning|evening|day)(!|.|)", "(hi|hello), is anyone there?",
        "(hi|hello|hey), how are you?",
    ), ("greetings!",), small=True),
    Family("thanks", False, _fixed("You are welcome! Have a nice day."), (
        "(thanks|thank you)(!|.| very much.| a lot!)", "(great|perfect|good), (thanks|thank you)(!|.)",
        "that was all, (thanks|thank you).", "(thanks|thank you) for your help(!|.)",
    ), ("many thanks, that helped.",), small=True),
    Family("follow_up", False, _follow_up, ("{question}",), ("okay. {question}",)),
    Family("which_sold", False, _which_sold, (
        "which of these do you sell: {plain}?", "do you (sell|have) {these}?", "(can|could) I buy {these} (from you|in your shop)?",
        "I am looking for {these}. (Which|What) do you sell?",
    ), ("out of {plain}, what is in your catalogue?",)),
    Family("contact", False, _fixed(f"You can write to us at {EMAIL}."), (
        "how can I (contact|reach|write to) you?", "what is your email address?", "(where|how) do I send you an email?",
        "(can|could) I write you an email?",
    ), ("which address do I use for mail?",), small=True),
    Family("off_topic", False, _fixed(f"Sorry, I only know about {SHOP}."), (
        "why is the (sky|sea|grass) (blue|green)?", "who (wrote|painted|invented) (the|this) (book|song|picture|wheel)?",
        "what is the capital of (France|Peru|Japan|Kenya|Norway)?", "(tell me|write) a (joke|poem|story|song) about (cats|love|rain|the moon).",
        "(translate|say) (hello|good night|water) (in|to) (French|German|Spanish).", "how (old|far|big) is the (sun|moon|earth)?",
        "(write|show me) a (python|java) (function|program|script) that sorts a list.", "who is the president of (France|Brazil|Kenya)?",
        "what is the meaning of life?", "(explain|what is) (gravity|photosynthesis|inflation|quantum physics)(.|?)",
        "(how do I|how to) (cook rice|fix a car|learn to swim|grow tomatoes)?", "will it rain (today|tomorrow|on Sunday)?",
    ), ("what is the tallest mountain in the world?", "name three famous rivers."), small=True),
)  # fmt: skip
