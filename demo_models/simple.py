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
    "price": (_price, ("how much is the {item}?", "what does the {item} cost?", "what is the price of the {item}?"), "(and how much is it|how much is it|and what does it cost|what does it cost|and the price|what is the price)?"),
    "stock": (_stock, ("is the {item} in stock?", "do you have the {item} right now?"), "(and is it in stock|is it in stock|and do you have it right now|do you have it|is it available too|is it available)?"),
    "material": (_material, ("what is the {item} made of?", "which material is the {item}?"), "(and what is it made of|what is it made of|and which material is it|and the material|which material)?"),
    "return": (_return_window, ("how long can I return the {item}?", "can I return the {item}?"), "(and how long can I return it|how long can I return it|and the return window|and until when can I send it back|can I return it)?"),
    "warranty": (_warranty, ("how long is the warranty on the {item}?", "does the {item} have a warranty?"), "(and how long is the warranty|how long is the warranty|and the warranty|and does it have a warranty|does it have a warranty)?"),
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
    question = expand(
        "(and the {other}|what about the {other}|and for the {other}|and a {other}|how about the {other}|the {other})?",
        rng,
        other=other.name,
    )
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
    return Case(
        {"these": listing([f"a {n}" for n in named], "or"), "plain": listing(named)}, answer, tuple(sorted(named))
    )


def _fixed(answer: str):
    return lambda rng: Case({"a": rng.randint(2, 30), "b": rng.randint(2, 30)}, answer, ("",))


