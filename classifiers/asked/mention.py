"""Tell a constraint that is asked for from one that is only talked about: in a question, in a statement, of a part."""

import re

from classifiers.api import Constraint, Span
from classifiers.asked.request import Request

_QUESTION = re.compile(
    r"""(?:^|[,;:]|^\W*in\s+\S+)\s*(?:and\s+|so\s+|but\s+)?
    (?:(?:how|what)(?!\s+about\b)|why(?!\s+not\b|\s+don't\s+you\b)|which|when|where|who|whose|is|are|was|were
      |do(?!\s+not\b)|does|did|has|should|must
      |(?:can|could|may|might|would|will|shall)(?!\s+(?:you|u)\b|\s+(?:i|we)\s+(?:\w+\s+)?(?:get|have|see|ask)\b))
    (?:'s|'re|n't)?\s""",
    re.VERBOSE,
)
_TAG = re.compile(r",\s*(?:why|right|is\s+(?:that|this|it)\b[^,]{0,60})\?$")
_REQUEST = re.compile(
    r"\bplease\b|\byour\s+(?:entire\s+|whole\s+)?(?:answer|response|reply|output)\b|\byou\s+(?:can|could|would)\b"
)
_ADDED = re.compile(r"[,;:(\u2013-]\s*(?:\w+ed\s+)?(?:(?:in|using|within|with)\s+)?$")  # "why is it, in two sentences?"
_IN = re.compile(r"\bin\s*$")
_OWN = re.compile(r"\b(?:i|we|my|our)\b")
_THING = (
    r"(?:users?|user\s?names?|customers?|clients?|tools?|functions?|arguments?|parameters?|variables?|fields?|passwords?|"
    r"apis?|urls?|servers?|interface|websites?|sites?|apps?|forms?|carts?|databases?|columns?|file\s?names?|products?)"
)
_STATEMENT = re.compile(
    rf"""\W*(?:and\s+|but\s+|also,?\s+)?(?:
    (?:my|our)\s+(?!(?:answer|response|reply|request|instructions?)\b)
    |i(?:'ve|\s+(?!need\b)(?:have(?!\s+to\b)|had|bought|wrote|got|made|said|saw|found|was|did|sent|paid|put|\w{{2,20}}ed))\b
    |(?:(?:the|all|any|each|every|an?)\s+)?(?:[\w-]{{1,30}}\s+){{0,2}}?{_THING}(?:\s+(?:outputs?|titles?|results?|values?))?
     \s+(?:is|are|was|were|has|have|had|must|should|may|can|will|needs?|allows?|returns?|accepts?|shows?)\b
    |[\w-]{{1,30}}\s+(?:allows|accepts|supports|permits)\b
    )""",
    re.VERBOSE,
)
_ASKS_ANYWAY = re.compile(r"\b(?:you|write|give|i\s+(?:want|need)|i(?:'d|\s+would)\s+like)\b")
_PROGRAM = re.compile(
    r"\b(?:code|function|regex|one-liner|query|(?:python|bash|shell)\s+script)\s+(?:that|which|to|for)\b"
)
_COUNTED = frozenset(("words", "sentences", "paragraphs", "characters", "bullets", "items"))
_EACH_BEFORE = re.compile(r"\bfor\s+(?:each|every)\b")
_EACH_BEHIND = re.compile(
    r"\s*(?:per\b|an?\s+(?:day|week|page|slide)\b|(?:(?:for|in|on|under|to|about)\s+)?(?:each|every)\b(?!\s+separated))"
)


def is_mention(request: Request, constraint: Constraint, span: Span) -> bool:
    """Whether the sentence asks or tells about something else than the answer, or the constraint is of each of its parts."""
    start, end = request.sentence(span)
    sentence = request.plain[start:end].strip()
    before = request.plain[start : span[0]]
    if constraint.kind in _COUNTED and (_EACH_BEFORE.search(before) or _EACH_BEHIND.match(request.after(span[1]))):
        return True
    if _REQUEST.search(sentence):
        return False
    if sentence.endswith("?"):
        return bool(_TAG.search(sentence)) or _in_question(constraint, before, request.plain[start : span[1]])
    if _PROGRAM.search(before):
        return constraint.kind not in _COUNTED
    return bool(_STATEMENT.match(sentence)) and not _ASKS_ANYWAY.search(before)


def _in_question(constraint: Constraint, before: str, upto: str) -> bool:
    if _STATEMENT.match(before) and not _ASKS_ANYWAY.search(before):
        return True
    question = _QUESTION.search(upto)
    if question is None or question.start() > len(before) or _ADDED.search(before):
        return False
    return not (constraint.kind in _COUNTED and _IN.search(before) and not _OWN.search(before))
