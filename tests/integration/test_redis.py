"""Two gateways on one Redis share answers and counts; without it they go on alone."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import redis

from router.settings import RedisSettings, Settings
from router.state import flights
from tests.conftest import Gateway, RedisServer, eventually
from tests.fakes import HANG
from tests.raw_client import read_until, send

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


def test_equal_requests_to_two_gateways_are_worked_out_once(make_gateway: Make, redis_server: RedisServer) -> None:
    settings = Settings(redis=RedisSettings(url=redis_server.url, timeout_s=5.0))
    gateways = [make_gateway(Gateway(settings)) for _ in range(2)]
    go = threading.Event()
    for gateway in gateways:
        gateway.draft.enqueue([go, "the one answer"])
    with ThreadPoolExecutor(50) as clients:
        answers = [clients.submit(ask, gateways[i % 2], "hello") for i in range(50)]
        eventually(lambda: any(gateway.draft.requests for gateway in gateways))
        go.set()
    texts = {answer.result().json()["choices"][0]["message"]["content"] for answer in answers}
    routes = [answer.result().headers["x-draftgate-route"] for answer in answers]
    assert texts == {"the one answer"}
    assert sum(len(gateway.draft.requests) for gateway in gateways) == 1
    assert (routes.count("draft"), routes.count("cache")) == (1, 49)


def test_a_client_that_leaves_makes_room_for_the_next_gateway(make_gateway: Make, redis_server: RedisServer) -> None:
    settings = Settings(redis=RedisSettings(url=redis_server.url, timeout_s=5.0))
    one, two = make_gateway(Gateway(settings)), make_gateway(Gateway(settings))
    one.draft.enqueue(HANG)
    one.http.timeout = httpx.Timeout(1.0)
    with ThreadPoolExecutor(2) as clients:
        leaving = clients.submit(ask, one, "hello")
        eventually(lambda: bool(one.draft.requests))
        following = clients.submit(ask, two, "hello")
        with pytest.raises(httpx.ReadTimeout):
            leaving.result()
        assert following.result().headers["x-draftgate-route"] == "draft"
    assert one.draft.cancelled == 1


def test_a_client_that_leaves_a_stream_makes_room_for_the_next_gateway(
    make_gateway: Make, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "LEASE_S", 3600)  # so that it doesn't end by itself
    settings = Settings(redis=RedisSettings(url=redis_server.url, timeout_s=5.0))
    one, two = make_gateway(Gateway(settings)), make_gateway(Gateway(settings))
    one.refine.enqueue(["some", HANG])
    client = send(one, messages=[{"role": "user", "content": "hard"}], stream=True)
    read_until(client, b"some")
    with redis.Redis.from_url(redis_server.url) as known:
        assert len(list(known.scan_iter("draftgate:flight:*"))) == 1
        client.close()
        eventually(lambda: not list(known.scan_iter("draftgate:flight:*")))
    assert one.refine.cancelled == 1
    assert ask(two, "hard").headers["x-draftgate-route"] == "direct"


def test_a_deletion_reaches_every_gateway(make_gateway: Make, redis_server: RedisServer) -> None:
    settings = Settings(redis=RedisSettings(url=redis_server.url, timeout_s=5.0))
    one, two = make_gateway(Gateway(settings)), make_gateway(Gateway(settings))
    made, served = ask(one, "hello"), ask(two, "hello")
    assert served.headers["x-draftgate-route"] == "cache"
    deleted = one.http.delete(f"/v1/requests/{made.headers['x-draftgate-request-id']}")
    assert deleted.json()["deleted"] is True
    assert ask(one, "hello").headers["x-draftgate-route"] == "draft"
    made = ask(one, "again")
    assert ask(two, "again").headers["x-draftgate-route"] == "cache"
    one.http.delete(f"/v1/requests/{made.headers['x-draftgate-request-id']}").raise_for_status()
    eventually(lambda: ask(two, "again").headers["x-draftgate-route"] == "draft")
