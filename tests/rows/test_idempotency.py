"""Rows I: the same request starts one job, whoever sends it how often to wherever, and whatever falls over."""

import shutil
import struct
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from tests.rows.jobs import BY_EVENT_ID, NIGHTLY, ONE_SHOT_ONLY, OTHER, STRICT
from tests.rows.triggers import Trigger, by_headers, plain
from tests.rows.world import World
from tests.support.altering import alter
from tests.support.reader import read_topic

ADMIN_TIMEOUT_S = 30


def keyed(world, key, job=NIGHTLY, params=None, **claims):
    """A webhook trigger with an idempotency key in its value."""
    return plain(world.ours.token(job, "many", **claims), job, params or {}, idempotency_key=key)


# ── I-01 ──


def test_a_key_in_the_token_the_header_or_the_value_is_the_same_key(world):
    many = world.ours.token(uses="many")
    first, *rest = world.present_in_turn(
        plain(many, idempotency_key="three-places"),
        by_headers(many, NIGHTLY, {}, ("idempotency-key", "three-places")),
        plain(world.ours.token(uses="many", idempotency_key="three-places")),
        plain(world.ours.token(uses="once", idempotency_key="three-places")),
        plain(world.issue(NIGHTLY, "--idempotency-key", "three-places")),
        plain(world.ours.token(uses="many", idempotency_key="three-places"), idempotency_key="three-places"),
        Trigger(
            {"job": NIGHTLY, "idempotency_key": "three-places"},
            [("authorization", f"Bearer {many}"), ("Idempotency-Key", "three-places")],
        ),
    )
    assert first.verdict == "accepted"
    assert [outcome.verdict for outcome in rest] == ["duplicate"] * 6
    assert {outcome.run_id for outcome in rest} == {first.run_id}


def test_keys_that_disagree_are_refused(world):
    many, claimed = world.ours.token(uses="many"), world.ours.token(uses="many", idempotency_key="one")
    once = world.ours.token(idempotency_key="one")
    outcomes = world.present(
        Trigger(
            {"job": NIGHTLY, "idempotency_key": "two"},
            [("authorization", f"Bearer {many}"), ("idempotency-key", "one")],
        ),
        plain(claimed, idempotency_key="two"),
        by_headers(claimed, NIGHTLY, {}, ("idempotency-key", "two")),
        plain(once, idempotency_key="two"),
    )
    assert [outcome.verdict for outcome in outcomes] == ["idempotency_key_conflict"] * 4
    assert {outcome.stage for outcome in outcomes} == {"dedupe"}


def test_without_a_key_a_webhook_trigger_is_a_new_run_and_a_one_shot_token_is_used_once(world):
    many, once = world.ours.token(uses="many"), world.ours.token()
    fresh = world.present(*[plain(many)] * 20)
    assert Counter(outcome.verdict for outcome in fresh) == {"accepted": 20}
    assert len({outcome.run_id for outcome in fresh}) == 20
    used = world.present(*[plain(once)] * 20)
    assert Counter(outcome.verdict for outcome in used) == {"accepted": 1, "duplicate": 19}
    assert len({outcome.run_id for outcome in used}) == 1


def test_a_key_beside_a_one_shot_token_must_be_in_it(world):
    assert world.present_one(plain(world.ours.token(), idempotency_key="k")).verdict == "idempotency_key_not_in_token"


@pytest.mark.parametrize(
    ("job", "verdicts"), [(BY_EVENT_ID, {"accepted": 1, "duplicate": 3}), (NIGHTLY, {"accepted": 4})]
)
def test_an_events_id_is_a_key_only_where_the_job_says_so(world, job, verdicts):
    attributes = [
        ("ce_specversion", "1.0"),
        ("ce_id", "7"),
        ("ce_source", "/rows"),
        ("ce_type", "t"),
        ("ce_subject", job),
    ]
    trigger = by_headers(world.ours.token(job, "many"), None, {}, *attributes)
    outcomes = world.present(*(trigger._replace(partition=lane) for lane in range(world.lanes)))
    assert Counter(outcome.verdict for outcome in outcomes) == verdicts


