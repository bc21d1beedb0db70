"""`draftgate batch --url`: a running gateway's files and batches, from outside."""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from io import BufferedRandom
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from router.batch_io import CHAT, COMPLETIONS, Halted, Output, Unusable, missing
from router.serving.batch_check import MOST_LINES
from router.state.batches import Batch

CHUNK_BYTES = 50_000_000  # of a batch's input; gateways take twice that unless told otherwise
LOOK_EVERY_S = 1.0
PATIENCE_S = 300.0  # with a gateway that can't be reached; its batches go on
TIMEOUT_S = 60.0  # for an answer of the gateway's
UNDER_WAY = ("validating", "in_progress", "finalizing")
DIGEST = "input_sha256"  # in a batch's metadata: which requests it is made of
MOST_SHOWN = 5  # errors of an input

T = TypeVar("T")


def answer(url: str, key: str | None, source: Path, output: Output) -> None:
    """Have all that is missing answered by the gateway at `url`.

    Raises:
        Halted: the gateway can't be reached, or refuses.
        Unusable: it says that the requests are wrong.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as http:
        gateway = _Gateway(http)
        for endpoint in (CHAT, COMPLETIONS):
            for chunk in _chunks(source, output, endpoint):
                with chunk:
                    _carry_out(gateway, endpoint, chunk, output)


def _chunks(source: Path, output: Output, endpoint: str) -> Iterator[BufferedRandom]:
    """The requests to an endpoint that have no answer, in files that make a batch each."""
    lines = (msgspec.json.encode(line) + b"\n" for line in missing(source, output) if line.url == endpoint)
    following = next(lines, None)
    while following is not None:
        chunk = tempfile.TemporaryFile()  # noqa: SIM115  closed by who gets it
        count = 0
        while following is not None and count < MOST_LINES and chunk.tell() < CHUNK_BYTES:
            chunk.write(following)
            count += 1
            following = next(lines, None)
        yield chunk


def _carry_out(gateway: "_Gateway", endpoint: str, chunk: BufferedRandom, output: Output) -> None:
    answered, failed, tokens = output.answered, output.failed, output.tokens
    batch = gateway.submit(endpoint, chunk)
    while batch.status in (*UNDER_WAY, "cancelling"):
        counts, usage = batch.request_counts, batch.usage
        written = tokens + (usage.output_tokens if usage else 0)
        output.show(answered + counts.completed, failed + counts.failed, written)
        time.sleep(LOOK_EVERY_S)
        batch = gateway.get(batch.id)
    if batch.status == "failed":
        errors = batch.errors.data if batch.errors else []
        words = "".join(f"\n  line {error.line}: {error.message}" for error in errors[:MOST_SHOWN])
        raise Unusable(f"the gateway refuses these requests, counted from the first that was unanswered:{words}")
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id:
            with tempfile.TemporaryFile() as results:
                gateway.download(file_id, results)
                for text in results:
                    output.add_text(text)
    if batch.status == "cancelled":
        raise Halted("The batch was cancelled at the gateway.")


class _Gateway:
    """What is asked of a gateway; again for a while where it can't be reached or is busy."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def submit(self, endpoint: str, chunk: BufferedRandom) -> Batch:
        """Have requests answered, unless the gateway has the same ones from a run that was broken off."""
        chunk.seek(0)
        digest = hashlib.file_digest(chunk, "sha256").hexdigest()

        def once() -> Batch:
            found = msgspec.convert(self._ask("GET", "/v1/batches", params={"limit": 100})["data"], list[Batch])
            for batch in found:
                good = batch.status == "completed" and not batch.request_counts.failed
                if (batch.metadata or {}).get(DIGEST) == digest and (good or batch.status in UNDER_WAY):
                    return batch
            chunk.seek(0)
            form = {"file": ("requests.jsonl", chunk)}
            file = self._ask("POST", "/v1/files", data={"purpose": "batch"}, files=form)
            wanted = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h"}
            made = self._ask("POST", "/v1/batches", json={**wanted, "metadata": {DIGEST: digest}})
            return msgspec.convert(made, Batch)

        return _patiently(once)

    def get(self, batch_id: str) -> Batch:
        """How far a batch is."""
        return msgspec.convert(_patiently(lambda: self._ask("GET", f"/v1/batches/{batch_id}")), Batch)

    def download(self, file_id: str, target: BufferedRandom) -> None:
        """Fetch a file."""

        def once() -> None:
            target.seek(0)
            target.truncate()
            with self._http.stream("GET", f"/v1/files/{file_id}/content") as response:
                _check(response)
                for data in response.iter_bytes():
                    target.write(data)
            target.seek(0)

        _patiently(once)

    def _ask(self, method: str, path: str, **how: Any) -> Any:
        response = self._http.request(method, path, **how)
        _check(response)
        return response.json()


class _Busy(Exception):
    def __init__(self, retry_after_s: float) -> None:
        super().__init__("it is busy")
        self.retry_after_s = retry_after_s


def _check(response: httpx.Response) -> None:
    if response.status_code in (429, 503):
        raise _Busy(float(response.headers.get("retry-after", 1.0)))
    if response.status_code != 200:
        try:
            words = msgspec.json.decode(response.read())["error"]["message"]
        except (msgspec.DecodeError, KeyError, TypeError):
            words = "it is no Draftgate gateway?"
        raise Halted(f"The gateway answers {response.status_code}: {words}")


def _patiently(once: Callable[[], T]) -> T:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return once()
        except (httpx.TransportError, _Busy) as error:
            if time.monotonic() > end:
                raise Halted(f"The gateway can't be asked: {error}.") from None
            time.sleep(error.retry_after_s if isinstance(error, _Busy) else LOOK_EVERY_S)
