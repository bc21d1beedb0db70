"""A text that goes round in circles."""

from classifiers.api import DraftEvidence

LONGEST_PHRASE = 12  # words


def check_repetition(evidence: DraftEvidence) -> str:
    """A phrase that follows itself too often: one word four times in a row, longer phrases three times; "" when none does.

    Phrases without a letter don't count: columns of figures repeat with good reason.
    """
    words = evidence.text.split()
    for length in range(1, LONGEST_PHRASE + 1):
        most = 3 if length == 1 else 2
        run = 0  # positions in a row at which the text equals itself `length` words earlier
        for at in range(length, len(words)):
            run = run + 1 if words[at] == words[at - length] else 0
            phrase = " ".join(words[at - length + 1 : at + 1])
            if run >= length * most and any(character.isalpha() for character in phrase):
                return f'expected no phrase more than {most} times in a row, got "{phrase}" {run // length + 1} times'
    return ""
