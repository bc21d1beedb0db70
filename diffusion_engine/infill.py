"""Infilling: text that is given, with gaps to be filled, as fixed positions of one canvas."""

from dataclasses import dataclass
from typing import Self

from engine_core.chat import ChatTokenizer

FREE = -1


@dataclass(frozen=True)
class Template:
    """A canvas of which some positions are given.

    Attributes:
        given: C tokens, `FREE` where one is to be found.
        length: positions of the text and its gaps; the rest of the canvas is free and thrown away.
        gaps: (start, end) of each gap.
    """

    given: list[int]
    length: int
    gaps: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, parts: tuple[str | int, ...], tokenizer: ChatTokenizer, canvas: int, end_ids: tuple[int, ...]) -> Self:
        """Encode the parts: texts, and numbers of tokens to be found between them.

        A gap takes at most so many tokens: the model may end one early with special tokens, which the text leaves out.
        An end of turn is put behind the last part, so that the model knows the text to be whole.

        Raises:
            ValueError: there is no gap, one of less than a token, or all together is longer than a canvas.
        """
        given: list[int] = []
        gaps, length = [], 0
        for part in parts:
            if isinstance(part, int):
                if part < 1:
                    raise ValueError(f"expected gaps of at least one token, got {part}")
                gaps.append((length, length + part))
                length += part
                given += [FREE] * min(part, canvas)  # a gap of any size costs no more than a canvas
            else:
                ids = tokenizer.encode(part)
                length += len(ids)
                given += ids
        if not gaps:
            raise ValueError("expected a template with a gap to fill, got none")
        if length > canvas:
            raise ValueError(f"expected a template of at most {canvas} tokens, got {length}")
        given += list(end_ids[:1]) + [FREE] * canvas
        return cls(given[:canvas], length, tuple(gaps))
