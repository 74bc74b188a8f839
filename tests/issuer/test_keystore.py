"""Keys through their life: published before first use, kept while their tokens may be honoured, gone at once if leaked."""

import json
import multiprocessing
import stat

import pytest

from app.gate.keyset import KeySet
from app.gate.token import KeyWanted, VerifiedToken, verify
from app.issuer.keystore import Keystore, KeystoreError, Status, status_of
from app.issuer.mint import Minted, TriggerTokenRequest, issue
from tests.support.tokens import AUD, ISS, NOW_S

HONOURED_S = 60 + 4 * 3600


@pytest.fixture
def store(tmp_path) -> Keystore:
    return Keystore(tmp_path / "keys", tmp_path / "public" / "jwks.json")


def published(store: Keystore) -> dict:
    document = json.loads(store.jwks_file.read_text())
    for jwk in document["keys"]:
        assert not {"d", "p", "q", "k"} & jwk.keys()
    assert "PRIVATE" not in store.jwks_file.read_text()
    return {jwk["kid"]: jwk for jwk in document["keys"]}


def statuses(store: Keystore, now_s: int) -> dict[str, str]:
    records = store.records()
    return {record.kid: status_of(record, records, now_s).value for record in records}


def issued(store: Keystore, now_s: int, ttl_s: int = 300) -> Minted:
    made = issue([TriggerTokenRequest(ISS, AUD, "service:ci", "acme", ("a",), "once", ttl_s)], store, now_s)
    assert isinstance(made, list), made
    return made[0]


def verdict(token: str, store: Keystore):
    return verify(token, {ISS: KeySet.from_jwks(store.jwks_file.read_bytes(), ("ES256", "EdDSA"))}, AUD)


def test_the_first_key_signs_at_once_and_is_published(store):
    made = store.generate("ES256", NOW_S)
    assert set(published(store)) == {made.kid}
    assert store.signing_key(NOW_S).kid == made.kid
    assert isinstance(verdict(issued(store, NOW_S).token, store), VerifiedToken)
    with pytest.raises(KeystoreError, match="rotate"):
        store.generate("ES256", NOW_S)


def test_private_keys_are_for_their_owner_alone(store):
    made = store.generate("ES256", NOW_S)
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    for name in (f"{made.kid}.pem", "state.json"):
        assert stat.S_IMODE((store.directory / name).stat().st_mode) == 0o600
    (store.directory / f"{made.kid}.pem").chmod(0o640)
    with pytest.raises(KeystoreError, match="chmod 600"):
        store.signing_key(NOW_S)
    store.directory.chmod(0o755)
    with pytest.raises(KeystoreError, match="chmod 700"):
        store.records()


def test_rotation_publishes_before_first_use_and_rejects_no_good_token(store):
    """K-04: at every second of a rotation, a fresh token verifies with a set that is one overlap old."""
    first = store.generate("ES256", NOW_S)
    before = store.jwks_file.read_bytes()
    second = store.rotate(None, 600, NOW_S + 10)
    assert set(published(store)) == {first.kid, second.kid}
    assert statuses(store, NOW_S + 10) == {first.kid: "active", second.kid: "next"}
    old_view = {ISS: KeySet.from_jwks(before, ("ES256",))}
    assert isinstance(verify(issued(store, NOW_S + 609).token, old_view, AUD), VerifiedToken)
    assert statuses(store, NOW_S + 610) == {first.kid: "retiring", second.kid: "active"}
    late = issued(store, NOW_S + 610)
    assert late.claims.kid == second.kid
    assert verify(late.token, old_view, AUD) == KeyWanted(ISS, second.kid)
    assert isinstance(verdict(late.token, store), VerifiedToken)
    with pytest.raises(KeystoreError, match="published already"):
        store.rotate(None, 600, NOW_S + 20)


def test_a_key_is_retired_only_when_its_last_token_cannot_be_honoured(store):
    first = store.generate("ES256", NOW_S)
    for ttl_s in (300, 86_400, 60):
        last_exp_s = NOW_S + 86_400
        issued(store, NOW_S, ttl_s)
    with pytest.raises(KeystoreError, match="active"):
        store.retire(first.kid, HONOURED_S, NOW_S)
    second = store.rotate("EdDSA", 0, NOW_S + 1)
    with pytest.raises(KeystoreError, match="s more"):
        store.retire(first.kid, HONOURED_S, last_exp_s + HONOURED_S - 1)
    assert set(published(store)) == {first.kid, second.kid}
    gone_s = last_exp_s + HONOURED_S + 3600  # the bound is noted in hours
    assert store.retire(first.kid, HONOURED_S, gone_s) is None
    assert set(published(store)) == {second.kid}
    assert not (store.directory / f"{first.kid}.pem").exists()
    assert statuses(store, gone_s)[first.kid] == Status.REMOVED
    with pytest.raises(KeystoreError, match="no published key"):
        store.retire(first.kid, HONOURED_S, gone_s)


def test_an_emergency_cuts_the_keys_tokens_off_at_once(store):
    first = store.generate("ES256", NOW_S)
    leaked = issued(store, NOW_S)
    successor = store.retire(first.kid, HONOURED_S, NOW_S + 1, emergency=True)
    assert set(published(store)) == {successor.kid}  # never empty: verifiers would keep the set they had
    assert verdict(leaked.token, store) == KeyWanted(ISS, first.kid)
    assert isinstance(verdict(issued(store, NOW_S + 1).token, store), VerifiedToken)


def test_an_emergency_lets_the_waiting_key_sign(store):
    first = store.generate("ES256", NOW_S)
    waiting = store.rotate(None, 600, NOW_S)
    assert store.retire(first.kid, HONOURED_S, NOW_S + 1, emergency=True).kid == waiting.kid
    assert store.signing_key(NOW_S + 1).kid == waiting.kid


def test_a_key_removed_meanwhile_hands_out_no_token(store):
    first = store.generate("ES256", NOW_S)
    store.retire(first.kid, HONOURED_S, NOW_S, emergency=True)
    with pytest.raises(KeystoreError, match="removed"):
        store.note_expiry(first.kid, NOW_S + 300)


def test_without_a_key_nothing_is_signed(store):
    with pytest.raises(KeystoreError, match="keys generate"):
        store.signing_key(NOW_S)
    with pytest.raises(KeystoreError, match="keys generate"):
        store.rotate(None, 600, NOW_S)


def test_damage_is_told_in_a_sentence(store):
    made = store.generate("ES256", NOW_S)
    pem = store.directory / f"{made.kid}.pem"
    for damage in (b"", b"-----BEGIN PRIVATE KEY-----\nAA\n-----END PRIVATE KEY-----\n"):
        pem.write_bytes(damage)
        with pytest.raises(KeystoreError, match="PKCS8"):
            store.signing_key(NOW_S)
    pem.unlink()
    with pytest.raises(KeystoreError, match="missing"):
        store.signing_key(NOW_S)
    (store.directory / "state.json").write_text("{")
    with pytest.raises(KeystoreError, match="damaged"):
        store.records()


def _rotate(store: Keystore, number: int) -> None:
    try:
        store.rotate(None, 0, NOW_S + number)
    except KeystoreError:
        store.publish()


def test_two_writers_do_not_lose_each_others_keys(store):
    store.generate("ES256", NOW_S)
    workers = [multiprocessing.Process(target=_rotate, args=(store, n)) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert {record.kid for record in store.records()} == set(published(store))
    assert len(store.records()) > 1
