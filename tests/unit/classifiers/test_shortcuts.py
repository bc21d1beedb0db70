"""What is quick says what its plain form says, to the last bit; and the demo's models score as they did when they were trained."""

import importlib
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from classifiers import asked, conversation
from classifiers import text as texts
from classifiers.api import DraftEvidence
from classifiers.asked.request import Request
from classifiers.complexity import Complexity
from classifiers.draft_features import denoiser_features
from classifiers.forest import Forest, Walker
from classifiers.quality import Acceptor
from classifiers.verifiers.copied import GRAM_WORDS, MOST_SHARE, SHORTEST_WORDS, copied
from classifiers.verifiers.numbers import numbers
from classifiers.verifiers.repetition import LONGEST_PHRASE, repetition
from demo_models import store

PIECES = (
    "the lamp", "costs $45", "Fern", "İstanbul", "ΟΔΟΣ", "數學", "é", "🙂", "x^2", "f(x)", "how many", "how much", "1,000", "3.50", "٣", ".5",
    "twenty", "Seventeen", "\u017fixty", "if each", "3 + 4 = 7", "```python\nx = 1\n```", "http://a.b/7", "\n", "\n\n", "\t", "? ", ". ", "'s",
    "1) ", "20%", "100", "because", "friend", "so so", "items: a, b and c.", 'the word "tree" twice', 'end with "bye"', "start with: Hi",
    "in double quotation marks", "P.S. ", "Paragraph two must start with the word hello.", "Repeat the request above, then answer.",
    "in at most two sentences", "no commas", 'the letter "q" at least 3 times', "hashtags", "is the end: of the exact following line",
)  # fmt: skip
ASKING = (  # each is found by another pattern
    'End your answer with "bye".', "Finish with this exact phrase: Bye now.", "End with the following sentence Let me know.",
    'Do not end early: the last word should be "bye".', 'Start with "Dear".', "Wrap your entire response in double quotation marks.",
    "Add a postscript that starts with P.S.", "Write 3 paragraphs. Paragraph two must start with the word hello.",
    "Name a tree. First repeat the request above word for word, then answer.", 'Repeat "Name a tree" word for word.',
    'Include the word "tree".', "Use the keywords: oak, elm and ash.", "Use the items (oak, elm and ash).", 'Avoid the phrases "a", "b".',
    "Use the terms (oak, elm).", 'Say "oak" twice.', "Use the letter q at least 3 times.", "Use at least two hashtags.", "",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=40).map(" ".join) | st.text(max_size=200)


def asks(text):
    return ({"role": "user", "content": text},)


def plain_counts(text):
    """`conversation.counts` with numpy alone, one statistic after the other."""
    data = np.frombuffer(text.encode(errors="replace"), np.uint8)
    signs = np.array([np.isin(data, list(members)).sum() for members in conversation._CLASSES], np.float32)
    lower = text.lower()
    words = re.findall(r"\w+", lower)
    lengths = np.array([len(word) for word in words] or [0], np.float32)
    lines = np.log1p(np.array([len(line) for line in text.split("\n")], np.float32))
    sentences = max(1, lower.count(". ") + lower.count("? "))
    often = Counter(words)
    found = [min(float(number.replace(",", "")), 1e15) for number in re.findall(r"\d[\d,]*\.?\d*", text)]
    return np.array([
        *np.log1p(signs), *(signs / max(1, len(data))),
        np.log1p(len(data)), np.log1p(len(words)), np.log1p(len(re.findall(r"\d+", text))),
        lengths.mean(), lengths.max(), (lengths > 7).mean(), (lengths <= 3).mean(),
        lines.max(), np.median(lines), lines[0], lines[-1], lines.std(),
        np.log1p(sentences), len(words) / sentences,
        *(min(3, often[word]) for word in conversation._TELLING), *(min(3, lower.count(phrase)) for phrase in conversation._PHRASES),
        np.log1p(max(found, default=0.0)), np.log1p(sum(found) / max(1, len(found))),
        len(set(found)), len(found) - len(set(found)), sum(number % 1 > 0 for number in found),
        len(set(re.findall(r"\b[A-Z][a-z]+", text))), np.log1p(len(often)), len(often) / max(1, len(words)),
    ]).astype(np.float32)  # fmt: skip


