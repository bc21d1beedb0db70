"""Who is let in: on every route, while keys come and go, and while Redis is away."""

import asyncio
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
from litestar.routes import HTTPRoute

from router import server
from router.app import Parts, create_app
from router.serving.messages import Limits
from router.settings import KeySettings, RedisSettings, ServerSettings, Settings, SettingsError
from router.state.keys import Key, make_key, shelf_of
from router.state.store import Store
from tests.conftest import Gateway, RedisServer, eventually
from tests.fakes import FakeComplexity, FakeDraftEngine, FakeQuality, FakeRefineEngine

Make = Callable[[Gateway], Gateway]
SECRET = "s3cret-of-the-environment"


def keep(settings: Settings, key: Key) -> None:
    async def put() -> None:
        store = Store(settings.redis)
        await shelf_of(settings, store).put(key)
        await store.close()

    asyncio.run(put())


def ask(gateway: Gateway, key: str = "", text: str = "hello", model: str = "draftgate") -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return gateway.http.post("/v1/chat/completions", json=body, headers=headers)


def routes() -> list[tuple[str, str]]:
    """Every method and path that is served."""
    parts = Parts(
        draft=FakeDraftEngine(), refine=FakeRefineEngine(), complexity=FakeComplexity(), quality=FakeQuality()
    )
    app = create_app(Settings(), parts, {})
    return sorted(
        (method, re.sub(r"\{[^}]*\}", "x", route.path))
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for method in route.methods
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(server=ServerSettings(data_dir=str(tmp_path)), keys=KeySettings(refresh_s=0.05))


@pytest.fixture
def locked(make_gateway: Make) -> Gateway:
    """A gateway that needs a key."""
    return make_gateway(Gateway(environ={"DRAFTGATE_API_KEY": SECRET}))


def test_every_route_but_health_needs_a_key(locked: Gateway) -> None:
    served = routes()
    assert ("POST", "/v1/chat/completions") in served
    assert ("GET", "/metrics") in served
    for method, path in served:
        for key in ("", "dg-unknown"):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            response = locked.http.request(method, path, headers=headers)
            if path.startswith("/health/"):
                assert response.status_code in {200, 204}, (method, path)
                continue
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"


def test_no_route_says_401_to_a_known_key(locked: Gateway) -> None:
    for method, path in routes():
        response = locked.http.request(method, path, headers={"x-api-key": SECRET})
        assert response.status_code not in {401, 403, 500}, (method, path)


def test_a_refused_request_is_not_read(locked: Gateway) -> None:
    response = locked.http.post("/v1/chat/completions", content=b"{")
    assert response.status_code == 401
    assert locked.draft.requests == []


def test_the_document_says_how_to_bring_a_key(locked: Gateway) -> None:
    document = locked.http.get("/schema/openapi.json", headers={"x-api-key": SECRET}).json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "api_key"}
    assert document["security"] == [{"bearer": []}, {"api_key": []}, {}]


def test_without_keys_only_this_machine_is_served(gateway: Gateway) -> None:
    assert ask(gateway).status_code == 200
    for method, path in routes():
        response = gateway.http.request(method, path, headers={"host": "evil.example"})
        if path.startswith("/health/"):
            assert response.status_code in {200, 204}
        else:
            assert response.status_code == 403, (method, path)
            assert response.json()["error"]["code"] == "forbidden"


def test_no_answer_lets_pages_of_elsewhere_read_it(gateway: Gateway) -> None:
    for origin in ("https://evil.example", "http://localhost:3000"):
        headers = {"origin": origin, "access-control-request-method": "POST"}
        for method, path in routes():
            answered = gateway.http.request(method, path, headers=headers).headers
            assert not [name for name in answered if name.startswith("access-control-")]


def test_keys_come_and_go_while_it_serves(make_gateway: Make, settings: Settings) -> None:
    gateway = make_gateway(Gateway(settings))
    assert ask(gateway).status_code == 200
    token, key = make_key("acme", (), Limits())
    keep(settings, key)
    eventually(lambda: ask(gateway).status_code == 401)
    assert ask(gateway, token).status_code == 200
    keep(settings, msgspec.structs.replace(key, revoked_unix_s=1.0))
    eventually(lambda: ask(gateway, token).status_code == 401)
    assert ask(gateway).status_code == 401, "the door doesn't open again"


