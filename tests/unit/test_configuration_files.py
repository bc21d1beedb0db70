"""config.example.toml and deploy/compose.yaml say what router.settings understands."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from engine_core.upstream.settings import Upstream
from router.settings import PREFIX, Settings, load

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config.example.toml"
TOP: dict[str, Any] = {field.name: field.type for field in msgspec.structs.fields(Settings)}
SECTIONS = TOP | {"draft.upstream": Upstream, "refine.upstream": Upstream}


def test_the_example_is_the_defaults():
    assert load(str(EXAMPLE), {}) == Settings()


@pytest.mark.parametrize("section", SECTIONS)
def test_the_example_names_every_setting(section: str):
    _, text = re.split(rf"^\[{re.escape(section)}\].*$", EXAMPLE.read_text(), flags=re.MULTILINE)
    named = re.findall(r"^(?:# )?(\w+) = ", text.split("\n[")[0], flags=re.MULTILINE)
    assert named == [field.name for field in msgspec.structs.fields(SECTIONS[section]) if field.type is not Upstream]


def test_the_example_uncommented_is_valid_too(tmp_path: Path):
    path = tmp_path / "all.toml"
    path.write_text(re.sub(r"^# (\w+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE))
    assert load(str(path), {}).redis.url == "redis://127.0.0.1:6379/0"


def test_the_composed_gateway_is_configured_as_it_means_to_be():
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    environment: dict[str, str] = services["gateway"]["environment"]
    set_here = {name for name in environment if name.startswith(PREFIX) and "__" in name}  # others are ignored
    assert set(environment) - set_here == {Settings().keys.env}
    settings = load(None, environment)
    assert settings.server.host == "0.0.0.0"
    assert settings.redis.url == "redis://redis:6379/0"
    assert f"data:{settings.server.data_dir}" in services["gateway"]["volumes"]
    assert "redis" in services
    assert f":{settings.server.port}" in services["gateway"]["ports"][0]
    assert float(services["gateway"]["stop_grace_period"].removesuffix("s")) > settings.server.drain_timeout_s
