"""/v1/files: what batches are made of and what they leave. An upload goes to the disk as it arrives."""

import re
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from litestar import Request, Router, delete, get, post
from litestar.di import NamedDependency
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.openapi.spec import (
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    RequestBody,
    Schema,
)
from litestar.params import FromPath, FromQuery, QueryParameter, SkipValidation
from litestar.response import File
from msgspec import Struct
from multipart import (  # pyright: ignore[reportMissingTypeStubs]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
)

from router.api import document
from router.api.access import DENIED
from router.errors import BadRequest, UnknownParameter
from router.serving.messages import Caller
from router.settings import BatchSettings
from router.state.files import FileObject, FileStore, Order, Upload

FORM_BYTES = 65_536  # of a form besides the file in it
MOST_PARTS = 8  # of a form
MOST_FIELD_BYTES = 1_024  # of a part that isn't the file
BOUNDARY = re.compile(r'multipart/form-data\s*;.*?boundary=(?:"([^"]+)"|([^\s;"]+))', re.IGNORECASE)
NO_FORM = "expected a form (multipart/form-data) with purpose and file"

Files = NamedDependency[SkipValidation[FileStore]]
Who = NamedDependency[SkipValidation[Caller]]


class FileList(Struct, frozen=True, kw_only=True):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None  # what `after` asks for to get the next page
    has_more: bool


class FileDeleted(Struct, frozen=True, kw_only=True):
    """That a file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


@dataclass
class UploadOperation(Operation):
    """Adds the form to the OpenAPI document: the handler reads it itself."""

    def __post_init__(self) -> None:
        form = Schema(
            type=OpenAPIType.OBJECT,
            properties={
                "purpose": Schema(type=OpenAPIType.STRING, enum=["batch"]),
                "file": Schema(
                    type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY, description="JSON lines, a request in each."
                ),
            },
            required=["purpose", "file"],
            additional_properties=False,
        )
        self.request_body = RequestBody({"multipart/form-data": OpenAPIMediaType(schema=form)}, required=True)


@dataclass
class ContentOperation(Operation):
    """Says what comes in place of what Litestar believes of files."""

    def __post_init__(self) -> None:
        content = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
        media = {"application/octet-stream": OpenAPIMediaType(schema=content)}
        self.responses = {**(self.responses or {}), "200": OpenAPIResponse("What is in the file.", content=media)}


@post(
    "/v1/files",
    status_code=200,
    operation_class=UploadOperation,
    responses=document.errors(400, 408, 413) | DENIED,
)
async def upload_file(
    request: Request[Any, Any, Any], files: Files, caller: Who, batch: NamedDependency[SkipValidation[BatchSettings]]
) -> FileObject:
    """Take a file in."""
    with closing(files.upload()) as upload:
        name = await _receive(request, upload, batch.max_file_bytes)
        return await upload.keep(files, caller.tenant, name)


@get("/v1/files", responses=document.errors(400) | DENIED, sync_to_thread=True)
def list_files(
    files: Files,
    caller: Who,
    after: Annotated[str, QueryParameter(description="The last id of the page before.")] = "",
    limit: Annotated[int, QueryParameter(ge=1, le=10_000)] = 10_000,
    order: Annotated[Order, QueryParameter(description="By age.")] = "desc",
    purpose: FromQuery[str | None] = None,
) -> FileList:
    """List the tenant's files."""
    data, more = files.page(caller.tenant, after=after, limit=limit, order=order, purpose=purpose)
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return FileList(data=data, first_id=first, last_id=last, has_more=more)


@get("/v1/files/{file_id:str}", responses=document.errors(404) | DENIED, sync_to_thread=True)
def get_file(file_id: FromPath[str], files: Files, caller: Who) -> FileObject:
    """Show what is known of a file."""
    return files.get(caller.tenant, file_id)


@get(
    "/v1/files/{file_id:str}/content",
    operation_class=ContentOperation,
    responses=document.errors(404) | DENIED,
    sync_to_thread=True,
)
def get_content(file_id: FromPath[str], files: Files, caller: Who) -> File:
    """Hand out what is in a file."""
    file, path = files.get(caller.tenant, file_id), files.path(caller.tenant, file_id)
    return File(path, filename=file.filename, media_type="application/octet-stream")


@delete("/v1/files/{file_id:str}", status_code=200, responses=document.errors(404) | DENIED, sync_to_thread=True)
def delete_file(file_id: FromPath[str], files: Files, caller: Who) -> FileDeleted:
    """Delete a file; batches that were made of it go on."""
    files.delete(caller.tenant, file_id)
    return FileDeleted(id=file_id)


def file_routes(settings: BatchSettings) -> Router:
    """All of the above. Their bodies may be as long as a file."""
    return Router(
        "/",
        route_handlers=[upload_file, list_files, get_file, get_content, delete_file],
        request_max_body_size=settings.max_file_bytes + FORM_BYTES,
    )


async def _receive(request: Request[Any, Any, Any], upload: Upload, max_bytes: int) -> str:
    """Read a form: its file into `upload`, the rest is checked. Returns the file's name."""
    boundary = BOUNDARY.match(request.headers.get("content-type", ""))
    if boundary is None:
        raise BadRequest(f"{NO_FORM}, got something else")
    parser = PushMultipartParser(boundary[1] or boundary[2], max_segment_count=MOST_PARTS, header_charset="utf8")
    form = _Form(upload, max_bytes)
    try:
        async for chunk in request.stream():
            for event in parser.parse(chunk) if chunk else ():
                await form.take(event)
        parser.close()
    except MultipartError:
        raise BadRequest(f"{NO_FORM}, got a broken one") from None
    return form.checked()


class _Form:
    """A form as it arrives."""

    def __init__(self, upload: Upload, max_bytes: int) -> None:
        self._upload = upload
        self._max_bytes = max_bytes
        self._name: str | None = None  # of the file
        self._purpose: bytearray | None = None
        self._part = ""  # that is arriving
        self._size = 0  # of the file

    async def take(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        """Take what the parser found: the head of a part, some of it, or its end."""
        if isinstance(event, MultipartSegment):
            self._begin(event)
        elif event is None:
            self._part = ""
        elif self._part == "file":
            self._size += len(event)
            if self._size > self._max_bytes:
                raise RequestEntityTooLarge
            await self._upload.write(bytes(event))
        elif self._purpose is not None and len(self._purpose) < MOST_FIELD_BYTES:
            self._purpose += event[:MOST_FIELD_BYTES]

    def _begin(self, head: MultipartSegment) -> None:
        self._part = head.name or ""
        if head.name == "file":
            if self._name is not None:
                raise BadRequest("expected one file, got several", param="file")
            self._name = head.filename or "file"
        elif head.name == "purpose":
            if self._purpose is not None:
                raise BadRequest("expected one purpose, got several", param="purpose")
            self._purpose = bytearray()
        elif (head.name or "").startswith("expires_after"):
            raise BadRequest("expires_after is not supported here; leave it out", param="expires_after")
        else:
            raise UnknownParameter("Unknown parameter in the form.", param=None)

    def checked(self) -> str:
        """The file's name, if the form was right."""
        if self._name is None:
            raise BadRequest("Missing required parameter: 'file'.", param="file")
        if self._purpose is None:
            raise BadRequest("Missing required parameter: 'purpose'.", param="purpose")
        if bytes(self._purpose) != b"batch":
            raise BadRequest("expected the purpose batch, got another", param="purpose")
        return self._name