def test_a_key_sees_its_models_only(make_gateway: Make, settings: Settings) -> None:
    token, key = make_key("acme", ("draftgate-draft",), Limits())
    keep(settings, key)
    gateway = make_gateway(Gateway(settings))
    assert ask(gateway, token, model="draftgate-draft").status_code == 200
    refused, unknown = (ask(gateway, token, model=model) for model in ("draftgate", "gpt-4"))
    for response in (refused, unknown):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=token, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["draftgate-draft"]
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("draftgate")


def test_limits_reach_the_client_as_openai_sends_them(make_gateway: Make, settings: Settings) -> None:
    token, key = make_key("acme", (), Limits(requests_per_min=2, tokens_per_min=100_000))
    keep(settings, key)
    gateway = make_gateway(Gateway(settings))
    response = ask(gateway, token)
    assert response.headers["x-ratelimit-limit-requests"] == "2"
    assert response.headers["x-ratelimit-remaining-requests"] == "1"
    assert int(response.headers["x-ratelimit-remaining-tokens"]) < 100_000
    assert ask(gateway, token, "something else").status_code == 200
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=token, max_retries=0) as client,
        pytest.raises(openai.RateLimitError, match="Rate limit reached for requests") as caught,
    ):
        client.chat.completions.create(model="draftgate", messages=[{"role": "user", "content": "hello"}])
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_unlimited_keys_get_no_headers(locked: Gateway) -> None:
    assert not [name for name in ask(locked, SECRET).headers if name.startswith("x-ratelimit-")]


def test_what_was_not_used_is_given_back(make_gateway: Make, settings: Settings) -> None:
    token, key = make_key("acme", (), Limits(tokens_per_min=10_000, concurrency=1))
    keep(settings, key)
    gateway = make_gateway(Gateway(settings))
    for at in range(40):  # each reserves 256 tokens and uses a few; all of them together would not fit
        assert ask(gateway, token, f"question {at}").status_code == 200


def test_prompts_of_one_request_wait_for_each_other_within_the_keys_limits(
    make_gateway: Make, settings: Settings
) -> None:
    token, key = make_key("acme", (), Limits(concurrency=2, requests_per_min=10))
    keep(settings, key)
    gateway = make_gateway(Gateway(settings))

    def complete(count: int) -> httpx.Response:
        body = {"model": "draftgate", "prompt": [f"question {at}" for at in range(count)]}
        return gateway.http.post("/v1/completions", json=body, headers={"authorization": f"Bearer {token}"})

    assert "can never fit" in complete(11).json()["error"]["message"]
    assert len(complete(9).json()["choices"]) == 9  # the refused ones used up nothing
    assert complete(2).status_code == 429


