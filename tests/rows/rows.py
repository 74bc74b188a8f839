"""The rows of requirements.md that hold, each with the tests that show it, and the numbers reduced for time.

A test is `file::function`, from this directory; with a slash, from `tests/`. With TOLLGATE_ROWS_FULL=1 in the
environment V-03 runs at the row's own numbers.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    tests: tuple[str, ...]
    reduced: str = ""  # the row's number → the suite's, and why
    note: str = ""  # where the design decided otherwise than the row's words


def in_(file: str, *functions: str, reduced: str = "", note: str = "") -> Row:
    return Row(tuple(f"{file}::{function}" for function in functions), reduced, note)


T, V, A, P, D = (f"test_{name}.py" for name in ("tokens", "verification", "authorization", "payload", "idempotency"))
H = "test_handles.py"
Z = "test_zz_schemas.py"
AS, AC, AR, AO = (f"test_attacks_{name}.py" for name in ("signature", "claims", "replay", "records"))
R, L, K, OBS = (f"test_{name}.py" for name in ("results", "lifecycle", "keys", "observation"))
ID, C, LI, S = (f"test_{name}.py" for name in ("identities", "classes", "logins", "settings"))
M, N, E, MS = (f"test_{name}.py" for name in ("emitters", "documentation", "extras", "moonshots"))

ROWS: dict[str, Row] = {
    "T-01": Row((
        f"{T}::test_an_issued_token_names_job_params_and_expiry_and_starts_that_job",
        f"{ID}::test_an_identity_without_the_right_gets_no_token_and_the_refusal_is_on_record",
        f"{ID}::test_who_proves_nothing_gets_nothing_and_learns_nothing",
        "/api/test_authority.py::test_tokens_are_issued_listed_by_fingerprint_and_taken_back",
        "/api/test_authority.py::test_roles_decide_and_a_changed_policy_is_obeyed_without_a_restart",
    )),
    "T-02": in_(
        T, "test_ten_thousand_tokens_have_distinct_and_random_ids",
        "test_a_token_with_any_one_byte_flipped_starts_nothing_and_the_token_is_still_good",
    ),
    "T-03": Row((
        f"{H}::test_a_handle_and_a_token_for_one_job_have_the_same_authority",
        f"{H}::test_handles_work_after_a_restart_with_no_issuer_anywhere",
        f"{H}::test_an_unknown_handle_is_told_from_one_of_an_expired_grant",
        f"{H}::test_a_handle_may_be_used_the_moment_its_grant_is_committed",
        f"{H}::test_who_can_write_grants_and_has_no_key_makes_no_handle",
        "/api/test_issuing.py::test_a_handle_is_as_good_as_a_token_at_once_and_stands_nowhere",
    )),
    "T-04": Row((
        f"{T}::test_an_emitter_goes_on_after_all_local_state_is_deleted_and_every_gate_restarted",
        f"{Z}::test_no_record_is_keyed_by_an_emitter_or_its_connection",
    )),
    "T-05": Row((
        f"{ID}::test_a_disabled_identitys_tokens_are_dead_letters_and_anothers_pass",
        f"{ID}::test_whoever_ends_an_identitys_tokens_ends_them_all_at_once",
        f"{LI}::test_a_rotated_services_tokens_end_and_those_of_a_person_who_owns_the_same_job_pass",
    )),
    "T-09": in_(T, "test_a_correctly_signed_token_without_kid_is_refused"),
    "T-10": in_(T, "test_what_is_minted_carries_kid_iat_and_jti", "test_a_token_without_jti_is_refused"),
    "T-12": in_(
        T, "test_the_issuer_refuses_a_lifetime_that_is_missing_or_above_the_cap",
        "test_the_gate_refuses_a_lifetime_that_is_missing_or_above_the_cap_whoever_signed_it",
    ),
    "T-13": in_(
        T, "test_the_issuer_puts_no_secret_into_a_token", "test_a_signed_token_that_carries_a_secret_in_clear_is_refused"
    ),
    "T-14": in_(
        T, "test_the_issuer_makes_no_token_for_any_job", "test_a_signed_token_for_any_job_starts_none",
        "test_a_token_for_two_jobs_starts_those_two_only",
    ),
    "T-15": in_(
        T, "test_what_a_token_fixes_is_never_what_the_payload_says", "test_a_parameter_named_twice_is_refused",
        "test_an_equal_value_is_no_conflict_and_a_missing_one_is_filled_in",
    ),
    "P-04": Row((
        "/api/test_triggers.py::test_the_same_token_and_event_get_the_same_receipt_by_kafka_and_by_http",
        "/api/test_triggers.py::test_the_door_publishes_what_the_command_publishes",
    ), note="Kafka and HTTP; receipts hold no `via`"),
    "P-07": Row((
        "/api/test_triggers.py::test_a_trigger_is_acknowledged_with_its_id_and_where_its_receipt_will_be",
        "/api/test_triggers.py::test_a_refusal_is_a_problem_with_the_status_of_its_reason",
        "/api/test_triggers.py::test_retries_with_one_idempotency_key_make_one_run",
    )),
    "X-11": Row((
        "/api/test_conformance.py::test_introspection_is_as_rfc_7662_has_it",
        "/api/test_conformance.py::test_revocation_is_as_rfc_7009_has_it",
        "/api/test_conformance.py::test_the_metadata_says_where_and_how",
        "/api/test_client_library.py::test_a_client_gets_a_token_asks_about_it_starts_a_job_and_takes_it_back",
        "/api/test_authority.py::test_introspection_tells_of_a_live_token_and_nothing_of_any_other",
        "/api/test_authority.py::test_a_client_takes_its_own_token_back_and_no_others",
    )),
    "X-13": Row((
        "/api/test_delegation.py::test_who_acts_for_whom_stands_in_the_token_in_introspection_and_in_the_audit",
        "/api/test_delegation.py::test_a_chain_of_four_is_the_longest",
        "/api/test_delegation.py::test_a_disabled_actor_starts_nothing_for_anyone_and_its_subject_goes_on",
        "/gate/test_delegation.py::test_a_handoff_keeps_the_chain",
    ), note="exchanged tokens; dead letters are not replayed yet"),
    "X-14": Row((
        "/api/test_authority.py::test_a_grant_says_what_the_token_fixes",
        "/api/test_authority.py::test_a_malformed_request_is_refused_in_the_words_of_oauth",
        "/api/test_delegation.py::test_exchanged_tokens_and_every_record_that_they_leave_fit_their_schemas",
    )),
    "X-22": Row(("/api/test_triggers.py::test_the_same_token_and_event_get_the_same_receipt_by_kafka_and_by_http",)),
    "T-18": Row((
        f"{C}::test_a_one_time_token_is_gone_once_it_has_started_its_job",
        f"{C}::test_introspection_tells_the_class_and_nothing_once_the_token_is_gone",
        "/api/test_issuing.py::test_a_one_shot_token_is_listed_until_it_has_started_its_job",
    ), note="class and introspection, from the acceptance of its job on; its end, and a token of its own, come with runs"),
    "T-19": Row((
        f"{LI}::test_a_login_yields_a_user_token_in_a_file_of_its_owner_alone",
        f"{LI}::test_a_user_token_is_good_until_it_expires_and_then_says_so_with_an_exit_code_of_its_own",
        f"{C}::test_each_class_works_where_the_document_says_and_nowhere_else",
        f"{LI}::test_how_long_a_login_lasts_is_for_the_role_to_say",
    ), reduced="8 h → 8 s for the expiry", note="of task endpoints, their tokens: there are no such endpoints yet"),
    "T-20": in_(
        T, "test_a_webhook_token_is_accepted_a_thousand_times_until_it_is_revoked",
        "test_a_tokens_uses_are_its_own_and_are_counted_of_a_handle_too",
        "test_a_token_is_inspected_without_kafka_and_says_that_its_uses_are_not_known",
        "test_the_gate_refuses_a_lifetime_that_is_missing_or_above_the_cap_whoever_signed_it", note="counted from the audit",
    ),
    "T-21": in_(
        T, "test_an_emitter_signs_its_own_tokens_for_its_own_jobs_and_as_nobody_else",
        "test_a_registered_set_with_a_private_key_or_without_a_usable_one_is_refused",
    ),
    "V-01": in_(V, "test_garbage_a_stranger_and_an_expired_token_have_each_its_reason_and_leave_no_entry"),
    "V-02": in_(V, "test_only_a_token_with_all_of_kid_iss_aud_and_exp_right_passes"),
    "V-03": in_(
        V, "test_no_mutated_token_is_accepted_and_each_has_its_dead_letter_and_receipt",
        "test_no_signed_token_with_a_required_claim_missing_or_malformed_is_accepted",
        "test_a_verifier_that_fails_refuses_and_never_starts_a_job",
        reduced="100,000 mutated tokens → 20,000: each is a record through a running gate",
    ),
    "V-04": in_(
        V, "test_a_token_is_good_up_to_sixty_seconds_out_of_its_time_by_the_brokers_clock",
        "test_one_setting_moves_both_ends_of_the_grace",
    ),
    "V-06": Row((
        f"{V}::test_a_gate_does_not_start_with_a_weak_shared_secret",
        f"{V}::test_a_token_of_a_shared_secret_is_refused_where_none_is_configured",
        f"{AS}::test_a1_only_the_keys_own_algorithm_counts",
        f"{AS}::test_a2_the_public_key_is_no_secret",
        f"{AS}::test_a3_a4_a_header_holds_alg_kid_and_typ_only",
        f"{AS}::test_a5_a_kid_is_looked_up_and_nothing_else",
        f"{AS}::test_a10_claims_are_strict_json",
        f"{AC}::test_a15_a_class_is_never_accepted_in_anothers_place",
        f"{AC}::test_a16_a_token_is_measured_before_it_is_decoded",
    )),
    "V-08": Row((
        f"{C}::test_each_class_works_where_the_document_says_and_nowhere_else",
        "/api/test_door.py::test_a_token_of_another_class_or_of_none_never_gets_to_kafka",
        "/gate/test_classes.py::test_what_a_token_says_of_its_class_is_seen_without_verifying_it",
    ), note="the published matrix is the document's; for the classes that exist: trigger, user, host"),
    "A-01": in_(
        A, "test_a_token_for_one_job_does_not_start_another", "test_a_grant_without_the_trigger_permission_starts_nothing",
        "test_a_grant_with_job_and_permission_starts_the_job",
    ),
    "A-02": in_(
        A, "test_two_tokens_of_one_identity_open_each_what_it_grants",
        "test_taking_back_one_token_of_an_identity_does_not_touch_the_other",
    ),
    "A-03": in_(A, "test_each_refusal_says_at_which_stage_and_why"),
    "A-07": in_(
        A, "test_no_trigger_reaches_the_system_itself", "test_no_other_action_of_a_grant_is_worth_anything",
        "test_who_holds_a_token_can_issue_no_other", note="for what exists: there are no endpoints yet",
    ),
    "A-08": Row((
        "/api/test_escalation.py::test_whatever_an_exchanged_token_starts_the_one_it_came_of_could_have_started",
        "/api/test_exchange.py::test_what_comes_of_it_is_never_more_than_what_was_handed_over",
        "/api/test_exchange.py::test_what_a_token_does_not_let_its_bearer_do_is_not_exchanged_for",
        "/api/test_delegation.py::test_whatever_is_asked_for_a_token_is_never_exchanged_for_more",
        "/api/test_delegation.py::test_a_token_is_no_credential_to_get_another_with",
        "/authority/test_decide.py::test_whatever_is_allowed_stands_in_one_entry_and_in_no_deny",
    ), note="there are no refresh tokens, and dead letters are not replayed yet"),
    "A-10": Row((
        f"{ID}::test_a_changed_policy_is_obeyed_by_the_next_issue",
        f"{ID}::test_what_a_role_does_not_say_is_refused",
        "/api/test_authority.py::test_roles_decide_and_a_changed_policy_is_obeyed_without_a_restart",
        "/api/test_authority.py::test_tokens_are_issued_listed_by_fingerprint_and_taken_back",
    ), note="403 of POST /v1/tokens; /oauth/token says it as RFC 6749 does, 400 invalid_scope"),
    "A-11": in_(
        ID, "test_an_outstanding_token_obeys_a_rule_at_once_and_deny_wins",
        "test_a_rule_denies_by_what_it_names_and_leaves_others_alone", "test_a_class_is_denied_for_one_job",
        note="an allow rule narrows what a token says and never adds to it; a host is one by its subject host:NAME",
    ),
    "A-12": in_(
        A, "test_a_perfect_token_starts_no_job_that_is_unregistered_disabled_or_beyond_its_issuers_rule",
        "test_a_job_switched_off_and_on_again_follows_without_a_restart",
    ),
    "A-13": in_(A, "test_a_token_speaks_only_for_the_organisation_of_its_issuers_rule"),
    "P-01": in_(
        P, "test_javas_console_producer_starts_jobs_by_value_and_by_headers",
        "test_an_aiokafka_producer_starts_jobs_by_value_and_by_headers",
        "test_a_librdkafka_producer_starts_a_job_whatever_its_records_key", "test_a_trigger_may_come_in_any_documented_form",
    ),
    "P-02": in_(P, "test_an_emitter_may_be_gone_before_its_trigger_is_decided"),
    "P-03": in_(
        P, "test_the_token_wins_over_the_payload_and_the_payload_over_the_jobs_default",
        "test_a_payload_that_does_not_fit_the_jobs_schema_is_told_where",
        "test_a_payload_that_fits_runs_with_the_defaults_filled_in",
        "test_a_payload_above_the_limit_is_refused_and_one_below_is_not",
        "test_a_payload_digest_in_trigger_or_token_must_match",
    ),
    "P-05": in_(P, "test_a_kind_of_job_never_seen_before_works_with_only_a_registry_record"),
    "P-06": Row((
        f"{Z}::test_every_record_of_a_topic_fits_its_schema",
        f"{Z}::test_every_record_of_the_registry_fits_the_schema_of_its_kind",
        f"{Z}::test_every_record_of_issuing_fits_the_schema_of_its_event",
        f"{Z}::test_every_accepted_plain_trigger_fits_its_schema",
        f"{Z}::test_a_changed_field_does_not_fit",
        "/test_schemas.py::test_a_changed_schema_has_a_new_version",
    )),
    "I-01": in_(
        D, "test_a_key_in_the_token_the_header_or_the_value_is_the_same_key", "test_keys_that_disagree_are_refused",
        "test_without_a_key_a_webhook_trigger_is_a_new_run_and_a_one_shot_token_is_used_once",
        "test_a_key_beside_a_one_shot_token_must_be_in_it", "test_an_events_id_is_a_key_only_where_the_job_says_so",
    ),
    "I-02": in_(
        D, "test_a_thousand_identical_triggers_on_all_partitions_make_one_job_whatever_gates_die",
        "test_one_request_sent_to_every_partition_at_once_makes_one_job",
        "test_a_request_without_a_records_key_and_with_others_keys_makes_one_job",
    ),
    "I-03": in_(
        D, "test_the_dedup_table_is_a_compacted_topic_kept_longer_than_every_window",
        "test_the_table_is_restored_from_an_empty_changelog_one_of_markers_only_and_one_compacted",
        "test_an_entry_of_the_table_says_which_run_a_request_became",
    ),
    "I-04": in_(D, "test_a_used_one_shot_token_starts_nothing_more_before_or_after_a_restart"),
    "I-06": in_(
        D, "test_a_refused_trigger_uses_up_neither_its_token_nor_its_key",
        "test_expired_forged_and_foreign_triggers_with_a_key_leave_the_key_to_its_owner",
    ),
    "I-07": Row(
        ("/kill/test_kill.py::test_gates_killed_inside_open_transactions_lose_nothing_and_start_nothing_twice",),
        reduced="1,000 kills → 20: the proof of the rest is a campaign of its own",
    ),
    "I-08": Row((
        f"{D}::test_a_key_is_its_owners_for_one_job",
        f"{AR}::test_b7_a_squatter_has_no_effect_on_the_victims_key",
        f"{AR}::test_b8_keys_that_look_alike_are_different_keys",
    )),
    "I-09": in_(D, "test_a_sensitive_job_takes_one_shot_tokens_only"),
    "R-01": in_(R, "test_an_accepted_trigger_is_one_record_on_the_jobs_topic_keyed_by_its_run_id", note="the job record"),
    "R-02": in_(
        R, "test_each_trigger_has_one_receipt_that_tells_what_became_of_it",
        "test_the_command_waits_for_a_receipt_and_its_exit_code_tells_the_outcome",
    ),
    "R-03": Row((
        f"{R}::test_jobs_and_receipts_stand_on_topics_of_their_own_and_a_receipt_tells_no_parameter_or_key",
        "/access/test_table.py::test_an_emitter_writes_triggers_and_reads_receipts_and_a_worker_reads_jobs_and_that_is_all",
        "/access/test_matrix.py::test_a_topic_lets_each_user_do_what_the_table_says_and_no_more",
    )),
    "L-01": in_(L, "test_a_token_is_accepted_until_it_is_revoked_and_by_no_gate_afterwards"),
    "L-02": in_(
        L, "test_a_token_of_five_seconds_is_accepted_in_its_time_and_expired_after_the_grace",
        "test_the_last_moment_of_a_token_is_the_end_of_its_grace_by_the_brokers_clock",
        note="no clock is turned: tokens are made with times around the broker's",
    ),
    "K-01": in_(
        K, "test_tokens_are_signed_with_es256_and_the_published_set_holds_public_members_only",
        "test_no_private_key_is_found_in_the_memory_of_a_gate", "test_a_set_that_cannot_be_used_leaves_the_last_good_one",
    ),
    "K-02": in_(
        K, "test_a_token_of_a_shared_secret_is_refused_by_an_issuer_whose_rule_says_es256",
        "test_a_token_of_a_shared_secret_is_refused_where_no_secret_is_configured",
        "test_a_shared_secret_is_accepted_where_configured_and_everyone_is_told_loudly",
        "test_a_receipt_of_an_asymmetric_token_says_nothing_of_insecurity", "test_there_is_no_built_in_secret",
    ),
    "K-03": in_(
        K, "test_a_storm_of_unknown_kids_costs_its_issuer_one_fetch", "test_the_last_good_set_serves_while_its_issuer_is_down",
        "test_a_set_that_cannot_be_used_leaves_the_last_good_one",
        reduced="100,000 unknown kids → 2,000: each is a record through a running gate",
        note="the endpoint: tests/api/test_running.py",
    ),
    "K-04": in_(
        K, "test_no_good_token_is_rejected_while_keys_rotate_under_load",
        "test_a_rotated_key_is_published_at_once_and_signs_when_its_overlap_is_over",
        "test_an_emergency_removal_cuts_a_keys_tokens_off_at_once",
        "test_a_key_that_is_removed_and_nothing_else_is_honoured_no_longer",
        "test_a_key_that_one_gate_has_read_before_the_other_refuses_no_trigger_that_goes_home_to_it",
    ),
    "K-05": in_(
        S, "test_one_block_of_settings_says_with_which_keys_the_command_and_the_door_sign",
    ),
    "K-06": in_(
        ID, "test_a_rotated_secret_and_the_one_before_are_both_good_for_the_overlap_then_only_the_new",
    ),
    "K-07": in_(
        K, "test_a_secret_that_would_be_unsafe_stops_the_start", "test_the_shared_secret_is_in_no_topic_log_or_metric",
        "test_there_is_no_built_in_secret",
    ),
    "O-01": in_(
        OBS, "test_each_refused_trigger_is_one_dead_letter_as_it_came_less_its_token",
        note="a duplicate has a receipt and an audit entry, no dead letter",
    ),
    "O-02": Row((
        f"{OBS}::test_every_presentation_is_in_the_audit_once_and_the_chain_holds",
        "/kill/test_kill.py::test_gates_killed_inside_open_transactions_lose_nothing_and_start_nothing_twice",
    )),
    "O-03": in_(
        OBS, "test_the_audit_tells_who_started_a_run_with_what_and_what_came_of_it", note="as far as the run record goes"
    ),
    "O-05": Row((
        f"{OBS}::test_no_token_nor_part_of_a_signature_is_in_any_log_metric_or_topic_but_the_triggers",
        f"{Z}::test_no_token_presented_stands_on_any_other_topic_in_a_log_or_in_the_metrics",
        "/api/test_zz_canaries.py::test_no_token_handle_or_secret_is_on_a_topic_but_triggers_in_a_log_or_in_the_metrics",
        "/test_canaries.py::test_what_is_planted_is_found_in_every_form_wherever_it_stands",
    )),
    "O-07": in_(
        OBS, "test_each_bad_record_has_its_reason_and_the_next_good_trigger_is_handled",
        "test_any_bytes_and_any_headers_are_decided",
        "test_the_largest_record_the_topic_takes_is_decided_and_one_byte_more_never_gets_there",
        "test_a_batch_that_expands_to_150_mb_is_dead_lettered_by_its_offsets_within_256_mb",
        reduced="the next good event within 1 s → at all: no test asserts on time",
        note="the broker refuses 10 MB records; the largest it takes is sent",
    ),
    "M-01": in_(
        C, "test_each_class_works_where_the_document_says_and_nowhere_else",
        "test_a_token_of_another_class_starts_no_job_over_kafka_and_is_told_so",
        "test_the_class_is_in_token_receipt_and_audit", note="for the classes that exist: trigger, user, host",
    ),
    "M-07": in_(
        LI, "test_a_login_yields_a_user_token_in_a_file_of_its_owner_alone",
        "test_a_user_token_is_good_until_it_expires_and_then_says_so_with_an_exit_code_of_its_own",
        "test_a_logout_ends_the_token_and_removes_the_file",
    ),
    "M-10": in_(
        M, "test_the_example_worker_runs_each_accepted_job_once_and_none_of_an_aborted_transaction",
        note="read committed and dedup by run id, in an example worker",
    ),
    "M-11": in_(
        M, "test_the_command_emits_a_trigger_and_waits_for_its_receipt",
        "test_a_short_program_with_a_plain_client_starts_a_job",
        "test_a_short_program_in_java_with_kafkas_own_client_starts_a_job", "test_a_record_made_by_hand_starts_a_job",
    ),
    "N-01": in_(
        N, "test_the_bench_is_one_script_and_the_readme_has_its_figures",
        reduced="10 min → none in the suite: `scripts/bench` measures, the README states rate, machine and p99",
    ),
    "N-02": in_(
        N, "test_generation_and_validation_have_tests_without_a_broker_and_with_one",
        note="pytest -m 'not broker' and -m broker; of the seed's cases those of parts that exist",
    ),
    "N-04": Row((
        f"{S}::test_the_names_of_others_are_settings_and_a_secret_is_never_shown",
        f"{S}::test_an_unknown_setting_stops_every_start_and_a_secret_of_the_wrong_kind_is_not_repeated",
        "/test_trust.py::test_a_secret_of_the_settings_is_honoured_where_the_dangerous_setting_names_it_alone",
    ), note="execution_token_max_lifetime is taken and bounded; tokens of runs come with runs"),
    "N-05": Row((
        "/api/test_children.py::test_a_job_starts_each_of_its_children_once_by_a_token_that_can_do_no_more",
        "/test_security.py::test_what_authors_of_jobs_are_shown_is_there_and_good",
    ), note="the tokens part: reads its job, makes children; secrets, data sets and credentials come with runs"),
    "N-07": in_(N, "test_the_six_terms_are_in_the_readme_and_their_words_in_the_schemas"),
    "N-08": in_(
        N, "test_the_top_level_has_the_names_agreed", "test_the_packages_agreed_are_dependencies_and_faust_only_of_the_bench",
        "test_a_wheel_is_built_and_installs_the_program",
        note="Faust is in the dependency group bench; `scripts/demo` from a clean clone is a run of its own",
    ),
    "X-01": in_(E, "test_a_key_with_another_request_is_refused_and_names_the_first_run"),
    "X-02": in_(E, "test_the_same_request_again_gets_the_first_runs_handle"),
    "X-03": in_(E, "test_a_key_counts_for_its_jobs_window_by_append_time_and_not_longer", note="the window"),
    "X-18": in_(
        E, "test_a_cloudevent_is_a_trigger_in_binary_and_in_structured_mode",
        "test_an_events_source_and_id_are_a_key_where_the_job_says_so", "test_jobs_and_receipts_are_cloudevents_in_binary_mode",
    ),
    "X-19": in_(E, "test_a_dead_letter_names_origin_and_reason_in_our_headers_and_in_those_that_viewers_know"),
    "X-05": in_(A, "test_a_jobs_owner_says_who_may_start_it_and_the_audit_suggests_whom"),
    "X-08": Row(
        (
            f"{H}::test_a_token_dies_with_the_object_it_is_bound_to_and_stays_dead",
            f"{H}::test_a_token_dies_with_its_job_and_stays_dead_when_it_is_defined_again",
            "/api/test_issuing.py::test_a_bound_token_dies_with_its_object_and_is_listed_no_longer",
        ),
        reduced="refused within 1 s → at all: no test asserts on time; `scripts/bench` measures it",
    ),
    "X-10": Row(
        (
            f"{L}::test_one_record_revokes_all_tokens_it_describes_and_no_other",
            f"{H}::test_a_revocation_is_listed_and_lifted_and_what_it_refused_is_honoured_again",
            f"{H}::test_only_revocations_that_outlived_their_tokens_are_cleaned_away",
            "/api/test_delegation.py::test_what_a_token_was_exchanged_for_dies_with_it_and_not_the_other_way_round",
            "/api/test_delegation.py::test_whoever_is_revoked_loses_what_it_acts_with",
            "/api/test_delegation.py::test_what_a_handle_was_exchanged_for_dies_with_the_handle",
            "/gate/test_delegation.py::test_what_reaches_a_token_reaches_what_it_was_exchanged_for",
        ),
        reduced="effect < 1 s → at all: no test asserts on time; `scripts/bench` measures it",
        note="children follow always, not only when asked; runs mint no credentials yet; by key and issuer: L-01, K-04",
    ),
    "X-26": in_(K, "test_a_token_of_a_key_published_a_moment_ago_is_held_for_one_fetch_and_accepted"),
    "X-30": in_(
        E, "test_explain_shows_each_check_of_a_trigger_on_the_topic_and_the_one_that_decided",
        "test_explain_of_a_file_judges_what_was_never_sent", "test_explain_says_when_there_is_no_such_trigger",
    ),
    "MS1": in_(
        MS, "test_a_backlog_kills_no_honest_trigger_and_saves_none_that_came_too_late",
        "test_a_topic_that_takes_producers_timestamps_is_refused_by_name_and_its_records_one_by_one",
        reduced="gates stopped for 2 h → 9 s, with tokens that end meanwhile",
        note="a forged timestamp of a producer is overwritten by the broker and has no effect",
    ),
    "MS2": Row(
        ("/kill/test_kill.py::test_gates_killed_inside_open_transactions_lose_nothing_and_start_nothing_twice",),
        reduced="1,000 kills → 20, as I-07",
    ),
    "MS3": in_(
        MS, "test_a_one_time_token_shown_again_is_a_retry_and_with_another_request_an_attack",
        note="the code is token_already_used",
    ),
    "MS15": in_(
        MS, "test_triggers_of_an_issuer_that_cannot_be_reached_are_held_and_decided_rightly_on_its_return",
        note="with X-26",
    ),
}  # fmt: skip
