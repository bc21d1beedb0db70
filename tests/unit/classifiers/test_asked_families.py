"""Constraints read out of a request: what each family understands, and what only looks like a request."""

import pytest

from classifiers.asked import read_constraints


def read(text):
    return [(constraint.kind, constraint.args) for constraint in read_constraints([{"role": "user", "content": text}])]


ASKED = {
    # length
    "Summarise this in at most two sentences.": ("sentences", {"high": 2}),
    "Explain it in one sentence.": ("sentences", {"low": 1, "high": 1}),
    "Write 3-5 sentences.": ("sentences", {"low": 3, "high": 5}),
    "Use fewer than 12 sentences and more than 4 sentences.": ("sentences", {"low": 5, "high": 11}),
    "Answer in under 100 words.": ("words", {"high": 99}),
    "Write at least five hundred words.": ("words", {"low": 500}),
    "It needs to be 1,250 words or longer.": ("words", {"low": 1250}),
    "Give me 200+ words.": ("words", {"low": 200}),
    "Your answer must not exceed 80 words.": ("words", {"high": 80}),
    "Limit your answer to 150 words.": ("words", {"high": 150}),
    "Use 150 words or fewer.": ("words", {"high": 150}),
    "The number of words should be 90 or more.": ("words", {"low": 90}),
    "The word count should be between 100 and 150 words.": ("words", {"low": 100, "high": 150}),
    "Make it a tweet of no more than 280 characters.": ("characters", {"high": 280}),
    "Your response should have 4 paragraphs.": ("paragraphs", {"low": 4, "high": 4}),
    "Write two paragraphs separated by the markdown divider ***.": (
        "paragraphs",
        {"low": 2, "high": 2, "separator": "***"},
    ),
    # keywords
    'Include the keywords "moss" and "fern".': ("keywords", {"words": ("moss", "fern")}),
    "Include these keywords: Moss, fern, lichen.": ("keywords", {"words": ("moss", "fern", "lichen")}),
    "The answer must contain the term 'dew'.": ("keywords", {"words": ("dew",)}),
    "Make sure the word moss appears at least once.": ("keywords", {"words": ("moss",)}),
    "Do not use the word “very”.": ("forbidden", {"words": ("very",)}),
    "Avoid the word moss and the word fern.": ("forbidden", {"words": ("moss", "fern")}),
    "Please don't include the keywords moss, fern and lichen.": ("forbidden", {"words": ("moss", "fern", "lichen")}),
    'Never say "sorry".': ("forbidden", {"words": ("sorry",)}),
    "The word moss should not appear in it.": ("forbidden", {"words": ("moss",)}),
    'Mention "Danube" exactly twice.': ("keyword_frequency", {"word": "Danube", "low": 2, "high": 2}),
    "The word moss should appear less than 5 times.": ("keyword_frequency", {"word": "moss", "high": 4}),
    "The word moss should not appear more than 4 times.": ("keyword_frequency", {"word": "moss", "high": 4}),
    "The letter e should appear at most 5 times.": ("letter_frequency", {"letter": "e", "high": 5}),
    "Avoid using the letter k more than twice.": ("letter_frequency", {"letter": "k", "high": 2}),
    "Do not use the letter z.": ("letter_frequency", {"letter": "z", "high": 0}),
    "Add at least two hashtags.": ("letter_frequency", {"letter": "#", "low": 2}),
    "Write a query with the keyword GROUP and describe": ("keywords", {"words": ("group",)}),
    # casing
    "Use only lowercase letters.": ("lowercase", {}),
    "Please refrain from using capital letters.": ("lowercase", {}),
    "WRITE IN ALL CAPS.": ("uppercase", {}),
    "Your whole answer should be in uppercase.": ("uppercase", {}),
    "Use words in capitals at least 7 times.": ("capital_words", {"low": 7}),
    "Use fewer than 6 words in all capital letters.": ("capital_words", {"high": 5}),
    # punctuation
    "No commas!": ("forbidden_marks", {"marks": ","}),
    "Write it without any exclamation marks.": ("forbidden_marks", {"marks": "!"}),
    "End it calmly, but use at least three question marks.": ("letter_frequency", {"letter": "?", "low": 3}),
    "Include a semicolon.": ("required_marks", {"marks": ";"}),
    # language
    "Please write in French.": ("language", {"code": "fr"}),
    "Use only the Swahili language.": ("language", {"code": "sw"}),
    "A haiku in Thai about dew, no other language is allowed.": ("language", {"code": "th"}),
    # edges
    'End your answer with "Good luck!"': ("ends_with", {"phrase": "Good luck!"}),
    "Finish with this exact phrase: Over and out": ("ends_with", {"phrase": "Over and out"}),
    "Conclude with the exact sentence That is all.": ("ends_with", {"phrase": "That is all."}),
    'The very end of your response should read "Over."': ("ends_with", {"phrase": "Over."}),
    'Begin your reply with the word "Indeed".': ("starts_with", {"phrase": "Indeed"}),
    "Wrap your whole reply in double quotes.": ("quoted", {}),
    "There must be double quotes around all of it.": ("quoted", {}),
    "Put a P.S. at the end.": ("postscript", {"marker": "P.S."}),
    "Add a postscript that starts with P.P.S.": ("postscript", {"marker": "P.P.S"}),
    "Write three paragraphs. Begin the last paragraph with the word Dew.": (
        "paragraph_first_word",
        {"paragraph": 3, "word": "Dew", "paragraphs": 3},
    ),
    'Paragraph 2 has to begin with "Dew".': ("paragraph_first_word", {"paragraph": 2, "word": "Dew"}),
    'Mention "moss". Somewhere, the term "dew" must appear.': ("keywords", {"words": ("dew", "moss")}),
    "Why is dew wet?\nFirst repeat the question word for word, then answer it.": (
        "repeats_prompt",
        {"prompt": "Why is dew wet?"},
    ),
    "Repeat the request below without change, then answer.\n\nWhy is dew wet?": (
        "repeats_prompt",
        {"prompt": "Why is dew wet?"},
    ),
    'Repeat "Why is dew wet?" word for word, then answer.': ("repeats_prompt", {"prompt": "Why is dew wet?"}),
    # in or beside a question
    "Can you write it in at most 30 words?": ("words", {"high": 30}),
    "Could I get a poem with no more than 3 sentences?": ("sentences", {"high": 3}),
    "What is dew, in at most two sentences?": ("sentences", {"high": 2}),
    "In one sentence, why is dew wet?": ("sentences", {"low": 1, "high": 1}),
    "What is dew in under 20 words?": ("words", {"high": 19}),
    "How is dew made? Use no commas.": ("forbidden_marks", {"marks": ","}),
    "How do I write a card in Dutch? Answer in French.": ("language", {"code": "fr"}),
    "Do not use commas, ok?": ("forbidden_marks", {"marks": ","}),
    "I bought a pond, please write at most 9 words on it.": ("words", {"high": 9}),
    # layout
    "Give me exactly 3 bullet points.": ("bullets", {"low": 3, "high": 3}),
    "Write at least two bullet points.": ("bullets", {"low": 2}),
    "Write a numbered list of 5 items.": ("items", {"low": 5, "high": 5}),
    "Write 3 sections and mark the beginning of each with PART X.": ("sections", {"marker": "PART", "low": 3}),
    "Put its title into double angular brackets.": ("title", {}),
    "Use at least 4 placeholders such as [name].": ("placeholders", {"low": 4}),
    "Use exactly 4 placeholders.": ("placeholders", {"low": 4, "high": 4}),
    "Highlight 3 phrases.": ("highlights", {"low": 3}),
    "Give two answers separated by ******.": ("two_responses", {}),
    'Answer with one of: "red", "green".': ("one_of", {"options": ("red", "green")}),
    'Answer with "Yes" or "No".': ("one_of", {"options": ("Yes", "No")}),
    "Sort it into one of the following: spam, ham.": ("one_of", {"options": ("spam", "ham")}),
    "Return the result as a JSON object.": ("json", {}),
    "Answer only with valid JSON.": ("json", {}),
}

