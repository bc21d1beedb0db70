"""What the OpenAPI page declares is what is served: no failure of the server's, no undeclared status or shape, whatever is sent."""

import subprocess
import sys
import tempfile

import pytest

from tests.conftest import Gateway

QUICK, FULL = 25, 500  # examples of each operation


def run(gateway: Gateway, examples: int) -> subprocess.CompletedProcess[str]:
    options = {
        "--max-examples": examples,
        "--checks": "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
        "response_headers_conformance",
        "--seed": 7,
        "--generation-database": "none",
        "--phases": "examples,coverage,fuzzing",
    }
    arguments = [str(part) for name, value in options.items() for part in (name, value)]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/schema/openapi.json", *arguments]
    with tempfile.TemporaryDirectory() as folder:  # it leaves a cache where it runs
        return subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=folder)


@pytest.mark.timeout(280)
def test_the_page_is_true(gateway: Gateway) -> None:
    result = run(gateway, QUICK)
    assert result.returncode == 0, result.stdout[-8000:]


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_the_page_is_true_for_many_examples(gateway: Gateway) -> None:
    result = run(gateway, FULL)
    assert result.returncode == 0, result.stdout[-8000:]