# ── I-02 ──

PRODUCERS, ROUNDS, A_ROUND = 50, 5, 4


def test_a_thousand_identical_triggers_on_all_partitions_make_one_job_whatever_gates_die(broker, tmp_path):
    with World(broker, tmp_path, lanes=6, gate__session_timeout_ms="3000", gate__transaction_timeout_ms="3000") as many:
        gates = [many.start_gate(f"gate-{number}", workers=1) for number in range(3)]
        for gate in gates:
            gate.wait_ready()
        trigger = keyed(many, "the only one")
        producers = [Producer({"bootstrap.servers": broker, "linger.ms": 5}) for _ in range(PRODUCERS)]

        def emit(number):
            lanes = [(number + more) % many.lanes for more in range(A_ROUND)]
            return many.send_all([trigger._replace(partition=lane) for lane in lanes], producers[number])

        def kill(*struck):
            for gate in struck:
                gate.kill()
            for gate in struck:
                gate.start()

        disturbances = [
            lambda: kill(gates[0]),
            lambda: kill(gates[1], gates[2]),
            lambda: many.start_gate("gate-3", workers=1).wait_ready(),  # a rebalance
            gates[0].stop,  # another
            lambda: kill(gates[2]),
        ]
        ids = []
        with ThreadPoolExecutor(16) as pool:
            for disturb in disturbances:
                emitted = [pool.submit(emit, number) for number in range(PRODUCERS)]
                disturb()
                ids += [trigger_id for each in emitted for trigger_id in each.result()]
        outcomes = many.outcomes(ids)
        assert len(set(ids)) == len(outcomes) == PRODUCERS * ROUNDS * A_ROUND == 1_000
        assert Counter(outcome.verdict for outcome in outcomes) == {"accepted": 1, "duplicate": 999}
        assert len({outcome.run_id for outcome in outcomes}) == 1
        assert {trigger_id.partition("-")[0] for trigger_id in ids} == {str(lane) for lane in range(many.lanes)}
        assert len(read_topic(broker, many.topic("jobs")).records) == 1
        assert len(read_topic(broker, many.topic("receipts")).records) == 1_000


@pytest.mark.parametrize("uses", ["once", "many"])
def test_one_request_sent_to_every_partition_at_once_makes_one_job(world, uses):
    token = world.ours.token(uses=uses, idempotency_key=f"everywhere-{uses}")
    outcomes = world.present(*(plain(token)._replace(partition=lane) for lane in range(world.lanes)))
    assert Counter(outcome.verdict for outcome in outcomes) == {"accepted": 1, "duplicate": world.lanes - 1}


def test_a_request_without_a_records_key_and_with_others_keys_makes_one_job(world):
    trigger = keyed(world, "by any partitioner")
    record_keys = [None, b"", b"by any partitioner", b"another", *(b"key-%d" % number for number in range(20))]
    outcomes = world.present(*(trigger._replace(key=key) for key in record_keys))
    assert Counter(outcome.verdict for outcome in outcomes) == {"accepted": 1, "duplicate": len(record_keys) - 1}


# ── I-03 ──


def settings_of(admin, topic):
    resource = ConfigResource(ResourceType.TOPIC, topic)
    found = admin.describe_configs([resource])[resource].result(ADMIN_TIMEOUT_S)
    return {name: entry.value for name, entry in found.items()}


def test_the_dedup_table_is_a_compacted_topic_kept_longer_than_every_window(world):
    settings = settings_of(AdminClient({"bootstrap.servers": world.bootstrap}), world.topic("idempotency"))
    assert set(settings["cleanup.policy"].split(",")) == {"compact", "delete"}
    assert settings["message.timestamp.type"] == "LogAppendTime"
    day_ms = 86_400_000
    assert int(settings["retention.ms"]) >= day_ms + 4 * 3_600_000 + int(settings["segment.ms"])
    world.apply("jobs", '[jobs."rows/kept-too-long"]\ndedup_window_s = 864000\n')
    world.until("window_too_long", lambda: keyed(world, "k", "rows/kept-too-long"))


