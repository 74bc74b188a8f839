"""Attacks: triggers and tokens that differ from good ones in one respect, and what must become of them."""

from cryptography.hazmat.primitives.asymmetric import ec

from tests.rows.triggers import Trigger, plain

STRANGER = ec.generate_private_key(ec.SECP256R1())


def check(world, vectors):
    """`vectors`: what it is → (trigger or token, the verdict). All are sent at once; then a good one is accepted."""
    triggers = [each if isinstance(each, Trigger) else plain(each) for each, _ in vectors.values()]
    *outcomes, good = world.present(*triggers, plain(world.ours.token()))
    seen = {what: outcome.verdict for what, outcome in zip(vectors, outcomes, strict=True)}
    assert seen == {what: verdict for what, (_, verdict) in vectors.items()}
    assert good.verdict == "accepted"
    for outcome in outcomes:
        if outcome.stage in ("parse", "verify") and outcome.audit[0]["subject"] is None:
            assert outcome.receipt["detail"] is None  # a stranger learns the code, and nothing more


def deep(levels):
    return "[" * levels + "]" * levels
