"""Files of tenants: on the disk, and over HTTP."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar import Litestar, Request, Response
from litestar.di import Provide
from litestar.testing import TestClient

from router.api.files import file_routes
from router.errors import ErrorBody, NotFound, describe
from router.serving.messages import Caller
from router.settings import BatchSettings
from router.state.files import FileStore, tidy_name

DAY_S = 86_400.0
LIMIT = 3_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "files", 30 * DAY_S)


@pytest.fixture
def http(store: FileStore) -> Iterator[TestClient[Litestar]]:
    """The file routes alone; who asks says so in a header."""

    def respond(_: object, error: Exception) -> Response[ErrorBody]:
        wire, body, headers = describe(error)
        return Response(body, status_code=wire.status, headers=headers)

    def caller(request: Request[Any, Any, Any]) -> Caller:
        return Caller(tenant=request.headers.get("tenant", ""))

    settings = BatchSettings(max_file_bytes=LIMIT)
    app = Litestar(
        [file_routes(settings)],
        dependencies={
            "files": Provide(lambda: store, sync_to_thread=False),
            "batch": Provide(lambda: settings, sync_to_thread=False),
            "caller": Provide(caller, sync_to_thread=False),
        },
        exception_handlers={Exception: respond},
        request_max_body_size=1_000,
        logging_config=None,
    )
    with TestClient(app) as client:
        yield client


def put(
    http: TestClient[Litestar], content: bytes = b"{}\n", tenant: str = "", name: str = "in.jsonl"
) -> httpx.Response:
    form = {"file": (name, content)}
    return http.post("/v1/files", data={"purpose": "batch"}, files=form, headers={"tenant": tenant})


def test_a_file_comes_back_as_it_was_sent(http: TestClient[Litestar], tmp_path: Path) -> None:
    content = os.urandom(LIMIT)  # far beyond what other bodies may have
    sent = put(http, content)
    assert sent.status_code == 200, sent.text
    file = sent.json()
    assert re.fullmatch("file-[0-9a-f]{32}", file["id"])
    assert file | {"id": "", "created_at": 0, "expires_at": 0} == {
        "id": "",
        "object": "file",
        "bytes": LIMIT,
        "created_at": 0,
        "expires_at": 0,
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "processed",
    }
    assert file["expires_at"] - file["created_at"] == 30 * DAY_S
    assert http.get(f"/v1/files/{file['id']}").json() == file
    back = http.get(f"/v1/files/{file['id']}/content")
    assert back.content == content
    assert back.headers["content-disposition"] == 'attachment; filename="in.jsonl"'
    private = [path.stat().st_mode & 0o077 for path in tmp_path.rglob("*") if path.is_file()]
    assert private == [0, 0]  # content and card, and nothing is left of the upload


def test_a_deleted_file_is_gone(http: TestClient[Litestar], tmp_path: Path) -> None:
    url = f"/v1/files/{put(http).json()['id']}"
    assert http.delete(url).json() == {"id": url.rpartition("/")[2], "object": "file", "deleted": True}
    assert [http.get(url).status_code, http.get(f"{url}/content").status_code, http.delete(url).status_code] == [
        404
    ] * 3
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_tenants_do_not_see_each_others_files(http: TestClient[Litestar]) -> None:
    mine = put(http, tenant="a").json()["id"]
    for tenant in ("b", "", "a/../a", "A"):
        headers = {"tenant": tenant}
        assert http.get("/v1/files", headers=headers).json()["data"] == []
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            assert http.request(method, f"/v1/files/{mine}{path}", headers=headers).status_code == 404
    assert http.get(f"/v1/files/{mine}", headers={"tenant": "a"}).status_code == 200


def test_pages_are_walked_in_both_orders(http: TestClient[Litestar]) -> None:
    ids = [put(http, name=f"{n}").json()["id"] for n in range(5)]
    for order, expected in (("asc", ids), ("desc", ids[::-1])):
        seen: list[str] = []
        after = ""
        more = True
        while more:
            page = http.get("/v1/files", params={"limit": 2, "order": order, "after": after}).json()
            assert page["object"] == "list"
            assert [page["first_id"], page["last_id"]] == [page["data"][0]["id"], page["data"][-1]["id"]]
            seen += [file["id"] for file in page["data"]]
            after, more = page["last_id"], page["has_more"]
        assert seen == expected
    assert http.get("/v1/files", params={"purpose": "batch_output"}).json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "limit=x", "order=up"])
def test_a_wrong_page_is_refused(http: TestClient[Litestar], query: str) -> None:
    response = http.get(f"/v1/files?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == query.partition("=")[0]


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/abs/olute", "..\\up.jsonl", 'qu"ote', "new\r\nline: x", "\u202egnp.exe", "x" * 5000, "."],
)
def test_a_clients_name_never_touches_a_path(name: str, store: FileStore, tmp_path: Path) -> None:
    content = tmp_path / "new"
    content.write_bytes(b"x")
    file = store.add("t", content, name, "batch")
    assert store.path("t", file.id).parent.parent == tmp_path / "files"
    assert not re.search(r"[/\\\r\n\u202e]", file.filename)
    assert 0 < len(file.filename) <= 255


def test_ids_that_are_paths_find_nothing(store: FileStore, tmp_path: Path) -> None:
    (tmp_path / "files" / "x.json").parent.mkdir()
    (tmp_path / "files" / "x.json").write_bytes(b"{}")
    for file_id in ("../x", "file-../x", "", ".", "file-" + "0" * 33, "file-" + "0" * 31 + "/"):
        with pytest.raises(NotFound):
            store.get("", file_id)


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--b\r\n" + head.encode() + b"\r\n\r\n" + body + b"\r\n" for head, body in parts) + end


PURPOSE = ('content-disposition: form-data; name="purpose"', b"batch")
FILE = ('content-disposition: form-data; name="file"; filename="f"', b"{}")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"no form at all", None),
        (form(PURPOSE), "file"),
        (form(FILE), "purpose"),
        (form((PURPOSE[0], b"fine-tune"), FILE), "purpose"),
        (form((PURPOSE[0], b"\xff\xfe"), FILE), "purpose"),
        (form((PURPOSE[0], b"batch" * 10_000), FILE), "purpose"),
        (form(PURPOSE, PURPOSE, FILE), "purpose"),
        (form(PURPOSE, FILE, FILE), "file"),
        (form(PURPOSE, FILE, ('content-disposition: form-data; name="expires_after[anchor]"', b"x")), "expires_after"),
        (form(PURPOSE, FILE, ('content-disposition: form-data; name="other"', b"x")), None),
        (form(PURPOSE, FILE, ("content-disposition: form-data", b"x")), None),
        (form(PURPOSE, FILE, ("content-type: text/plain; charset=none-such", b"x")), None),
        (form(PURPOSE, FILE, *[('content-disposition: form-data; name="purpose2"', b"x")] * 20), None),
        (form(PURPOSE, FILE, end=b""), None),
        (form(PURPOSE, FILE)[:-20], None),
        (form(PURPOSE, ("x" * 10_000, b"")), None),
    ],
)
def test_a_wrong_form_is_refused_and_leaves_nothing(
    http: TestClient[Litestar], tmp_path: Path, body: bytes, param: str | None
) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = http.post("/v1/files", content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "multipart/form-data; boundary=", ""])
def test_what_is_no_form_is_refused(http: TestClient[Litestar], kind: str) -> None:
    assert http.post("/v1/files", content=form(PURPOSE, FILE), headers={"content-type": kind}).status_code == 400


def test_a_file_may_be_so_large_and_no_larger(http: TestClient[Litestar], tmp_path: Path) -> None:
    assert put(http, b"x" * LIMIT).status_code == 200
    before = len(list(tmp_path.rglob("*")))
    assert put(http, b"x" * (LIMIT + 1)).status_code == 413
    assert put(http, b"x" * (2 * LIMIT)).status_code == 413
    assert len(list(tmp_path.rglob("*"))) == before


def test_a_full_disk_is_told_as_busy(http: TestClient[Litestar], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    response = put(http)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "60"


def test_old_files_and_abandoned_uploads_are_swept_away(tmp_path: Path) -> None:
    clock = Clock()
    store = FileStore(tmp_path / "files", 30 * DAY_S, clock)

    def add(age_days: float) -> str:
        content = tmp_path / "new"
        content.write_bytes(b"x")
        file = store.add("t", content, "f", "batch")
        at = clock.now - age_days * DAY_S
        for path in (tmp_path / "files").glob(f"*/{file.id}*"):
            os.utime(path, (at, at))
        return file.id

    old, young = add(31), add(29)
    upload = store.upload()
    left = next((tmp_path / "files" / "uploads").iterdir())
    os.utime(left, (clock.now, clock.now - 2 * DAY_S))
    store.sweep()
    assert [file.id for file in store.page("t")[0]] == [young]
    with pytest.raises(NotFound):
        store.get("t", old)
    assert not left.exists()
    upload.close()


@given(st.text(max_size=300))
def test_any_name_is_made_harmless(name: str) -> None:
    shown = tidy_name(name)
    assert 0 < len(shown) <= 255
    assert not re.search(r"[/\\\x00-\x1f\x7f]", shown)
    shown.encode()