def _superseded(world):
    """How many records of the changelog a later one of the same key has replaced."""
    records = read_topic(world.bootstrap, world.topic("idempotency")).records
    return len(records) - len({(record.partition, record.key) for record in records})


BRIEF, BRIEF_S = "rows/brief", 1


def test_the_table_is_restored_from_an_empty_changelog_one_of_markers_only_and_one_compacted(broker, tmp_path):
    admin = AdminClient({"bootstrap.servers": broker})
    with World(broker, tmp_path, lanes=2) as small:
        # Lane 0: aborted records and their markers only. Lane 1: nothing at all.
        foreign = Producer({"bootstrap.servers": broker, "transactional.id": f"{small.prefix}foreign"})
        foreign.init_transactions(ADMIN_TIMEOUT_S)
        for number in range(3):
            foreign.begin_transaction()
            foreign.produce(small.topic("idempotency"), b"x" * 69, key=b"%016d" % number, partition=0)
            foreign.flush(ADMIN_TIMEOUT_S)
            foreign.abort_transaction(ADMIN_TIMEOUT_S)
        gate = small.start_gate(workers=1).wait_ready()

        def restart_without_state():
            gate.stop()
            shutil.rmtree(gate.state_dir)
            gate.start().wait_ready()

        small.apply("jobs", f'[jobs."{BRIEF}"]\ndedup_window_s = {BRIEF_S}\n')
        small.until("accepted", lambda: keyed(small, f"warm-{time.time_ns()}", BRIEF))
        lasting = [keyed(small, f"lasting-{number}") for number in range(20)]
        first = small.present(*lasting)
        assert {outcome.verdict for outcome in first} == {"accepted"}
        for _ in range(2):  # each outlives its window: the second entry replaces the first
            brief = small.present(*(keyed(small, f"brief-{number}", BRIEF) for number in range(20)))
            assert {outcome.verdict for outcome in brief} == {"accepted"}
            time.sleep(BRIEF_S + 0.5)

        def still_duplicates():
            again = small.present(*(trigger._replace(partition=number % 2) for number, trigger in enumerate(lasting)))
            assert [outcome.verdict for outcome in again] == ["duplicate"] * len(lasting)
            assert [outcome.run_id for outcome in again] == [outcome.run_id for outcome in first]

        still_duplicates()
        restart_without_state()
        still_duplicates()

        before = _superseded(small)
        assert before >= 20
        quick = {"segment_ms": "100", "min_cleanable_dirty_ratio": "0.01"}
        alter(admin, small.topic("idempotency"), **quick)
        brokers = [str(number) for number in admin.list_topics(timeout=ADMIN_TIMEOUT_S).brokers]
        for number in brokers:
            alter(admin, number, kind=ResourceType.BROKER, log_cleaner_backoff_ms="200")
        try:
            deadline = time.monotonic() + 90
            rolled = 0
            while _superseded(small) >= before:  # until the cleaner has been
                assert time.monotonic() < deadline, "the topic was not compacted in time"
                small.present(*(keyed(small, f"rolls-{(rolled := rolled + 1)}", OTHER) for _ in range(4)))
                time.sleep(0.2)
        finally:
            for number in brokers:
                alter(admin, number, kind=ResourceType.BROKER, log_cleaner_backoff_ms=None)
        restart_without_state()
        still_duplicates()


# ── I-04 ──


