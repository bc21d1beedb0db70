"""Two gateways on one Redis share answers and counts; without it they go on alone."""

from collections.abc import Callable

import httpx
import pytest

from router.settings import RedisSettings, Settings
from tests.conftest import Gateway, RedisServer, eventually

pytestmark = pytest.mark.redis
Make = Callable[[Gateway], Gateway]


def ask(gateway: Gateway, text: str) -> httpx.Response:
    body = {"model": "draftgate", "messages": [{"role": "user", "content": text}]}
    return gateway.http.post("/v1/chat/completions", json=body)


def redis_state(gateway: Gateway) -> str:
    return gateway.http.get("/health/ready").json()["redis"]


def test_gateways_share_answers(make_gateway: Make, redis_server: RedisServer) -> None:
    settings = Settings(redis=RedisSettings(url=redis_server.url, timeout_s=5.0))
    one, two = make_gateway(Gateway(settings)), make_gateway(Gateway(settings))
    assert ask(one, "hello").headers["x-draftgate-route"] == "draft"
    assert ask(two, "hello").headers["x-draftgate-route"] == "cache"
    assert redis_state(one) == "ok"


def test_killing_redis_in_mid_traffic_fails_no_request(make_gateway: Make, redis_server: RedisServer) -> None:
    settings = Settings(redis=RedisSettings(url=redis_server.url, retry_after_s=0.1))
    gateway = make_gateway(Gateway(settings))
    statuses = [ask(gateway, f"before {i}").status_code for i in range(10)]
    redis_server.kill()
    statuses += [ask(gateway, f"after {i}").status_code for i in range(20)]
    assert statuses == [200] * 30
    assert redis_state(gateway) == "down"
    assert ask(gateway, "after 0").headers["x-draftgate-route"] == "cache"
    assert "draftgate_redis_failures_total" in gateway.http.get("/metrics").text


def test_redis_is_used_again_when_it_is_back(make_gateway: Make, redis_server: RedisServer) -> None:
    settings = Settings(redis=RedisSettings(url=redis_server.url, retry_after_s=0.1, timeout_s=1.0))
    gateway = make_gateway(Gateway(settings))
    redis_server.kill()
    for i in range(10):
        ask(gateway, f"gone {i}")
    assert redis_state(gateway) == "down"
    redis_server.start()
    eventually(lambda: redis_state(gateway) == "ok")
    other = make_gateway(Gateway(settings))
    assert ask(gateway, "back").headers["x-draftgate-route"] == "draft"
    assert ask(other, "back").headers["x-draftgate-route"] == "cache"