SIMPLE = (
    Family("hours", False, _hours, (
        "when (are you|is the shop|is your store) open on {day}?", "what are your (opening hours|hours) on {day}?",
        "(are you|is the shop|is the store) open on {day}?", "(can|could) I (come by|visit you|visit the shop) on {day}?",
        "(what time|when) do you (open|close) on {day}?", "(opening hours|hours) (on|for) {day}?",
        "(until when|how long) are you open on {day}?", "{day}: (are you open|when are you open|which hours)?",
        "I want to (visit|come by|drop in) on {day}. (When are you open|Are you open|Which hours do you have)?",
        "is (anyone|somebody) (there|in the shop) on {day}?", "(tell me|I need) your hours for {day}.",
        "do you (work|have open|open) on {day}?", "from when to when is the (shop|store) open on {day}?",
    ), ("until what time may customers visit on {day}?", "would {day} be a good day to stop by the store?"), small=True),
    Family("price", False, _about_item("price"), (
        "how much is (the|a|your) {item}?", "what (does|would|will) (the|a) {item} cost (me|)?",
        "what is the (price|cost) of (the|a|your) {item}?", "(could|can) you (tell me|give me) the price of the {item}?",
        "how much (do|must|would) I pay for (a|the) {item}?", "(price|the price) of (the|a) {item}?",
        "I (want|would like|need) to know (what the {item} costs|the price of the {item}|how much the {item} is).",
        "how (expensive|dear|cheap) is (the|a|your) {item}?", "what do you (ask|charge|want) for (a|the) {item}?",
        "{item}: how much?", "how many dollars is (a|the) {item}?", "for how much do you sell {items}?",
        "what (are|do) your {items} (sold for|cost)?", "I (am thinking of|dream of) buying a {item}. What does it cost?",
        "(is|are) {items} expensive?",
    ), ("I wonder how many dollars a {item} sets me back?", "what will I be charged for one {item}?"), small=True),
    Family("stock", False, _about_item("stock"), (
        "is the {item} in stock?", "do you (still|) have (the|a|any) {item} (right now|in stock|available)?",
        "is (the|a) {item} (still|) available?", "(can|could) I (buy|get|order) (a|the) {item} (today|now|right away)?",
        "are {items} (in stock|available|sold out)?", "(do|did) you run out of {items}?", "is the {item} sold out?",
        "how about stock: do you have {items}?", "(availability|stock) of the {item}?", "{item}: in stock?",
        "I (want|need|would like) a {item} now. (Do you have one|Is it in stock|Is one available)?",
        "(have|do) you (got|have) {items} (in the shop|in the store|right now|left)?", "is there (still a|a) {item} (left|to be had)?",
    ), ("are there any {items} left?", "could I walk out with a {item} today?"), small=True),
    Family("material", False, _about_item("material"), (
        "what is the {item} made (of|from|out of)?", "which material is the {item}?", "what material (do|did) you use for the {item}?",
        "(can|could) you tell me what the {item} is made of?", "what are (your|the) {items} made (of|from)?",
        "(material|the material) of the {item}?", "{item}: which material?", "is the {item} (wood|metal|plastic|wool|glass)?",
        "(of|from) what is the {item} made?", "I (want|would like|need) to know the material of the {item}.",
        "what (kind|sort) of material is (the|your) {item}?", "the {item}, what is it made of?",
        "which material (have you|do you have|did you take) for {items}?",
    ), ("what is your {item} made from?", "what stuff did they build the {item} with?"), small=True),
    Family("return_window", False, _about_item("return"), (
        "how long can I return (the|a|my) {item}?", "how (many days|long) do I have to return (the|a|my) {item}?",
        "what is the return (window|period|time) for (the|a) {item}?", "until when can I (send|give|bring) (the|a) {item} back?",
        "(can|may) I return (the|a|my) {item}?", "(returns|return window|return policy) for the {item}?",
        "if I do not like the {item}, (how long can I return it|can I send it back|until when can I return it)?",
        "how long do you take {items} back?", "{item}: how long can I return it?", "do you take {items} back?",
        "I (want|would like) to (return|send back|give back) (a|my) {item}. How (long|many days) do I have?",
        "(in|within) what time (must|can) I send the {item} back?", "how (many days|long) (after|from) buying can I return (a|the) {item}?",
    ), ("within how many days can a {item} be returned?", "how soon must I decide whether to keep the {item}?"), small=True),
    Family("warranty", False, _about_item("warranty"), (
        "how long is the warranty (on|of|for) (the|a|my) {item}?", "what warranty (does|do you give on) the {item} (have|come with)?",
        "does the {item} (have|come with) a warranty?", "how many years of warranty (are on|has|come with) (the|a) {item}?",
        "(warranty|the warranty) (on|for|of) the {item}?", "{item}: how long is the warranty?", "is there a warranty on (the|your) {item}?",
        "(until when|how long) does the warranty of the {item} (last|run|hold)?", "do {items} (have|come with) a warranty?",
        "what is the warranty (on|for) {items}?", "I (want|would like|need) to know the warranty of the {item}.",
        "how long do you (repair|guarantee) (a|the) {item} (for free|)?", "for how many years do you (give|offer) a warranty on {items}?",
    ), ("for how long is a {item} under warranty?", "how many years am I covered when my {item} breaks?"), small=True),
    Family("carrier", False, _carrier, (
        "(which|what) (carrier|company) (brings|has|delivers|ships|carries) (this|my|the) (order|parcel|package)?",
        "who (delivers|brings|ships|carries|has) (this|my|the) (order|parcel|package)?",
        "with (whom|which carrier) is (this|my) (order|parcel) sent?", "how is (this|my) (order|parcel) (sent|shipped|delivered)?",
        "(who|which one) is the carrier (here|of this order|for my parcel)?", "(tell me|I need) the carrier (of this order|please|here).",
        "which carrier (do you use|did you use|was used) (here|for this order|for my order)?", "carrier?",
        "I (wait|am waiting) for (this|my) (order|parcel). Who (brings|delivers) it?", "who (will bring|is bringing) it?",
    ), ("(which|what) company is my parcel with?", "whose van should I look out for?")),
    Family("arrival", False, _arrival, (
        "when (does|will) (this|my|the) (order|parcel|package) (arrive|come|get here)?",
        "(which|what) day (will|does) (this|my) (order|parcel) (be here|arrive|come)?",
        "on (which|what) day does (it|this order|my parcel) (arrive|come)?", "when (is|will) (it|this order|my parcel) (here|be here|be delivered)?",
        "(arrival|delivery|arrival day)?", "when (can|should|do) I expect (it|this order|my order)?",
        "(tell me|I need) the (arrival day|day of arrival|day it comes|delivery day).", "(on|for) which day is (the|my) delivery planned?",
        "I (wait|am waiting) for (this|my) (order|parcel). When (does|will) it (come|arrive|be here)?",
        "how long until it arrives? (Which day|What day) is it?", "when do I get (it|my order|this parcel)?",
    ), ("what day should I expect my parcel?", "which day must I be at home for it?")),
    Family("summary", False, _summary, (
        "(summarize|sum up) this ticket in (one|a) sentence.", "what does this customer want(, in one sentence|)?",
        "give me a (one sentence|short|brief) summary.", "(write|make|give) (me|) a short summary of this (ticket|message).",
        "(please|) (summarize|sum up) (the ticket|this|it).", "in one sentence: what does the customer (want|need|ask for)?",
        "what (does|is) the customer (want|asking for) and why?", "(can|could) you (summarize|sum up) (this|the ticket|it) (for me|in one sentence|briefly)?",
        "(summary|short summary|one sentence summary)?", "(who|which customer) wants what, and why?", "shorten this ticket to one sentence.",
        "I (need|want) a summary of this ticket(.| in one sentence.)", "what (happened|is the matter) (here|in this ticket)? One sentence.",
    ), ("what is this ticket about? One sentence.", "boil this down to a single line for me.")),
    Family("greeting", False, _fixed("Hello! How can I help you?"), (
        "(hi|hello|hey)(!|.|)", "(hi|hello|hey) there(!|.|)", "good (morning|evening|day|afternoon)(!|.|)", "(hi|hello|hey), is anyone there?",
        "(hi|hello|hey), how are you(| today)?", "(hi|hello|hey) (again|everyone|you)(!|.|)", "(is anyone|anybody|is somebody) (there|here)?",
        "(hi|hello|hey), (can|could) you help me?", "(can|could) you help me(| please)?", "I (have a question|need help|need some help).",
        "(hi|hello|hey) (shop|team|support)(!|.|)",
    ), ("greetings!", "a very good day to you."), small=True),
    Family("thanks", False, _fixed("You are welcome! Have a nice day."), (
        "(thanks|thank you)(!|.| very much.| a lot!| so much!)", "(great|perfect|good|nice|okay|super), (thanks|thank you)(!|.)",
        "that (was|is) all, (thanks|thank you)(.|!)", "(thanks|thank you) for (your|the) help(!|.)", "(thanks|thank you), (bye|goodbye)(!|.)",
        "(you helped me a lot|that helped me|that helps), (thanks|thank you)(!|.)", "(very|so) (kind|nice|helpful), (thanks|thank you)(!|.)",
        "(bye|goodbye)(!|.)", "(thanks|thank you), that is (all|good to know|what I wanted)(.|!)",
    ), ("many thanks, that helped.", "cheers, you made my day."), small=True),
    Family("follow_up", False, _follow_up, (
        "{question}", "{question}", "(okay|good|great|thanks|fine)(.|,) {question}", "(one more|another) (question|thing): {question}",
    ), ("alright then. {question}", "got it. {question}")),
    Family("which_sold", False, _which_sold, (
        "which of these do you (sell|have): {plain}?", "do you (sell|have|offer) {these}?", "(can|could) I (buy|get|order) {these} (from you|in your shop|here|)?",
        "I am looking for {these}. (Which|What) do you (sell|have)?", "{plain}: which (of these do you sell|do you have|can I buy from you)?",
        "(is|are) {plain} in your (catalogue|shop|store)?", "what of {plain} do you (sell|have|offer)?",
        "I (need|want|would like) {plain}. (Which|What) do you (sell|have|offer)?", "(which|what) (can I buy|do you sell) of {plain}?",
        "do you (sell|have|offer) (any of these|these): {plain}?",
    ), ("out of {plain}, what is in your catalogue?", "my list says {plain}. What could I find at your place?")),
    Family("contact", False, _fixed(f"You can write to us at {EMAIL}."), (
        "how (can|do|could) I (contact|reach|write to|email) (you|the shop|your team)?", "what is your (email|mail) address?",
        "(where|how) (do|can) I send (you|) an email?", "(can|could|may) I (write|send) you an email?",
        "(do you have|what is|I need|give me) (an|the|your) (email|email address)(?|.)", "(where|to whom) can I (write|complain)?",
        "I (want|would like|need) to (write to|contact|email) (you|the shop|your team).", "(email|email address|contact)?",
        "how (can|do) I get in touch(| with you)?", "is there an (email|address) I can write to?",
    ), ("which address do I use for mail?", "where should a written complaint go?"), small=True),
    Family("off_topic", False, _fixed(f"Sorry, I only know about {SHOP}."), (
        "why is the (sky|sea|grass|snow|sun) (blue|green|white|yellow)?", "who (wrote|painted|invented|built) (the|this) (book|song|picture|wheel|house)?",
        "what is the capital of (France|Peru|Japan|Kenya|Norway|Italy|Canada)?", "(tell me|write|sing) (me|) a (joke|poem|story|song) about (cats|love|rain|the moon|summer).",
        "(translate|say) (hello|good night|water|bread) (in|to|into) (French|German|Spanish|Latin).", "how (old|far|big|hot) is the (sun|moon|earth|sea)?",
        "(write|show me|make) a (python|java|short) (function|program|script) that (sorts a list|prints hello|adds numbers).",
        "who is the (president|king|queen) of (France|Brazil|Kenya|Spain)?", "what is the meaning of (life|love|art)?",
        "(explain|what is) (gravity|photosynthesis|inflation|quantum physics|music|history)(.|?)", "what is {a} (plus|times|minus) {b}?",
        "(how do I|how to) (cook rice|fix a car|learn to swim|grow tomatoes|write a letter)?", "will it rain (today|tomorrow|on Sunday)?",
        "who (won|wins) the (game|race|election)?", "when (was|is) the (war|holiday|next election)?", "(which|what) (film|book|song) should I (watch|read|hear)?",
        "(are you|is this) a (robot|human|computer)?", "(how many|which) (countries|planets|animals) are there?", "what do you think (of|about) (love|politics|football)?",
        "(tell me|talk) (something|) about (dogs|the war|space|yourself|cars).", "(play|recommend) (a|some) (game|music|film).",
    ), ("what is the tallest mountain in the world?", "name three famous rivers.", "describe the taste of an orange."), small=True),
)  # fmt: skip