def test_secrets_are_nowhere_logged(make_gateway: Make, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    token, key = make_key("acme", (), Limits(requests_per_min=1))
    keep(settings, key)
    with caplog.at_level(logging.DEBUG):
        gateway = make_gateway(Gateway(settings, environ={"DRAFTGATE_API_KEY": SECRET}))
        said = [ask(gateway, wrong).text for wrong in (token, token, SECRET, "dg-canary-unknown")]
    for text in (caplog.text, *said):
        for secret in (token, key.digest, SECRET, "canary"):
            assert secret not in text


@pytest.mark.redis
class TestRedis:
    @pytest.fixture
    def shared(self, redis_server: RedisServer) -> Settings:
        redis = RedisSettings(url=redis_server.url, timeout_s=1.0, retry_after_s=0.05)
        return Settings(redis=redis, keys=KeySettings(refresh_s=0.05))

    def test_known_keys_stay_good_while_it_is_gone(
        self, make_gateway: Make, redis_server: RedisServer, shared: Settings
    ) -> None:
        token, key = make_key("acme", (), Limits(requests_per_min=100))
        keep(shared, key)
        one, two = make_gateway(Gateway(shared)), make_gateway(Gateway(shared))
        redis_server.kill()
        for gateway in (one, two):
            assert [ask(gateway, token, f"{at}").status_code for at in range(10)] == [200] * 10
            assert ask(gateway).status_code == 401

    def test_a_revoked_key_is_refused_by_all(self, make_gateway: Make, shared: Settings) -> None:
        token, key = make_key("acme", (), Limits())
        keep(shared, key)
        gateways = [make_gateway(Gateway(shared)) for _ in range(2)]
        assert [ask(gateway, token).status_code for gateway in gateways] == [200, 200]
        keep(shared, msgspec.structs.replace(key, revoked_unix_s=1.0))
        for gateway in gateways:
            eventually(lambda gateway=gateway: ask(gateway, token).status_code == 401)

    def test_two_gateways_share_a_limit(self, make_gateway: Make, shared: Settings) -> None:
        token, key = make_key("acme", (), Limits(requests_per_min=5))
        keep(shared, key)
        gateways = [make_gateway(Gateway(shared)) for _ in range(2)]
        statuses = [ask(gateway, token, f"{at}").status_code for at in range(5) for gateway in gateways]
        assert statuses == [200] * 5 + [429] * 5

    def test_nobody_is_let_in_before_the_keys_are_read(
        self, make_gateway: Make, redis_server: RedisServer, shared: Settings
    ) -> None:
        redis_server.kill()
        gateway = make_gateway(Gateway(shared, environ={"DRAFTGATE_API_KEY": SECRET}))
        for response in (ask(gateway), ask(gateway, "dg-unknown"), gateway.http.get("/metrics")):
            assert response.status_code == 503
            assert 1 <= int(response.headers["retry-after"]) <= 60
        assert gateway.http.get("/health/live").status_code == 200
        assert ask(gateway, SECRET).status_code == 200
        redis_server.start()
        eventually(lambda: ask(gateway).status_code == 401)


class TestServe:
    @pytest.fixture(autouse=True)
    def _engines_are_not_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def started(*_: Any) -> int:
            raise AssertionError("it serves")

        monkeypatch.setattr(server, "serve", started)
        for name in ("DRAFTGATE_API_KEY", "DRAFTGATE_SERVER__HOST"):
            monkeypatch.delenv(name, raising=False)

    @pytest.fixture
    def config(self, tmp_path: Path) -> str:
        path = tmp_path / "draftgate.toml"
        path.write_text(f'server = {{host = "0.0.0.0", data_dir = "{tmp_path}"}}')
        return str(path)

    def test_other_machines_are_not_served_without_a_key(self, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert server.main(["--config", config]) == 2
        assert "server.host: 0.0.0.0" in capsys.readouterr().err

    def test_a_redis_that_can_not_be_addressed_is_told(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "draftgate.toml"
        path.write_text('redis = {url = "redis://user:s3cret@host:notaport"}')
        assert server.main(["--config", str(path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("draftgate: redis.url: expected")
        assert "s3cret" not in said

    def test_a_revoked_key_is_none(self, config: str, tmp_path: Path) -> None:
        _, key = make_key("acme", (), Limits())
        keep(Settings(server=ServerSettings(data_dir=str(tmp_path))), msgspec.structs.replace(key, revoked_unix_s=1.0))
        assert server.main(["--config", config]) == 2

    def test_a_kept_key_is_enough(self, config: str, tmp_path: Path) -> None:
        keep(Settings(server=ServerSettings(data_dir=str(tmp_path))), make_key("acme", (), Limits())[1])
        with pytest.raises(AssertionError, match="it serves"):
            server.main(["--config", config])

    def test_one_in_the_environment_is_enough(self, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DRAFTGATE_API_KEY", SECRET)
        with pytest.raises(AssertionError, match="it serves"):
            server.main(["--config", config])

    def test_a_broken_file_of_keys_ends_it(
        self, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "keys.json").write_text("{")
        assert server.main(["--config", config]) == 2
        assert "not keys" in capsys.readouterr().err

    def test_a_redis_that_is_away_does_not(self) -> None:
        away = RedisSettings(url="unix:///nowhere.sock")
        server.check(Settings(server=ServerSettings(host="0.0.0.0"), redis=away), {})

    def test_several_processes_need_a_redis(self) -> None:
        with pytest.raises(SettingsError, match=r"server\.workers: 2 processes need a redis\.url"):
            server.check(Settings(server=ServerSettings(workers=2)), {})
