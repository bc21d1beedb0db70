import re
from pathlib import Path

import pytest

from engine_core.upstream.settings import Upstream
from router.settings import Settings, SettingsError, load


def write(folder: Path, text: str) -> str:
    path = folder / "config.toml"
    path.write_text(text)
    return str(path)


def test_defaults_hold_without_file_and_environment() -> None:
    settings = load(None, {})
    assert settings == Settings()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8080)
    assert settings.redis.url is None


def test_the_environment_beats_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, '[server]\nport = 1\nhost = "h"\n[draft]\nmodel = "m"')
    settings = load(path, {"DRAFTGATE_SERVER__PORT": "8081", "HOME": "/x"})
    assert (settings.server.port, settings.server.host, settings.draft.model) == (8081, "h", "m")


def test_environment_values_take_the_type_of_their_field() -> None:
    settings = load(
        None,
        {
            "DRAFTGATE_REDIS__URL": "redis://r:6379/0",
            "DRAFTGATE_POLICY__QUALITY_THRESHOLD": "0.25",
            "DRAFTGATE_DRAFT__MAX_STEPS": "12",
            "DRAFTGATE_REFINE__UPSTREAM__BASE_URL": "https://host/v1",
            "DRAFTGATE_REFINE__UPSTREAM__IDLE_TIMEOUT_S": "7",
            "DRAFTGATE_UPSTREAM_KEY": "no setting, but the key itself",
        },
    )
    assert settings.refine.upstream == Upstream(base_url="https://host/v1", idle_timeout_s=7.0)
    assert settings.redis.url == "redis://r:6379/0"
    assert settings.policy.quality_threshold == 0.25
    assert settings.draft.max_steps == 12


def test_variables_that_kubernetes_injects_are_left_alone() -> None:
    environ = {"DRAFTGATE_SERVICE_HOST": "10.0.0.1", "DRAFTGATE_PORT_8080_TCP": "tcp://x"}
    assert load(None, environ) == Settings()


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[server]\nport = '8080'", "server.port: expected int, got '8080'"),
        ("[server]\nport = 70000", "server.port: expected int <= 65535, got 70000"),
        ("[server]\nprot = 1", "server.prot: no such setting, expected one of: host, port"),
        ("[sever]\nport = 1", "sever: no such setting, expected one of: server, redis"),
        ("server = 3", "server: expected object, got 3"),
        ("[policy]\nquality_threshold = 1.5", "policy.quality_threshold: expected float <= 1.0"),
        ("[redis]\nurl = 'http://r'", "redis.url: expected str matching regex"),
        ("[refine]\nmode = 'perfect'", "refine.mode: invalid enum value 'perfect'"),
        (
            "[refine.upstream]\nbase_url = 'http://user:secret@host/v1'",
            "refine.upstream.base_url: expected str matching",
        ),
        ("[draft.upstream]\nidle_timeout_s = 0", "draft.upstream.idle_timeout_s: expected float > 0.0, got 0"),
        ("[server", "not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_by_key(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        load(write(tmp_path, toml), {})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DRAFTGATE_SERVER__PORT", "many", "server.port: expected int, got 'many'"),
        ("DRAFTGATE_SERVER__PORT", "-1", "server.port: expected int >= 0, got '-1'"),
        ("DRAFTGATE_SERVER__PROT", "1", "server.prot: no such setting, expected one of: host"),
        ("DRAFTGATE_X__Y", "1", "x: no such setting, expected one of: server"),
        ("DRAFTGATE_SERVER__PORT__X", "1", "server.port.x: no such setting"),
        ("DRAFTGATE_POLICY__COMPLEXITY_THRESHOLD", "2", "policy.complexity_threshold: expected"),
        ("DRAFTGATE_POLICY__COMPLEXITY_THRESHOLD", "nan", "policy.complexity_threshold"),
    ],
)
def test_a_bad_variable_is_refused_by_name_and_key(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}: {re.escape(message)}"):
        load(None, {name: value})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^nowhere\.toml: can't be read"):
        load("nowhere.toml", {})
