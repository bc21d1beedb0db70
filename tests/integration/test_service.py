"""Health, metrics, the OpenAPI document, starting and stopping."""

import threading
from collections.abc import Callable

import httpx
import msgspec

from router.api.schemas.answers import ChatCompletion
from router.api.schemas.chat import ChatRequest
from tests.conftest import HANG_S, Gateway, eventually

Make = Callable[[Gateway], Gateway]


def ask(gateway: Gateway, text: str, **fields: object) -> httpx.Response:
    body = {"model": "draftgate", "messages": [{"role": "user", "content": text}]} | fields
    return gateway.http.post("/v1/chat/completions", json=body)


def test_live_answers_while_the_engines_load(make_gateway: Make) -> None:
    gateway = Gateway()
    gateway.draft.state = gateway.refine.state = "loading"
    make_gateway(gateway)
    assert gateway.http.get("/health/live").json() == {"status": "ok"}
    response = gateway.http.get("/health/ready")
    assert response.status_code == 503
    assert "retry-after" in response.headers
    assert response.json()["draft"]["state"] == "loading"
    gateway.draft.state = "ready"
    assert gateway.http.get("/health/ready").status_code == 503
    gateway.refine.state = "ready"
    response = gateway.http.get("/health/ready")
    assert response.status_code == 200
    assert response.json()["status"] == "ready"
    assert response.json()["redis"] == "embedded"


def test_a_failed_start_leaves_the_gateway_alive_and_not_ready(make_gateway: Make) -> None:
    gateway = Gateway()
    gateway.draft.start_error = RuntimeError("/secret/weights")
    make_gateway(gateway)
    response = gateway.http.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["draft"]["state"] == "failed"
    assert "secret" not in response.text
    assert ask(gateway, "hello").headers["x-draftgate-reason"] == "draft_unavailable"


def test_metrics_count_requests_by_route_and_errors_by_code(gateway: Gateway) -> None:
    ask(gateway, "hello")
    ask(gateway, "hello")
    ask(gateway, "hard")
    ask(gateway, "hello", n=0)
    response = gateway.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    for line in (
        'draftgate_requests_total{reason="accepted",route="draft",status="200"} 1.0',
        'draftgate_requests_total{reason="hit",route="cache",status="200"} 1.0',
        'draftgate_requests_total{reason="complexity",route="direct",status="200"} 1.0',
        'draftgate_request_seconds_count{route="direct"} 1.0',
        'draftgate_errors_total{code="invalid_value",status="400"} 1.0',
        'draftgate_engine_ready{engine="draft"} 1.0',
        'draftgate_tokens_total{kind="completion"} 6.0',
    ):
        assert line in response.text.splitlines()


def test_two_gateways_in_one_process_count_apart(make_gateway: Make) -> None:
    one, two = make_gateway(Gateway()), make_gateway(Gateway())
    ask(one, "hello")
    assert 'route="draft"' in one.http.get("/metrics").text
    assert 'route="draft"' not in two.http.get("/metrics").text


def test_the_openapi_document_names_every_field_of_the_wire(gateway: Gateway) -> None:
    document = gateway.http.get("/schema/openapi.json").json()
    operation = document["paths"]["/v1/chat/completions"]["post"]
    errors = {"400", "401", "403", "404", "408", "413", "422", "429", "500", "503", "504"}
    assert set(operation["responses"]) == {"200"} | errors
    assert set(operation["responses"]["200"]["content"]) == {
        "application/json",
        "text/event-stream",
    }
    for status in errors:
        schema = operation["responses"][status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    schemas = document["components"]["schemas"]
    for kind in (ChatRequest, ChatCompletion):
        names = {field.encode_name for field in msgspec.structs.fields(kind)}
        assert set(schemas[kind.__name__]["properties"]) == names
    assert set(schemas["ChatRequest"]["required"]) == {"model", "messages"}


def test_stopping_lets_running_requests_finish_and_closes_the_engines() -> None:
    gateway = Gateway()
    gateway.start()
    gate = threading.Event()
    gateway.draft.enqueue([gate, "late draft"])
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(ask(gateway, "hello")))
    asking.start()
    eventually(lambda: gateway.draft.running == 1)
    gateway.begin_stop()
    gate.set()
    gateway.stop()
    asking.join(HANG_S)
    assert answers[0].json()["choices"][0]["message"]["content"] == "late draft"
    assert gateway.draft.closed
    assert gateway.refine.closed
