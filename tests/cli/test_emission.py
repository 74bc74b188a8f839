"""What an emitter publishes: the key that leads a trigger home, by what its token says of itself."""

from __future__ import annotations

import base64

import pytest

from app.emission import Emission, Form, home_of, trigger_of
from tests.support.jose import ABSENT
from tests.support.tokens import JTI, token


@pytest.mark.parametrize(
    ("claims", "beside", "home"),
    [
        ({"uses": "once"}, None, JTI), ({"uses": "once", "idempotency_key": "in"}, "beside", "in"),
        ({"uses": "many", "idempotency_key": "in"}, None, "in"), ({"uses": "many"}, "beside", "beside"),
        ({"uses": "many"}, None, None), ({"uses": ABSENT, "jti": ABSENT}, "beside", "beside"),
    ],
)  # fmt: skip
def test_a_trigger_is_sent_to_where_its_identity_is_at_home(claims: dict, beside: str | None, home: str | None) -> None:
    assert home_of(token(claims=claims), beside) == home


def test_a_token_that_cannot_be_read_leads_nowhere_but_by_the_key_beside_it() -> None:
    for text in ("", "x", "a.b.c", "ref:abc", "." * 50):
        assert home_of(text, None) is None
        assert home_of(text, "beside") == "beside"


@pytest.mark.parametrize("member", ["jti", "idempotency_key"])
def test_a_claim_that_is_no_text_leads_nowhere_and_the_trigger_is_sent(member: str) -> None:
    claims = base64.urlsafe_b64encode(b'{"uses":"once","%s":"\\ud800"}' % member.encode()).rstrip(b"=").decode()
    for form in Form:
        assert trigger_of(Emission(form, "j", {}, None, None, None), f"x.{claims}.y").key is None
    assert home_of(f"x.{claims}.y", "beside") == "beside"


def test_a_form_that_marks_its_value_by_the_job_needs_one() -> None:
    for form in (Form.HEADERS, Form.CLOUDEVENT):
        with pytest.raises(ValueError, match="needs a job"):
            trigger_of(Emission(form, None, {}, None, None, None), token())
