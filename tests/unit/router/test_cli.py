import sys
from types import ModuleType

import pytest

from router import cli, server


def test_a_command_gets_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    class Stub(ModuleType):
        @staticmethod
        def main(argv: list[str]) -> int:
            seen.append(argv)
            return 7

    monkeypatch.setitem(sys.modules, "stub_command", Stub("stub_command"))
    monkeypatch.setitem(cli.COMMANDS, "stub", ("stub_command", "for the test"))
    assert cli.main(["stub", "--config", "x.toml"]) == 7
    assert seen == [["--config", "x.toml"]]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("draftgate ")


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["fly"])
    assert exit_.value.code == 2
    assert "serve" in capsys.readouterr().err


def test_bad_settings_end_serve_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRAFTGATE_SERVER__PORT", "many")
    assert server.main([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["draftgate: DRAFTGATE_SERVER__PORT: server.port: expected int, got 'many'"]