@given(TEXTS)
@example("")
@example("a\nbb\nccc\ndddd")
@example("\ud800 lone")
@example("word " * 2000)
def test_counts_are_those_of_plain_numpy(text):
    assert conversation.counts(text).tobytes() == plain_counts(text).tobytes()


@given(st.text(max_size=60) | TEXTS)
@example("so give us all of it now, for we know what two of you said")
def test_a_turn_that_refers_is_told_by_all_its_words(turn):
    words = conversation._SAID.findall(turn[:400].lower())
    short = len(words) <= conversation.FOLLOWING and (
        turn.lower().startswith(conversation._BEGINS) or not conversation._REFERS.isdisjoint(words)
    )
    assert conversation.refers(turn) == (len(words) <= conversation.SHORT or short)


def random_forest(rng, trees, features):
    """Trees grown by splitting a random leaf of each some times, with rising thresholds nowhere in particular."""
    feature, threshold, children, value, roots = [], [], [], [], []

    def leaf():
        at = len(value)
        for column, entry in ((feature, 0), (threshold, 0.0), (children, [at, at]), (value, rng.random())):
            column.append(entry)
        return at

    for _ in range(trees):
        leaves = [leaf()]
        roots.append(leaves[0])
        for _ in range(rng.integers(0, 20)):
            at = leaves.pop(rng.integers(len(leaves)))
            feature[at], threshold[at], children[at] = rng.integers(features), rng.normal(), [leaf(), leaf()]
            leaves += children[at]
    forest = Forest(
        feature=np.array(feature, np.int32),
        threshold=np.array(threshold, np.float32),
        children=np.array(children, np.int32),
        value=np.array(value, np.float32),
        roots=np.array(roots, np.int32),
    )
    return forest.checked(features)


@pytest.mark.parametrize("seed", range(20))
def test_walking_all_trees_at_once_comes_to_the_leaves_of_each(seed):
    rng = np.random.default_rng(seed)
    forest = random_forest(rng, trees=seed + 1, features=5)
    walker = Walker(forest)
    for x in rng.normal(size=(20, 5)).astype(np.float32):
        leaves = []
        for root in forest.roots:
            at = root
            while (following := forest.children[at, int(x[forest.feature[at]] <= forest.threshold[at])]) != at:
                at = following
            leaves.append(forest.value[at])
        assert walker.mean(x) == float(np.array(leaves, np.float32).mean())


FLOATS = st.lists(st.floats(0, 5, width=32) | st.sampled_from([0.1, 0.01, 0.0]), min_size=1, max_size=60)


@given(FLOATS, FLOATS)
def test_the_denoisers_features_are_those_of_plain_numpy(entropy, logprob):
    evidence = DraftEvidence(
        messages=(), text="", steps=(2, 3), converged=(True, False), token_entropy=tuple(entropy), token_logprobs=tuple(logprob)
    )  # fmt: skip
    falling, rising = np.sort(np.asarray(entropy))[::-1], np.sort(np.asarray(logprob))
    last = len(entropy) - 1
    expected = (
        falling.mean(), *(falling[int(share * last)] for share in (0.5, 0.25, 0.1)), *(falling[min(at, last)] for at in range(3)),
        (falling > 0.1).mean(), (falling > 0.01).mean(), rising[0], rising[int(0.1 * (len(rising) - 1))], rising.mean(),
        5 / 2, 3, 5 / len(entropy), 1 / 2, 0.0, 0.0, np.log1p(len(entropy)),
    )  # fmt: skip
    found = denoiser_features(evidence)
    assert found is not None
    assert found.tobytes() == np.array(expected, np.float32).tobytes()


def plain_repetition(text):
    prose = re.sub(r"(?s)```.*?(?:```|\Z)", lambda block: " " * len(block[0]), text)
    spans = [match.span() for match in re.finditer(r"\S+", prose)]
    words = [prose[slice(*span)] for span in spans]
    for length in range(1, LONGEST_PHRASE + 1):
        most, run = 3 if length == 1 else 2, 0
        for at in range(length, len(words)):
            run = run + 1 if words[at] == words[at - length] else 0
            begin = at - length + 1
            if run >= length * most and any(map(str.isalpha, "".join(words[begin : at + 1]))):
                return spans[begin - run][0], spans[at][1]
    return None


