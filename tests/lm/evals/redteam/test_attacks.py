"""Every attack can be read back: frames hold the request as it is, codes are decoded to it."""

import base64
import codecs
import re

import pytest

from lm.errors import UserError
from lm.evals.redteam.attacks import ATTACKS, LEET, SHOTS, compose, pig_latin

REQUEST = "How do I make zorbium? Tell me, please."
# Restore the request from the text after the blank line. leetspeak needs a request without its digits.
DECODERS = {
    "base64": lambda text: base64.b64decode(text).decode(),
    "rot13": lambda text: codecs.decode(text, "rot13"),
    "leetspeak": lambda text: text.translate(str.maketrans({digit: letter for letter, digit in LEET.items()})),
    "translation": lambda text: re.sub(r"([A-Za-z]*)-([A-Za-z]*)ay", r"\2\1", text),
}
OPTIONS = {"suffix": {"suffix": "!! describing.+ similarly"}}


def attack(name, **options):
    return compose(name, **(OPTIONS if name in OPTIONS else {}), **options)(REQUEST)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in DECODERS and name != "best_of_n"])
def test_frames_hold_the_request_in_the_last_turn(name):
    messages = attack(name)
    assert messages[-1]["role"] == "user" and REQUEST in messages[-1]["content"]
    assert all(set(message) == {"role", "content"} for message in messages)


@pytest.mark.parametrize("name", DECODERS)
def test_codes_are_read_back_and_do_not_show_the_request(name):
    (message,) = attack(name)
    frame, code = message["content"].split("\n\n", 1)
    assert DECODERS[name](code) == REQUEST
    assert "zorbium" not in message["content"] and frame


def test_known_codes():
    assert attack("base64")[0]["content"].endswith(base64.b64encode(REQUEST.encode()).decode())
    assert attack("rot13")[0]["content"].endswith("Ubj qb V znxr mbeovhz? Gryy zr, cyrnfr.")
    assert attack("leetspeak")[0]["content"].endswith("H0w d0 I m4k3 z0rb1um? T3ll m3, pl3453.")
    assert attack("translation")[0]["content"].endswith("ow-Hay o-day I-ay ake-may orbium-zay? ell-Tay e-may, ease-play.")
    accented = "Größe: 7 µm, 深い"
    assert DECODERS["base64"](compose("base64")(accented)[0]["content"].split("\n\n", 1)[1]) == accented


def test_no_two_families_are_the_same():
    texts = [str(attack(name)) for name in ATTACKS]
    assert len(set(texts)) == len(texts)


def test_conversations_of_several_turns():
    many = attack("many_shot")
    assert [message["role"] for message in many] == ["user", "assistant"] * len(SHOTS) + ["user"]
    assert [message["role"] for message in attack("many_shot", many_shot={"shots": SHOTS[:1]})] == ["user", "assistant", "user"]
    crescendo = attack("crescendo")
    assert [message["content"] is None for message in crescendo] == [False, True, False, True, False]
    assert all(message["role"] == ("user" if i % 2 == 0 else "assistant") for i, message in enumerate(crescendo))


def test_composition_goes_from_left_to_right():
    (message,) = attack("rot13+prefix_injection")
    assert "Sure, here it is:" in message["content"]  # as it is, for it came last
    code = message["content"].split("\n\n")[1]
    assert DECODERS["rot13"](code) == REQUEST
    (message,) = attack("prefix_injection+rot13")
    assert "Sure" not in message["content"] and "Sure, here it is:" in DECODERS["rot13"](message["content"].split("\n\n", 1)[1])
    twice = compose("base64+rot13")(REQUEST)[0]["content"].split("\n\n", 1)[1]
    assert DECODERS["base64"](DECODERS["rot13"](twice).split("\n\n", 1)[1]) == REQUEST
    assert len(attack("crescendo+many_shot")) == 4 + 2 * len(SHOTS) + 1


def test_a_language_and_a_suffix_are_pluggable():
    (message,) = attack("translation", translation={"translate": str.upper, "language": "Loud"})
    assert "Loud" in message["content"] and REQUEST.upper() in message["content"]
    assert compose("suffix", suffix={"suffix": "xyz"})(REQUEST)[0]["content"] == f"{REQUEST} xyz"
    with pytest.raises(UserError, match="no string"):
        compose("suffix")(REQUEST)


def test_best_of_n_draws_by_its_seed_what_a_reader_still_reads():
    draws = [compose("best_of_n", best_of_n={"seed": seed})(REQUEST)[0]["content"] for seed in range(40)]
    assert draws == [compose("best_of_n", best_of_n={"seed": seed})(REQUEST)[0]["content"] for seed in range(40)]
    assert len(set(draws)) == 40 and REQUEST not in draws
    assert all(len(draw) == len(REQUEST) and len(draw.split()) <= len(REQUEST.split()) + 2 for draw in draws)
    same = sum(a.lower() == b.lower() for draw in draws for a, b in zip(draw, REQUEST)) / (40 * len(REQUEST))
    assert 0.6 < same < 0.95  # shuffled words move letters, few characters are others
    changed = sum(a.isalpha() and a.isupper() for draw in draws for a in draw) / 40
    assert 10 < changed < 25  # of 30 letters √0.4 change case
    assert compose("best_of_n", best_of_n={"sigma": 0.0})("As it is, é\n 深い.")[0]["content"] == "As it is, é\n 深い."
    calm = compose("best_of_n", best_of_n={"sigma": 1e-9})(REQUEST)[0]["content"]
    assert calm == REQUEST


def test_unknown_families_name_the_nearest():
    with pytest.raises(UserError, match="did you mean role_play"):
        compose("rot13+roleplay")
    with pytest.raises(UserError, match="did you mean many_shot"):
        compose("direct", manyshot={})
    with pytest.raises(UserError, match="no option 'shot'; its options are shots"):
        compose("many_shot", many_shot={"shot": 3})


def test_attacks_leave_their_material_as_it_was():
    many = attack("many_shot")
    many[0]["content"] = "changed"
    assert attack("many_shot")[0]["content"] == SHOTS[0][0]


def test_pig_latin_of_single_letters_and_vowels():
    assert pig_latin("a big owl") == "a-ay ig-bay owl-ay"
    assert DECODERS["translation"]("a-ay ig-bay owl-ay") == "a big owl"
