"""IFEval: each verifier on answers labelled by hand, near misses among them; strict and loose."""

import math
import sys

import pytest

from lm.errors import UserError
from lm.evals.tasks.ifeval import text as checker
from lm.evals.tasks.ifeval.instructions import VERIFIERS, follows, follows_loosely, parsed, variants
from lm.evals.tasks.ifeval.text import words

# id, kwargs, responses that follow, responses that do not.
CASES = [
    (
        "keywords:existence",
        {"keywords": ["river", "Moon"]},
        ("The moon is over the river.", "RIVERS and moonlight.", "river\n\nmoon"),
        ("The moon is over the lake.", "", "riv er moon", "The mo-on over the river."),
    ),
    ("keywords:existence", {"keywords": ["(open"]}, ("An (open bracket.", "(OPEN", "x(open"), ("An open one.", "( open", "()")),
    (
        "keywords:frequency",
        {"keyword": "cat ", "frequency": 3, "relation": "at least"},
        ("cat Cat CAT", "cat, cat; concatenate", "cat cat cat cat"),
        ("cat cat", "cat c at cat", "dog"),
    ),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "less than"},
        ("One cat.", "None.", "A dog and a cat."),
        ("cat cat", "The cat scattered.", "Cat, cat and cat"),
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["can", "ride"]},
        ("Candles and a bride.", "She rides.", "c an"),
        ("You CAN.", "A ride!", "can't", "can-do"),
    ),
    (
        "keywords:letter_frequency",
        {"letter": "O", "let_frequency": 3, "let_relation": "at least"},
        ("foo, Oh", "ooo", "O o O o"),
        ("foo", "0 o 0 o", "öoo"),
    ),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 1, "let_relation": "less than"},
        ("Calm.", "¡", "?"),
        ("Wow!", "!", "a!b!"),
    ),
    (
        "language:response_language",
        {"language": "de"},
        ("Der Hund läuft schnell über die nasse Straße.", "Ich weiß nicht, ob das Wetter morgen schön wird.", "123"),
        ("The dog runs over the wet street.", "De hond loopt snel over de natte straat.", "Le chien court vite dans la rue."),
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        ("One. Two! Three?", "Dr. Lee came. He sat. He left.", "“One.” “Two.” “Three.”"),
        ("One. Two!", "Dr. Lee met Mr. Ross. They spoke.", "Wait... what? no", "one.two.three"),
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        ("One. Two.", "It is 3.5 m. wide and 2 km. long.", "no end at all"),
        ("One. Two. Three.", "A! B? C.", "1. One\n2. Two\n3. Three"),
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ("One.\n***\nTwo.", "***\nOne.\n***\nTwo.\n***", "One. *** Two."),
        ("One.\n\nTwo.", "One.\n***\nTwo.\n***\nThree.", "One.\n***\n***\nTwo.", "One.\n**\nTwo."),
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "at least"},
        ("one two three four", "don't stop now", "a-b-c-d"),
        ("one two three", "one -- two -- three", "I.II.III"),
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        ("one two", "It's", "— … —"),
        ("one two three", "It's me", "a_b c d"),
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        ("One.\n\nWeekend is near.", 'One.\n\n"weekend" is near.', "One.\n\nWEEKEND, at last."),
        ("Weekend.\n\nOne.", "One.\nWeekend.", "One.\n\nWeekends.", "One.\n\nWeekend.\n\nThree.", "One.\n\n\n\nWeekend."),
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ("[name] [address]", "Dear [name], [], bye", "[a][b][c]"),
        ("[name]", "[name] (address)", "[na\nme] [address]"),
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ("Bye.\nP.S. Write!", "Bye. p.s. Write!", "P. S. Write!"),
        ("Bye.\nPS: Write!", "P.S Write!", "P,S. Write!"),
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ("P.P.S Write!", "p. p. s. Write!", "Bye P.P.S."),
        ("P.S. Write!", "PPS Write!", "P.P. Write!"),
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ("* one\n* two", "Both:\n\n  - one\n  - two", "* one\n- two"),
        ("* one", "* one\n* two\n* three", "1. one\n2. two", "* one\n** two **", "* one * two"),
    ),
    (
        "detectable_format:constrained_response",
        {},
        ("My answer is yes.", "  My answer is no. Sorry.", "So: My answer is maybe."),
        ("My answer is yes", "Yes.", "my answer is no.", "My answer is: maybe."),
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ("*one* and *two*", "**one** and *two*", "*one*\n*two*"),
        ("*one* and two", "*one*\n* two", "**** and ** **", "*on\ne* *two*"),
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ("SECTION 1\nA\nSECTION 2\nB", "SECTION1 A SECTION2 B", "SECTION 1\nSECTION 2\nSECTION 3"),
        ("SECTION 1\nA", "Section 1\nA\nSection 2\nB", "SECTION A\nSECTION B", "SECTION  1\nSECTION 2"),
    ),
    (
        "detectable_format:json_format",
        {},
        ('{"a": [1, 2]}', '```json\n{"a": 1}\n```', "```\n[]```", "3"),
        ('{"a": [1, 2]', "{'a': 1}", 'Here:\n```json\n{"a": 1}\n```', '{"a": 1,}', '```python\n{"a": 1}\n```'),
    ),
    (
        "detectable_format:title",
        {},
        ("<<a poem>>\nText", "Text <<x>> text", "<<<deep>>>"),
        ("<a poem>", "<< >>", "<<two\nlines>>", "«a poem»", "<<a poem>"),
    ),
    (
        "combination:two_responses",
        {},
        ("One\n******\nTwo", "******\nOne******Two\n******", "One ****** one"),
        ("One\n*****\nTwo", "One\n******\nOne", "A******B******C", "One\n******", "One************Two"),
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a haiku. "},
        ("Write a haiku.\nLeaves", "  write a haiku. Leaves", "WRITE A HAIKU."),
        ("Sure. Write a haiku.", "Write a haiku", '"Write a haiku." Leaves', "Write  a haiku."),
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Any other questions? "},
        ("Bye. Any other questions?", 'so, any other questions?"  ', "ANY OTHER QUESTIONS?\n"),
        ("Any other questions", "Any other questions? Bye.", "Any other  questions?", "Any other questions?*"),
    ),
    ("startend:quotation", {}, ('"Yes."', ' "a" and "b"\n', '""'), ('"Yes.', "“Yes.”", '"', "'Yes.'", 'He said "yes."')),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 3, "capital_relation": "at least"},
        ("I SAW it NOW", "DON'T STOP", "NASA, U.S. and A-1", "CANNOT DO"),
        ("I saw NASA", "DoN'T STOP", "WELL-KNOWN, 42, A"),
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ("A word", "none", "NASA's plan"),
        ("I AM", "IT'S mine", "AT&T"),
    ),
    (
        "change_case:english_capital",
        {},
        ("THE ANSWER IS YES.", "THIS IS WHAT THEY WANTED TO KNOW, 24 HOURS A DAY!", "THE CAT AND THE DOG SLEEP IN THE SUN."),
        ("THE ANSWER IS yES.", "DER HUND LÄUFT ÜBER DIE STRASSE.", "The answer is yes.", "123", "ЭТО РУССКИЙ ТЕКСТ."),
    ),
    (
        "change_case:english_lowercase",
        {},
        ("the answer is that they went home.", "the cat sleeps here, 24 hours a day!", "there is nothing else we could do"),
        ("the answer is that I went home.", "der hund läuft über die nasse straße.", "123", "The answer is that they went."),
    ),
    ("punctuation:no_comma", {}, ("No comma here.", "One; two، three", "1.000"), ("One, two", ",", "1,000")),
]