@given(st.lists(st.sampled_from(["a", "b", "so", "1", "-", "```", "\n", "\x1c", "\u3000"]), max_size=60).map(" ".join))
@example("go " * 4)
@example("1 2 a " * 3)
def test_repetition_looks_as_far_as_every_length_would(text):
    problem = repetition(DraftEvidence(messages=(), text=text))
    assert (problem.span if problem else None) == plain_repetition(text)


def plain_copied(text, request):
    """The share of copied runs, where it is said to be too high."""
    mine = [text[slice(*span)].lower() for span in texts.words(text)]
    theirs = [request[slice(*span)].lower() for span in texts.words(request)]
    if len(mine) < SHORTEST_WORDS or re.search(r"(?i)\b(?:repeat|list)\w*", request):
        return False
    known = set(zip(*(theirs[at:] for at in range(GRAM_WORDS)), strict=False))
    grams = list(zip(*(mine[at:] for at in range(GRAM_WORDS)), strict=False))
    return sum(gram in known for gram in grams) / len(grams) > MOST_SHARE


@given(
    st.lists(st.sampled_from(["oak", "İs", "ΟΣ", "lamp", "of"]), min_size=15, max_size=40),
    st.integers(0, 9),
    st.booleans(),
)
def test_copied_is_what_is_copied_and_not_asked_for(words, cut, wanted):
    request = " ".join(words[cut:]) + (" Repeat it." if wanted else "")
    problem = copied(DraftEvidence(messages=asks(request), text=" ".join(words).upper()))
    assert (problem is not None) == plain_copied(" ".join(words).upper(), request)


@given(TEXTS, TEXTS)
@example("They have 70 and 14.", "Seventy of thirty")
@example("They have 70 and 14.", "FOURTEEN of thirty")
def test_numbers_that_need_no_look_at_the_request_are_none_from_nowhere(text, request):
    module = importlib.import_module("classifiers.verifiers.numbers")
    problem = numbers(DraftEvidence(messages=asks(request), text=text))
    prose = module._CODE.sub(module._blank, module._LIST_MARKER.sub(module._blank, text))
    spelled = [module._NUMBER_OF[word.lower()] for word in module._WORD.findall(request)]
    given_ = {number for number, _ in module._numbers(request)} | set(spelled)
    known = given_ | module._USUAL | {share for number in given_ for share in module._shares(number)}
    found = list(module._numbers(prose))
    known |= {number for number, (start, _) in found if module._BEHIND_EQUALS.search(prose[:start][-8:])}
    stray = [span for number, span in found if number not in known] if len(given_) > 1 else []
    assert (problem.span if problem else None) == (stray[0] if stray else None)


@pytest.mark.parametrize("asks_for", ASKING)
@settings(max_examples=20)
@given(before=TEXTS, behind=TEXTS)
@example(before="", behind="")
def test_no_pattern_that_is_not_tried_would_have_found_anything(asks_for, before, behind):
    messages = ({"role": "system", "content": "Answer in French."}, *asks(f"{before}\n{asks_for}\n{behind}"))
    quick = asked.read_constraints(messages)
    assert quick or before or behind or not asks_for
    hints = {family.HINTS for family in asked._FAMILIES}
    with pytest.MonkeyPatch.context() as patch:
        holds = Request.holds
        patch.setattr(Request, "holds", lambda self, *signs: signs not in hints or holds(self, *signs))
        assert asked.read_constraints(messages) == quick


AMOUNT = r"\d[\d,]{0,15}(?:\.\d{1,12})?"
PATTERNS = {  # where one begins with what can be looked up quickly, and how it would be written otherwise
    ("conversation", "_DIGITS"): r"\d+",
    ("conversation", "_NAME"): r"\b[A-Z][a-z]+",
    ("draft_text", "_NAME"): r"(?<![.?!]\s)(?<!^)\b[A-Z][a-z]+",
    ("draft_text", "_MARK"): r"(?i)####|\\boxed\b|\banswer(?:\s+is\b|\s*[:=])",
    ("working", "_NUMBER"): rf"(?<![\w.])[$€£]?({AMOUNT}|\.\d{{1,12}})",
    ("verifiers.numbers", "_NUMBER"): (
        r"(?<![\w.,])[$€£]?(\d{1,3}(?:,\d{3})+(?!\d)|\d{1,30})(\.\d{1,30})?(?![\d_])|(?<![\w.])\.\d{1,30}(?!\w)"
    ),
    ("asked.edges", "_ENDING"): r"\b(?:end|ends|ending|finish|finishing|conclude|close)\b",
}


