"""What an upstream says to clients tells nothing of where it is."""

import pytest

from engine_core.upstream.errors import UpstreamRejected, cleaned, of_status


@pytest.mark.parametrize(
    "said",
    [
        "http://vllm.internal:8000/v1/chat",
        "HTTPS://10.0.0.7/x?key=1",
        "unix:///run/vllm.sock",
        "10.0.0.7",
        "10.0.0.7:8000",
        "[::1]:8000",
        "[fd00::7]",
        "vllm-0.vllm.svc.cluster.local:8000",
        "localhost:8000",
        "/usr/lib/python3/site-packages/vllm/engine.py",
        "~/models/secret",
        "C:\\models\\secret",
        "<vllm.Engine object at 0x7f3a2b1c4d50>",
        "<Engine at 0x7f3a2b1c4d50>",
        "0x7f3a2b1c4d50",
    ],
)
def test_addresses_paths_and_reprs_are_left_out(said: str) -> None:
    assert cleaned(f"refused by {said}, sorry") == "refused by [...], sorry"


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 4096 tokens, you asked for 5000.",
        "max_tokens:1024 is too many",
        "expected role user/assistant, got 'boss' at 12:5",
        "messages.0.content: field required",
        '[{"loc":["body","n"]}]',
        "temperature must be in [0, 2], got 2.5",
        "version 1.2.3",
    ],
)
def test_what_helps_stays(said: str) -> None:
    assert cleaned(said) == said


def test_a_refusal_without_words_names_no_url() -> None:
    told = of_status(400, "", "http://10.0.0.7:8000/v1/chat/completions", 1.0, "KEY")
    assert isinstance(told, UpstreamRejected)
    assert str(told) == "the model's server refused this request with status 400"
