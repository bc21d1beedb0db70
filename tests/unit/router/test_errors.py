from collections.abc import Iterator

import pytest

from ar_engine.api import RefineError, RefineOverloaded, RefineUnavailable
from diffusion_engine.api import DraftError, DraftFailed, DraftRejected
from router.errors import TABLE, BadRequest, RouterError, describe, wire_of


def family(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for child in kind.__subclasses__():
        yield from family(child)


def ours(kind: type[Exception]) -> list[type[Exception]]:
    return [k for k in family(kind) if not k.__module__.startswith("tests")]


@pytest.mark.parametrize("kind", [*ours(DraftError), *ours(RefineError), *ours(RouterError)[1:]])
def test_every_error_of_the_house_is_in_the_table(kind: type[Exception]) -> None:
    assert kind in TABLE


def test_the_tables_statuses_are_errors() -> None:
    assert {wire.status // 100 for wire in TABLE.values()} == {4, 5}


def test_rejections_are_told_in_the_engines_words() -> None:
    wire, body, _ = describe(DraftRejected("expected at most 10 tokens, got 11"))
    assert wire.status == 400
    assert body.error.message == "expected at most 10 tokens, got 11"


def test_the_field_is_named() -> None:
    _, body, _ = describe(BadRequest("bad", param="stop"))
    assert body.error.param == "stop"


@pytest.mark.parametrize("error", [DraftFailed("/secret"), RuntimeError("/secret")])
def test_breakage_is_logged_and_not_told(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    wire, body, _ = describe(error)
    assert wire.status == 500
    assert "secret" not in body.error.message
    assert "secret" in caplog.text


@pytest.mark.parametrize(("wait_s", "header"), [(0.01, "1"), (3.4, "3"), (9999.0, "60")])
def test_retry_after_is_whole_seconds_within_a_minute(wait_s: float, header: str) -> None:
    _, _, headers = describe(RefineOverloaded("full", wait_s))
    assert headers["retry-after"] == header


def test_an_upstream_that_is_away_is_no_breakage_and_says_when_to_retry() -> None:
    wire, body, headers = describe(RefineUnavailable("http://10.0.0.7:8000/v1 is left alone", 4.6))
    assert (wire.status, headers["retry-after"], body.error.code) == (503, "5", "upstream_unavailable")
    assert "10.0.0.7" not in body.error.message


def test_every_busy_or_starting_error_says_when_to_retry() -> None:
    busy = {kind for kind, wire in TABLE.items() if wire.status in {429, 503}}
    assert busy
    assert all(TABLE[kind].retry_after_s for kind in busy)


def test_a_subclass_without_an_entry_takes_its_parents() -> None:
    class Special(DraftRejected):
        pass

    assert wire_of(Special("x")).status == 400