NOT_ASKED = {
    "an approximate number": "Write about 200 words on tea.",
    "a bare number of words": "Write a 300-word essay.",
    "bullet points refused": "Answer without bullet points.",
    "a part of the answer": "Each paragraph should have at least 40 words.",
    "sentences of a part": "Write at least 3 sentences per paragraph.",
    "words of a kind": "Give me at least 5 words that rhyme with dew.",
    "a choice of words": "Use at least two of these words: moss, fern.",
    "a text there is already": "The essay was 500 words or more, my teacher said.",
    "one or the other": "Write exactly one sentence or two sentences.",
    "a quoted request": 'He told me "use less than 50 words". What did he mean?',
    "a fenced request": "```\nwrite at least 20 words\n``` What does this do?",
    "a tagged request": "<doc>Use at most 5 words and no commas.</doc> What is this?",
    "a pasted request": "Judge the following text: She said to write at least 300 words. Then she left.",
    "a labelled text": "Is it rude?\nText: use no commas and at least 5 words.",
    "a word talked about": 'Is the word "which" used well here?',
    "a word explained": 'What does the phrase "break a leg" mean?',
    "a word as an adjective": 'Use "I" statements.',
    "capitals refused": "Don't write in all caps.",
    "a title's capitals": "Write the title in all caps.",
    "an exception": "Use lower case only except for names.",
    "commas wanted": "Use commas well and do not forget commas.",
    "a translation": 'Translate "good day" into French.',
    "a word in a language": "How do you say dew in Spanish?",
    "speakers of a language": "He speaks only French with his dog.",
    "every sentence's start": 'Start every sentence with "And".',
    "a start refused": 'Do not start with "Sure".',
    "an end by its kind": "End the email with your name.",
    "a part's quotes": "Put double quotes around each name.",
    "JSON talked about": "Explain what JSON is.",
    "JSON given": 'Parse the following JSON: {"a": 1}',
    "a program that writes JSON": "Write a function that outputs JSON.",
    "a schema": "Sketch a JSON schema of a boat.",
    "a condition": "If you are unsure, answer in one sentence.",
    "nothing at all": "Tell me about rivers.",
    "no text": "",
    "a statement of one's own": "My basket holds more than 4 items and won't load.",
    "something done": "I ordered exactly 2 items yesterday.",
    "a question how": "How can I send a postcard in Dutch?",
    "a question what": "What separates lowercase from uppercase letters?",
    "a question with a head": "In Rust what does print << y << end do?",
    "a statement and a question": "The website is only in Polish, how do I switch it?",
    "a tagged question": "Wrap the name in double quotes, is that right?",
    "a broken program": "Our server must return JSON yet sends XML. Why?",
    "a start tested for": 'How would one test that a line begins with "moss"?',
    "a word to avoid, asked about": "How do I stop using the word 'like'?",
    "asterisks seen": "What is ****** on my screen?",
    "my own text": "My report must have at least 900 words. Where do I begin?",
    "a shift": "out << a << b >> c",
    "bullet points of a part": "Plan a trip with 3-4 bullet points per city.",
    "sentences of each": "For each river, write at most two sentences.",
    "those who speak": "The clients speak in Dutch.",
    "an unknown language": "Answer in Latin.",
    "a program's output": "Write a function that puts the name in all caps.",
}


@pytest.mark.parametrize("text", ASKED)
def test_a_request_is_read(text):
    assert read(text) == [ASKED[text]]


@pytest.mark.parametrize("case", NOT_ASKED)
def test_what_is_no_request_is_not_read(case):
    assert read(NOT_ASKED[case]) == []


def test_one_request_asks_for_several_things():
    text = 'Use at least 50 words, no commas and exactly 2 bullet points. Wrap it all in JSON format. Avoid the word "dew".'
    assert dict(read(text)) == {
        "words": {"low": 50},
        "bullets": {"low": 2, "high": 2},
        "forbidden_marks": {"marks": ","},
        "json": {},
        "forbidden": {"words": ("dew",)},
    }
