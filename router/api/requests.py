"""DELETE /v1/requests/{id}: forget what is kept of a request."""

import asyncio
import re
from typing import Literal

from litestar import delete
from litestar.di import NamedDependency
from litestar.params import FromPath, SkipValidation
from msgspec import Struct

from router.api.document import errors
from router.errors import NotFound, Overloaded
from router.serving.messages import Caller
from router.state.cache import AnswerCache
from router.state.decisions import DecisionLog
from router.state.outbox import FLUSH_EVERY_S

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RequestDeleted(Struct, frozen=True, kw_only=True):
    """That nothing is kept of a request any more."""

    id: str
    object: Literal["request.deleted"] = "request.deleted"
    deleted: Literal[True] = True


@delete("/v1/requests/{request_id:str}", status_code=200, responses=errors(401, 403, 404, 503))
async def delete_request(
    request_id: FromPath[str],
    caller: NamedDependency[SkipValidation[Caller]],
    cache: NamedDependency[SkipValidation[AnswerCache]],
    decisions: NamedDependency[SkipValidation[DecisionLog]],
) -> RequestDeleted:
    """Forget a request: its cached answer, also where it was served from the cache, and its line in the decision stream."""
    if not (REQUEST_ID.fullmatch(request_id) and await forget(cache, decisions, caller.tenant, request_id)):
        raise NotFound("Nothing is kept of such a request.")
    return RequestDeleted(id=request_id)


async def forget(cache: AnswerCache, decisions: DecisionLog, tenant: str, request_id: str) -> bool:
    """Delete all that is kept of a tenant's request; tell whether there was anything.

    Raises:
        Overloaded: Redis is away. Something may be deleted already, and asking again deletes the rest.
    """
    answer = _known(await cache.forget(tenant, request_id))
    line = _known(await decisions.forget(tenant, request_id))
    if answer and not line:  # its line may wait in another gateway's outbox
        await asyncio.sleep(1.5 * FLUSH_EVERY_S)
        _known(await decisions.forget(tenant, request_id))
    return answer or line


def _known(deleted: bool | None) -> bool:
    if deleted is None:
        raise Overloaded("What is kept can't be reached now; try again shortly.", retry_after_s=5.0)
    return deleted