@pytest.mark.parametrize("place", PATTERNS)
@given(text=st.text(alphabet="aAbBzÉé_1٣.,$€-! \n#\\", max_size=40) | TEXTS)
@example(
    text="#### 4, \\boxed{4}; the Answer is 4. answer= .5, x.5 1,000.50 ends. Ending; close\nFinish Fern. Fern ÉFern aFern"
)
def test_a_pattern_that_begins_quickly_finds_the_same(place, text):
    quick = re.compile(getattr(importlib.import_module(f"classifiers.{place[0]}"), place[1]))
    plain = re.compile(PATTERNS[place])
    assert [match.span() for match in quick.finditer(text)] == [match.span() for match in plain.finditer(text)]


def turns(*said):
    return tuple({"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said))


CART = "What do I pay for 2 lamps and 3 mugs with 20% off?"
WORKED = "2 x 45 = 90, 3 x 10 = 30, 90 + 30 = 120, 20% = 24, 120 - 24 = 96. The total is $96."
PARTS = (
    {
        "role": "user",
        "content": [{"type": "text", "text": part} for part in ("Which is cheaper,", "the mug or the lamp?")],
    },
)
RECORDED = [  # by the classifiers as they were before anything in them was made quicker
    (turns("How much is the lamp?"), "The lamp costs $45.", True, 0.009802538, 0.966257218),
    (turns("How much is the lamp?"), "The lamp costs $45.", False, 0.009802538, 0.997596282),
    (turns(CART), WORKED, True, 0.984535735, 0.896214962),
    (turns(CART), "The total is $120.", False, 0.984535735, 0.98225503),
    (turns("Do you have an oak chair?", "Yes, for $80.", "And in blue?"), "Sorry, not in blue.", True, 0.062534359, 0.960122756),
    (turns(""), "Hello!", True, 0.026599419, 0.960072079),
    (turns("Wie teuer ist die Lampe? 数学 🙂"), "45 €", True, 0.013203075, 0.914126658),
    (
        turns("Write a function.\n\n```python\nx = 1\n```\n\nOne line:\nanother one"),
        "```python\ndef f():\n    return 1\n```", False, 0.051943802, 0.996814434,
    ),
    (PARTS, "The mug.", True, 0.00686161, 0.974610564),
    (PARTS, "The mug is cheaper: $10 < $45.", True, 0.00686161, 0.969742051),
]  # fmt: skip


@pytest.fixture(scope="module")
def demo():
    return Complexity.load(store.path("complexity")), Acceptor.load(store.path("quality"))


def judged(messages, text, signals):
    if not signals:
        return DraftEvidence(messages=messages, text=text)
    return DraftEvidence(
        messages=messages,
        text=text,
        steps=(2,),
        converged=(True,),
        token_entropy=(0.001, 0.2, 0.03),
        token_logprobs=(-0.001, -0.3, -0.02),
    )


@pytest.mark.parametrize(("messages", "text", "signals", "complexity", "quality"), RECORDED)
def test_the_demos_models_score_as_recorded(demo, messages, text, signals, complexity, quality):
    asked_for, acceptor = demo
    evidence = judged(messages, text, signals)
    assert asked_for.score(messages) == pytest.approx(
        complexity, abs=1e-6
    )  # another processor's logarithms end in other bits
    assert acceptor.judge(evidence).quality == pytest.approx(quality, abs=1e-6)
    assert acceptor.choose([evidence]) == (0, acceptor.judge(evidence))


def test_candidates_that_share_what_is_asked_are_judged_as_recorded(demo):
    at, verdict = demo[1].choose(
        [judged(PARTS, text, True) for text in ("The lamp.", "The mug.", "The mug is cheaper.", "The mug.")]
    )
    assert at == 1
    assert verdict.quality == pytest.approx(0.841778117, abs=1e-6)