def test_a_used_one_shot_token_starts_nothing_more_before_or_after_a_restart(world):
    token = world.ours.token()
    first = world.present_one(plain(token, params={"n": 1})._replace(partition=0))
    assert first.verdict == "accepted"

    def again():
        same = [plain(token, params={"n": 1})._replace(partition=lane, key=b"%d" % lane) for lane in range(world.lanes)]
        other = [plain(token, params={"n": 2})._replace(partition=lane) for lane in range(world.lanes)]
        outcomes = world.present(*same, *other, plain(token, params={"n": 1}, idempotency_key="new"))
        assert [outcome.verdict for outcome in outcomes] == [
            *["duplicate"] * world.lanes, *["token_already_used"] * world.lanes, "idempotency_key_not_in_token",
        ]  # fmt: skip
        assert {outcome.run_id for outcome in outcomes[: world.lanes]} == {first.run_id}
        for outcome in outcomes[world.lanes : -1]:
            assert outcome.dead_letter.headers["tollgate-first-run-id"] == first.run_id

    again()
    (gate,) = world.gates
    gate.stop()
    gate.start().wait_ready()
    again()
    assert len(world.run_jobs(first.run_id)) == 1


# ── I-06 ──


def test_a_refused_trigger_uses_up_neither_its_token_nor_its_key(world):
    once = world.ours.token(STRICT)
    with_key = world.ours.token(STRICT, idempotency_key="not-burned")
    cases = [(once, {}), (with_key, {"idempotency_key": "not-burned"})]
    for token, members in cases:
        bad, good = world.present_in_turn(
            plain(token, STRICT, {"region": "mars"}, **members), plain(token, STRICT, {"region": "eu"}, **members)
        )
        assert (bad.verdict, good.verdict) == ("payload_invalid", "accepted")


def test_expired_forged_and_foreign_triggers_with_a_key_leave_the_key_to_its_owner(world):
    now_s = int(time.time())
    past = {"iat": now_s - 900, "nbf": now_s - 900, "exp": now_s - 300}
    good = keyed(world, "wanted by many")
    forged = world.ours.token(uses="many")[:-8] + "AAAAAAAA"
    refused = world.present(
        keyed(world, "wanted by many", **past),
        plain(forged, NIGHTLY, {}, idempotency_key="wanted by many"),
        plain(world.ours.token(OTHER, "many"), NIGHTLY, {}, idempotency_key="wanted by many"),
    )
    assert [outcome.verdict for outcome in refused] == ["token_expired", "signature_invalid", "job_not_authorized"]
    assert world.present_one(good).verdict == "accepted"


# ── I-08 ──


def test_a_key_is_its_owners_for_one_job(world):
    subject = "service:another"
    triggers = {
        "one": keyed(world, "shared"),
        "another job": keyed(world, "shared", OTHER),
        "another identity": keyed(world, "shared", sub=subject),
        "another issuer": plain(world.partner.token(uses="many"), NIGHTLY, {}, idempotency_key="shared"),
    }
    firsts = world.present(*triggers.values())
    assert [outcome.verdict for outcome in firsts] == ["accepted"] * 4
    assert len({outcome.run_id for outcome in firsts}) == 4
    agains = world.present(*triggers.values())
    assert [outcome.verdict for outcome in agains] == ["duplicate"] * 4
    assert [outcome.run_id for outcome in agains] == [outcome.run_id for outcome in firsts]  # each its own


# ── I-09 ──


def test_a_sensitive_job_takes_one_shot_tokens_only(world):
    many, once = world.present(
        plain(world.ours.token(ONE_SHOT_ONLY, "many"), ONE_SHOT_ONLY),
        plain(world.ours.token(ONE_SHOT_ONLY), ONE_SHOT_ONLY),
    )
    assert (many.verdict, many.stage) == ("token_class_too_weak", "authorize")
    assert once.verdict == "accepted"


def test_an_entry_of_the_table_says_which_run_a_request_became(world):
    started = world.present_one(keyed(world, "to be looked up"))
    partition, offset = (int(number) for number in started.trigger_id.split("-"))
    entries = [
        record.value for record in read_topic(world.bootstrap, world.topic("idempotency")).records if record.value
    ]
    coordinates = struct.pack(">IQ", partition, offset)
    (entry,) = [value for value in entries if value[41:53] == coordinates]
    assert entry[1:17].hex() == started.run_id.replace("-", "")
