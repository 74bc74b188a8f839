"""Settings: who wins, what is refused, and by which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import config
from app.config import ConfigError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_sources_every_setting_has_its_default() -> None:
    settings = config.load()
    assert settings == config.Settings()
    assert settings.audience == "tollgate:tollgate."


def test_an_argument_wins_over_the_environment_and_that_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tollgate.toml").write_text('[kafka]\nprefix = "file."\nbootstrap = "file:1"\nclient_id = "file"\n')
    monkeypatch.setenv("TOLLGATE_PREFIX", "short.")
    monkeypatch.setenv("TOLLGATE_KAFKA__BOOTSTRAP", "long:1")
    monkeypatch.setenv("TOLLGATE_BOOTSTRAP", "short:1")
    kafka = config.load(kafka__prefix="argument.", kafka__bootstrap=None).kafka
    assert (kafka.prefix, kafka.bootstrap, kafka.client_id) == ("argument.", "long:1", "file")


def test_texts_of_the_environment_become_what_the_setting_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_GATE__GRACE_S", "30")
    monkeypatch.setenv("TOLLGATE_GATE__JWKS_REFRESH_S", "0.5")
    monkeypatch.setenv("TOLLGATE_GATE__STATE_DIR", "/var/lib/here")
    monkeypatch.setenv("TOLLGATE_GATE__SEALING_KEY", "key.jwk")
    gate = config.load().gate
    assert (gate.grace_s, gate.jwks_refresh_s) == (30, 0.5)
    assert (gate.state_dir, gate.sealing_key) == (Path("/var/lib/here"), Path("key.jwk"))


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[gate]\ngrace = 3", ("gate.grace", "not a setting")),
        ("[gates]\n", ("gates", "not a setting")),
        ("gate = 3", ("gate", "no section")),
        ("[gate", ("tollgate.toml", "cannot be read")),
        ("[gate]\ngrace_s = true", ("gate.grace_s", "True", "an integer from 0 to 600")),
        ("[gate]\nworkers = 257", ("gate.workers", "257", "an integer from 0 to 256")),
        ("[gate]\njwks_refresh_s = nan", ("gate.jwks_refresh_s", "nan", "a number from 0.1 to 86400")),
        ("[gate]\ncompression = 'gzip'", ("gate.compression", "gzip", "none, lz4, zstd")),
        ("[gate]\nstate_dir = 5", ("gate.state_dir", "5", "a path")),
        ("[kafka]\nprefix = 'a b'", ("kafka.prefix", "a b", "a text that matches")),
        ('[kafka]\nprefix = "a\\n"', ("kafka.prefix", "a text that matches")),
        ("[kafka]\nclient_id = 5", ("kafka.client_id", "5", "a text")),
    ],
)
def test_a_setting_that_is_wrong_is_named_with_what_it_may_be(toml: str, words: tuple[str, ...]) -> None:
    Path("tollgate.toml").write_text(toml)
    with pytest.raises(ConfigError) as refused:
        config.load()
    assert [word for word in words if word not in str(refused.value)] == []
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("TOLLGATE_GATE__GRACES", "TOLLGATE_GATE__GRACE_S"),
        ("TOLLGATE_GATES__GRACE_S", "TOLLGATE_GATE__GRACE_S"),
        ("TOLLGATE_BOOTSTRP", "TOLLGATE_BOOTSTRAP"),
        ("TOLLGATE_TELEMETRY_PORT", "TOLLGATE_TELEMETRY__PORT"),
        ("TOLLGATE_CONFG", "TOLLGATE_CONFIG"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest_that_is_known(
    monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigError, match=rf"{variable} .* {meant}\?"):
        config.load()


def test_variables_that_others_set_and_are_no_settings_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"TOLLGATE_ROOT": "/ours", "TOLLGATE_TOKEN": "x.y.z", "TOLLGATE_TEST_BOOTSTRAP": "there:1"}
    # What Kubernetes gives a container beside services named tollgate and tollgate-gate.
    for service in ("TOLLGATE", "TOLLGATE_GATE"):
        others |= {
            f"{service}_SERVICE_HOST": "10.0.0.1",
            f"{service}_SERVICE_PORT": "9464",
            f"{service}_SERVICE_PORT_METRICS": "9464",
            f"{service}_PORT": "tcp://10.0.0.1:9464",
            f"{service}_PORT_9464_TCP": "tcp://10.0.0.1:9464",
            f"{service}_PORT_9464_TCP_ADDR": "10.0.0.1",
        }
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    assert config.load() == config.Settings()


def test_a_setting_that_is_said_is_given_be_it_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not config.is_given("kafka", "bootstrap")
    monkeypatch.setenv("TOLLGATE_BOOTSTRAP", config.Settings().kafka.bootstrap)
    Path("tollgate.toml").write_text('[local]\ndata_dir = "there"\n')
    assert config.is_given("kafka", "bootstrap")
    assert config.is_given("local", "data_dir")
    assert not config.is_given("local", "cache_dir")


def test_a_secret_is_in_no_text_about_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_SECURITY__JWT_SECRET", "sesame" * 6)
    assert config.load().security.jwt_secret == "sesame" * 6
    assert "sesame" not in repr(config.load())
    Path("tollgate.toml").write_text("[security]\njwt_secret = 7777777\n")
    monkeypatch.delenv("TOLLGATE_SECURITY__JWT_SECRET")
    with pytest.raises(ConfigError) as raised:
        config.load()
    assert "security.jwt_secret" in str(raised.value)
    assert "7777777" not in str(raised.value)


def test_what_is_in_effect_says_which_source_it_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tollgate.toml").write_text("[security]\nexecution_token_max_lifetime = 60\n[kafka]\nprefix = 'file.'\n")
    monkeypatch.setenv("TOLLGATE_PREFIX", "short.")
    told = {f"{each.setting.section}.{each.setting.name}": (each.value, each.source) for each in config.effective()}
    assert told["security.execution_token_max_lifetime"] == (60, "file")
    assert told["kafka.prefix"] == ("short.", "environment")
    assert told["gate.grace_s"] == (60, "default")
    assert len(told) == len(list(config.every()))
    assert [each.name for each in config.every() if each.is_secret] == ["jwt_secret"]


def test_settings_do_not_change() -> None:
    with pytest.raises(AttributeError):
        config.load().gate.grace_s = 0  # type: ignore[misc]
