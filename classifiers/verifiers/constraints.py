"""What may be asked of an answer's form, each checked by a small pure function found here by its name.

The kinds that IFEval knows agree with its strict verdicts. Source: Zhou et al., "Instruction-Following Evaluation for
Large Language Models", arXiv 2311.07911.
"""

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import msgspec

from classifiers.api import Check, Constraint
from classifiers.verifiers import casing, edges, keywords, language, layout, length, punctuation
from classifiers.verifiers.problem import Problem


class ConstraintError(ValueError):
    """A constraint of an unknown kind, or with arguments its verifier doesn't take."""


CONSTRAINTS: dict[str, Callable[..., Problem | None]] = {
    verifier.__name__: verifier
    for verifier in (
        length.characters,
        length.words,
        length.sentences,
        length.paragraphs,
        keywords.keywords,
        keywords.forbidden,
        keywords.keyword_frequency,
        keywords.letter_frequency,
        casing.lowercase,
        casing.uppercase,
        casing.capital_words,
        punctuation.forbidden_marks,
        punctuation.required_marks,
        language.language,
        edges.starts_with,
        edges.ends_with,
        edges.quoted,
        edges.postscript,
        edges.paragraph_first_word,
        edges.repeats_prompt,
        layout.bullets,
        layout.items,
        layout.sections,
        layout.title,
        layout.highlights,
        layout.placeholders,
        layout.two_responses,
        layout.one_of,
        layout.json,
    )
}


def check(text: str, constraint: Constraint) -> Check:
    """Does the answer meet the constraint? An empty answer meets none.

    Raises ConstraintError: an unknown kind, or arguments that don't fit it.
    """
    arguments = arguments_of(constraint)
    if not text.strip():
        return Check(verifier=constraint.kind, passed=False, reason="expected an answer, got an empty text")
    problem = CONSTRAINTS[constraint.kind](text, **arguments)
    if problem is None:
        return Check(verifier=constraint.kind, passed=True)
    return Check(verifier=constraint.kind, passed=False, reason=problem.reason, span=problem.span)


def arguments_of(constraint: Constraint) -> dict[str, Any]:
    """A constraint's arguments, defaults filled in. Raises ConstraintError."""
    if constraint.kind not in CONSTRAINTS:
        raise ConstraintError(f"expected a kind of constraint ({', '.join(CONSTRAINTS)}), got {constraint.kind!r}")
    try:
        arguments = msgspec.structs.asdict(msgspec.convert(constraint.args, _ARGUMENTS[constraint.kind]))
    except msgspec.ValidationError as error:
        raise ConstraintError(f"{constraint.kind}: {error}") from error
    low, high = arguments.get("low", 0), arguments.get("high")
    if high is not None and low > high:
        raise ConstraintError(f"{constraint.kind}: expected low <= high, got {low} and {high}")
    return arguments


def _arguments(verifier: Callable[..., Problem | None]) -> type[msgspec.Struct]:
    """The verifier's keyword arguments as a Struct, which checks their types."""
    types = get_type_hints(verifier, include_extras=True)
    fields = [
        (name, types[name]) if parameter.default is parameter.empty else (name, types[name], parameter.default)
        for name, parameter in inspect.signature(verifier).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    return msgspec.defstruct(verifier.__name__, fields, kw_only=True, forbid_unknown_fields=True)


_ARGUMENTS = {kind: _arguments(verifier) for kind, verifier in CONSTRAINTS.items()}