def test_every_instruction_is_tried_on_three_of_each():
    assert {id for id, *_ in CASES} == set(VERIFIERS) and len(VERIFIERS) == 25
    assert all(len(set(right)) >= 3 and len(set(wrong)) >= 3 for _, _, right, wrong in CASES)


@pytest.mark.parametrize("id, kwargs, right, wrong", CASES, ids=[id for id, *_ in CASES])
def test_verifiers(id, kwargs, right, wrong):
    instruction = parsed(id, kwargs)
    assert [r for r in right if not follows(instruction, r)] == []
    assert [r for r in wrong if follows(instruction, r)] == []
    assert all(follows_loosely(instruction, r) for r in right)


@pytest.mark.parametrize(
    "id, kwargs, response, loose",
    [
        # Something is said before, behind, or around; or there is markup.
        ("startend:quotation", {}, 'Sure:\n"Yes."', True),
        ("startend:end_checker", {"end_phrase": "Peace!"}, "Sing.\nPeace!\nI hope you like it.", True),
        ("detectable_format:json_format", {}, 'Sure:\n```json\n{"a": 1}\n```\nAnything else?', True),
        ("combination:repeat_prompt", {"prompt_to_repeat": "Write."}, "**Write.**\nHere.", True),
        ("punctuation:no_comma", {}, "Sure, here:\nNo comma.", True),
        # That is where forgiving ends.
        ("startend:quotation", {}, 'Sure:\n\nHere it is:\n"Yes."', False),
        ("startend:end_checker", {"end_phrase": "Peace!"}, "Sing. Peace! I hope you like it.", False),
        ("detectable_format:json_format", {}, 'Sure: {"a": 1}', False),
        ("combination:repeat_prompt", {"prompt_to_repeat": "Write."}, "_Write._\nHere.", False),
        ("punctuation:no_comma", {}, "One.\nTwo, or three.\nFour.", False),
    ],
)
def test_loose_forgives_a_line_at_either_end_and_asterisks(id, kwargs, response, loose):
    instruction = parsed(id, kwargs)
    assert not follows(instruction, response) and follows_loosely(instruction, response) == loose


