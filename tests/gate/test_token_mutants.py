"""Tokens: no mutant is ever taken, and any text gives a verdict."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from app.gate.jws import parse_unverified
from app.gate.reasons import BY_CODE
from app.gate.token import KeyWanted, VerifiedToken, verify
from tests.support.jose import ABSENT, b64
from tests.support.tokens import (
    AUD,
    CLAIMS,
    GRANT,
    RING,
    token,
)
from tests.support.verifying import VALID, verdict

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
MUTANTS = 20_000


def test_no_mutant_of_a_token_is_accepted():
    """T-02, V-03: 20,000 mutants, any one or two characters changed, removed, doubled or swapped."""
    dice = random.Random(7)
    fault = {"accepted"}
    for _ in range(MUTANTS):
        text = list(VALID)
        for _ in range(dice.choice((1, 1, 1, 2))):
            place = dice.randrange(len(text))
            match dice.randrange(5):
                case 0:
                    text[place] = dice.choice(ALPHABET)
                case 1:
                    text[place] = chr(dice.randrange(0x180))
                case 2:
                    del text[place]
                case 3:
                    text.insert(place, dice.choice(ALPHABET + ".=\n"))
                case 4:
                    other = dice.randrange(len(text))
                    text[place], text[other] = text[other], text[place]
        mutant = "".join(text)
        if mutant != VALID:
            assert verdict(mutant) not in fault, mutant


def test_no_single_character_of_a_token_can_be_another():
    """Every place of the token, with a neighbour in the alphabet: the ones a lenient decoder would take."""
    for place, character in enumerate(VALID):
        for other in "AQgwBx_":
            if other != character:
                assert verdict(VALID[:place] + other + VALID[place + 1 :]) != "accepted"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300)
@given(st.sampled_from([*CLAIMS, *GRANT]), JSON)
def test_any_signed_claim_gives_a_verdict_of_the_table(name, value):
    made = token(grant={name: value}) if name in GRANT else token(claims={name: value})
    got = verify(made, RING, AUD)
    assert isinstance(got, VerifiedToken | KeyWanted) or got.code in BY_CODE


@settings(max_examples=300)
@given(st.sampled_from(sorted(CLAIMS)), JSON)
def test_the_shorter_way_gives_the_same_verdict(name, value):
    """An empty params member sends the same token on the long way."""
    short = token(claims={name: value}, grant={"params": ABSENT})
    long = token(claims={name: value}, grant={"params": {}})
    first, second = verify(short, RING, AUD), verify(long, RING, AUD)
    if isinstance(first, VerifiedToken):
        assert first.claims == second.claims
    else:
        assert first == second


@settings(max_examples=300)
@given(st.text(max_size=200) | st.lists(st.binary(max_size=60).map(b64), min_size=2, max_size=5).map(".".join))
def test_any_text_gives_a_verdict(text):
    assert verdict(text) != "accepted"
    parse_unverified(text)
