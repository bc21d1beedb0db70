import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_engine.infill import FREE, Template
from engine_core.chat import ChatTokenizer

C = 16
END = (99, 98)


class Letters(ChatTokenizer):
    """A token for each letter."""

    def __init__(self) -> None:
        self.fingerprint = "letters"

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def template(*parts: str | int, end_ids: tuple[int, ...] = END) -> Template:
    return Template.of(parts, Letters(), C, end_ids)


def test_texts_are_given_and_gaps_are_free() -> None:
    made = template("ab", 3, "c", 1)
    assert made.given[:8] == [97, 98, FREE, FREE, FREE, 99, FREE, END[0]]
    assert made.given[8:] == [FREE] * (C - 8)
    assert made.length == 7
    assert made.gaps == ((2, 5), (6, 7))


def test_gaps_may_stand_anywhere() -> None:
    assert template(2, "a").gaps == ((0, 2),)
    assert template(2, 3).gaps == ((0, 2), (2, 5))
    assert template(C).gaps == ((0, C),)


def test_the_end_of_turn_stands_behind_the_last_part_where_there_is_room() -> None:
    assert template(C - 1).given == [FREE] * (C - 1) + [END[0]]
    assert template(C).given == [FREE] * C
    assert template("a", 2, end_ids=()).given == [97] + [FREE] * (C - 1)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("a",), "expected a template with a gap to fill, got none"),
        ((), "expected a template with a gap to fill, got none"),
        (("a", 0), "expected gaps of at least one token, got 0"),
        ((3, -2), "expected gaps of at least one token, got -2"),
        (("a", C), f"expected a template of at most {C} tokens, got {C + 1}"),
        ((C + 1,), f"expected a template of at most {C} tokens, got {C + 1}"),
        (("a" * C, 1), f"expected a template of at most {C} tokens, got {C + 1}"),
        ((10**15, "a", 10**15), f"expected a template of at most {C} tokens, got {2 * 10**15 + 1}"),
    ],
)
def test_a_template_that_can_not_be_filled_is_refused(parts: tuple[str | int, ...], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as refusal:
        template(*parts)
    assert str(refusal.value) == message


parts = st.lists(st.text("abc", max_size=6) | st.integers(1, 6), max_size=6)


@given(parts)
def test_what_is_given_is_the_texts_in_their_places(drawn: list[str | int]) -> None:
    length = sum(part if isinstance(part, int) else len(part) for part in drawn)
    if length > C or not any(isinstance(part, int) for part in drawn):
        with pytest.raises(ValueError, match="expected"):
            template(*drawn)
        return
    made = template(*drawn)
    assert made.length == length
    assert len(made.given) == C
    rebuilt, at = [], 0
    for part in drawn:
        end = at + (part if isinstance(part, int) else len(part))
        given_here = made.given[at:end]
        rebuilt.append(len(given_here) if isinstance(part, int) else "".join(map(chr, given_here)))
        assert not isinstance(part, int) or (set(given_here) == {FREE} and (at, end) in made.gaps)
        at = end
    assert rebuilt == drawn
    assert len(made.gaps) == sum(isinstance(part, int) for part in drawn)