def test_the_eight_variants():
    assert set(variants("*a*\n b \n*c*\n")) == {
        "*a*\n b \n*c*\n",
        "b \n*c*",
        "*a*\n b \n*c*",
        "a\n b \nc\n",
        "b \nc",
        "a\n b \nc",
    }
    assert set(variants("*1*\n*2*\n*3*")) == {"*1*\n*2*\n*3*", "*2*\n*3*", "*1*\n*2*", "*2*", "1\n2\n3", "2\n3", "1\n2", "2"}


@pytest.mark.parametrize("response", ["", " \n ", "***"])
def test_nothing_follows_nothing(response):
    instruction = parsed("punctuation:no_comma", {})
    assert follows_loosely(instruction, response) == (response == "***")


@pytest.mark.parametrize(
    "text, found",
    [
        ("", []),
        ("Mr. J. Bach of St. Louis, Inc. left.", 1),
        ("They met in the U.S. The war was over.", 2),
        ("They met in the U.S. Congress.", 1),
        ("Chapter 5. Review of the year.", 1),
        ("Chapter 5. Results of the year.", 2),
        ("He came at 5 p.m. Please wait.", 2),
        ("He came at 5 p.m. on Monday.", 1),
        ("Really?! Yes!!! No...", ["Really?!", "Yes!!!", "No..."]),
        ('He said "Go!" and left. (So he did.) Then', ['He said "Go!"', "and left.", "(So he did.)", "Then"]),
        ("Wait ... what? Yes ... It is.", ["Wait ... what?", "Yes ...", "It is."]),
        ("1. apples\n2. pears", ["1. apples\n2. pears"]),
        ("1. Apples\n2. Pears", ["1.", "Apples\n2.", "Pears"]),
        ("A title\n\nA line without an end\nand another. \n", ["A title\n\nA line without an end\nand another."]),
        ("“One.” Two », three.", ["“One.”", "Two », three."]),
    ],
)
def test_sentences(text, found):
    ends = checker.sentences(text)
    assert len(ends) == found if isinstance(found, int) else ends == found


def test_words():
    assert words("We can't. WANNA go? She's AT&T's-best—U.S.") == [
        "We",
        "ca",
        "n't",
        ".",
        "WAN",
        "NA",
        "go",
        "?",
        "She",
        "'s",
        "AT",
        "&",
        "T's-best",
        "—",
        "U.S",
        ".",
    ]
    assert words('\'twas CANNOT ("NO")') == ["'", "twas", "CAN", "NOT", "(", "``", "NO", "''", ")"]


def test_a_language_does_not_depend_on_what_was_asked_before():
    unsure = [f"{word} hotel taxi {word} radio" for word in ("no", "or", "man", "in", "do", "se")]
    first = [checker.language(text) for text in unsure]
    checker.language.cache_clear()
    assert [checker.language(text) for text in reversed(unsure)] == first[::-1]


@pytest.mark.parametrize(
    "package, call",
    [
        ("langdetect", lambda: checker.language("a text that nobody has asked for yet")),
        ("punkt", lambda: checker.sentences("One. Two.")),
        ("nltk.tokenize", lambda: checker.sentences("One. Two.")),
    ],
)
def test_a_package_that_is_not_there_is_named(package, call, monkeypatch):
    checker._detectors.cache_clear()
    checker._splitters.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match="pip install"):
        call()


@pytest.mark.parametrize(
    "id, kwargs, why",
    [
        ("keywords:none", {}, "none of the 25"),
        ("punctuation:no_comma", {"commas": 3}, "takes no 'commas'"),
        ("length_constraints:number_words", {"relation": "at least"}, "lacks 'num_words'"),
        ("length_constraints:number_words", {"relation": "at most", "num_words": 3}, "'at most', neither"),
        ("length_constraints:number_words", {"relation": "at least", "num_words": "3"}, "not a number"),
        ("length_constraints:number_words", {"relation": "at least", "num_words": math.nan}, "not a number"),
        ("length_constraints:number_paragraphs", {"num_paragraphs": -1}, "not a number"),
        ("length_constraints:number_paragraphs", {"num_paragraphs": True}, "not a number"),
        ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"}, "3 of 2"),
        ("keywords:existence", {"keywords": []}, "not texts"),
        ("keywords:existence", {"keywords": "cat"}, "not texts"),
        ("startend:end_checker", {"end_phrase": " "}, "not a text"),
        ("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "at least"}, "not one character"),
        ("language:response_language", {"language": "Kannada"}, "none of af"),
    ],
)
def test_an_instruction_that_makes_no_sense_says_why(id, kwargs, why):
    with pytest.raises(ValueError, match=why):
        parsed(id, kwargs)
