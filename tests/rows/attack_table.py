"""The attack table, each vector with the tests that show it. What is missing needs a part that does not exist yet."""

from __future__ import annotations

from tests.rows.rows import AC, AO, AR, AS, K, R, Row, Z, in_

ATTACKS: dict[str, Row] = {
    "A1": in_(AS, "test_a1_only_the_keys_own_algorithm_counts"),
    "A2": in_(AS, "test_a2_the_public_key_is_no_secret"),
    "A3": in_(AS, "test_a3_a4_a_header_holds_alg_kid_and_typ_only"),
    "A4": in_(AS, "test_a3_a4_a_header_holds_alg_kid_and_typ_only"),
    "A5": in_(AS, "test_a5_a_kid_is_looked_up_and_nothing_else"),
    "A6": in_(AS, "test_a6_a_token_is_three_parts"),
    "A7": in_(AS, "test_a7_a_signature_is_two_numbers_in_range_in_64_bytes"),
    "A8": in_(AS, "test_a8_the_twin_of_a_used_token_starts_nothing"),
    "A9": in_(AS, "test_a9_base64url_is_strict"),
    "A10": Row((
        f"{AS}::test_a10_claims_are_strict_json",
        f"{AO}::test_any_bytes_of_a_record_are_decided_and_the_next_good_trigger_at_once",
    )),
    "A11": in_(AC, "test_a11_times_are_whole_seconds"),
    "A12": in_(AC, "test_a12_a_token_is_out_of_its_time_beyond_the_grace"),
    "A13": in_(AC, "test_a13_the_audience_is_this_deployment_alone"),
    "A14": in_(AC, "test_a14_an_issuer_is_known_by_its_exact_name"),
    "A15": in_(AC, "test_a15_a_class_is_never_accepted_in_anothers_place"),
    "A16": in_(AC, "test_a16_a_token_is_measured_before_it_is_decoded"),
    "A17": in_(
        AS, "test_a17_a_storm_of_unknown_kids_is_refused_and_honest_triggers_pass",
        reduced="100,000 unknown kids → 2,000 here; row F20 of the campaign sends 100,000, and rotates the keys",
    ),
    "A18": in_(K, "test_a_set_that_cannot_be_used_leaves_the_last_good_one"),
    "A19": in_(AC, "test_a19_a_jti_is_a_short_text"),
    "B1": in_(AR, "test_b1_b3_the_same_record_again_names_the_same_job_wherever_it_lands"),
    "B2": in_(AR, "test_b2_a_token_for_another_deployment_opens_nothing_here"),
    "B3": in_(AR, "test_b1_b3_the_same_record_again_names_the_same_job_wherever_it_lands"),
    "B4": in_(AR, "test_b4_b5_a_captured_token_is_worth_nothing_for_another_request"),
    "B5": in_(AR, "test_b4_b5_a_captured_token_is_worth_nothing_for_another_request"),
    "B6": in_(AR, "test_b6_a_key_used_for_another_request_is_refused"),
    "B7": in_(AR, "test_b7_a_squatter_has_no_effect_on_the_victims_key"),
    "B8": in_(AR, "test_b8_keys_that_look_alike_are_different_keys"),
    "B9": in_(AR, "test_b9_what_is_said_twice_is_refused_even_when_it_agrees"),
    "B10": in_(AR, "test_b10_a_producers_timestamp_buys_nothing"),
    "B11": Row(
        (
            "/access/test_matrix.py::test_a_topic_lets_each_user_do_what_the_table_says_and_no_more",
            "/access/test_matrix.py::test_who_may_not_write_may_not_take_back_either",
            "/access/test_programs.py::test_nobody_takes_back_a_revocation_but_who_may_revoke",
            "/access/test_programs.py::test_nobody_frees_a_used_token_by_a_tombstone",
        ),
        note="the boundary is Kafka's ACLs: entries carry no MAC, and who may revoke may take it back",
    ),
    "B12": Row(
        (
            f"{AR}::test_b12_a_receipt_of_anothers_key_tells_nothing_of_it",
            f"{R}::test_jobs_and_receipts_stand_on_topics_of_their_own_and_a_receipt_tells_no_parameter_or_key",
        ),
        note="receipts are one topic, which every emitter reads: they name no key and no parameter",
    ),
    "B13": in_(
        Z, "test_no_token_presented_stands_on_any_other_topic_in_a_log_or_in_the_metrics",
        "test_a_token_hidden_anywhere_in_a_refused_record_is_taken_out",
    ),
    "B15": in_(AO, "test_b15_a_strangers_words_stay_in_their_line"),
    "B16": Row((
        f"{Z}::test_no_token_presented_stands_on_any_other_topic_in_a_log_or_in_the_metrics",
        "/api/test_zz_canaries.py::test_no_token_handle_or_secret_is_on_a_topic_but_triggers_in_a_log_or_in_the_metrics",
    )),
    "B17": in_(
        AR, "test_b17_what_is_revoked_is_refused_from_then_on",
        "test_b17_a_revocation_up_to_a_moment_leaves_what_was_issued_after_it",
    ),
    "B18": in_(
        AO, "test_b18_odd_records_are_refused_and_the_next_is_decided_at_once",
        "test_b18_a_batch_that_expands_beyond_the_limit_is_refused_by_its_coordinates",
    ),
    "B21": Row((
        "/api/test_attacked_issuer.py::test_nobody_is_issued_more_than_its_roles_say_and_each_refusal_is_on_record",
        "/api/test_attacked_issuer.py::test_a_tenants_client_gets_no_token_that_starts_a_job_of_another_tenant",
        "/api/test_attacked_issuer.py::test_nothing_is_issued_listed_or_taken_back_without_proof",
        "/api/test_attacked_issuer.py::test_guessing_a_secret_is_slowed_and_who_has_it_is_not",
        "/api/test_authority.py::test_wrong_secrets_and_unknown_clients_are_told_alike_and_then_have_to_wait",
        "/api/test_attacked_issuer.py::test_a_key_that_was_retired_issues_nothing_and_without_any_nothing_is_issued",
    )),
}  # fmt: skip
