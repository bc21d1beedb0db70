"""/v1/batches: files of requests that are answered when nobody waits."""

from typing import Annotated, Literal

from litestar import get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter, SkipValidation
from msgspec import Meta, Struct

from router.api import document
from router.api.access import DENIED
from router.api.body import StrictBody
from router.errors import ErrorBody
from router.serving.messages import Caller
from router.state.batches import Batch, BatchStore, Endpoint

Batches = NamedDependency[SkipValidation[BatchStore]]
Who = NamedDependency[SkipValidation[Caller]]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
CONFLICT = {409: ResponseSpec(ErrorBody, generate_examples=False, description="The batch is ending, or has ended.")}


class BatchRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a batch is made of."""

    input_file_id: Annotated[str, Meta(description="Of an uploaded file.")]
    endpoint: Annotated[Endpoint, Meta(description="That all its requests name.")]
    completion_window: Annotated[Literal["24h"], Meta(description="After it what is not answered yet won't be.")]
    metadata: Annotated[Metadata | None, Meta(description="Told back with the batch.")] = None


class BatchList(Struct, frozen=True, kw_only=True):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None  # what `after` asks for to get the next page
    has_more: bool


@post(
    "/v1/batches",
    status_code=200,
    dto=StrictBody[BatchRequest],
    responses=document.errors(400, 404, 408, 413) | DENIED,
    sync_to_thread=True,
)
def create_batch(data: JSONBody[BatchRequest], batches: Batches, caller: Who) -> Batch:
    """Have the requests in a file answered. Its lines are checked first: one that is wrong fails the batch."""
    return batches.create(caller, data.input_file_id, data.endpoint, data.metadata)


@get("/v1/batches", responses=document.errors(400) | DENIED, sync_to_thread=True)
def list_batches(
    batches: Batches,
    caller: Who,
    after: Annotated[str, QueryParameter(description="The last id of the page before.")] = "",
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
) -> BatchList:
    """List the tenant's batches, newest first."""
    data, more = batches.page(caller.tenant, after=after, limit=limit)
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return BatchList(data=data, first_id=first, last_id=last, has_more=more)


@get("/v1/batches/{batch_id:str}", responses=document.errors(404) | DENIED, sync_to_thread=True)
def get_batch(batch_id: FromPath[str], batches: Batches, caller: Who) -> Batch:
    """Show how far a batch is."""
    return batches.get(caller.tenant, batch_id)


@post(
    "/v1/batches/{batch_id:str}/cancel",
    status_code=200,
    responses=document.errors(404) | DENIED | CONFLICT,
    sync_to_thread=True,
)
def cancel_batch(batch_id: FromPath[str], batches: Batches, caller: Who) -> Batch:
    """End a batch soon; its answers so far are kept."""
    return batches.cancel(caller.tenant, batch_id)
