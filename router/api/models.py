"""GET /v1/models: the names a request may ask for."""

from typing import Literal

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath, SkipValidation
from msgspec import Struct

from router.api.convert import route_of
from router.api.document import errors
from router.api.schemas import MODELS
from router.serving.messages import Caller

SINCE_UNIX_S = 1_760_000_000  # OpenAI wants a date; ours is that of the first release


class Model(Struct, frozen=True):
    """A name for the `model` field."""

    id: str
    object: Literal["model"] = "model"
    created: int = SINCE_UNIX_S
    owned_by: str = "draftgate"


class ModelList(Struct, frozen=True):
    """All of them."""

    data: list[Model]
    object: Literal["list"] = "list"


@get("/v1/models", sync_to_thread=False, responses=errors(401, 403, 503))
def list_models(caller: NamedDependency[SkipValidation[Caller]]) -> ModelList:
    """List what the caller can ask for."""
    return ModelList([Model(name) for name in MODELS if not caller.models or name in caller.models])


@get("/v1/models/{name:str}", sync_to_thread=False, responses=errors(401, 403, 404, 503))
def get_model(name: FromPath[str], caller: NamedDependency[SkipValidation[Caller]]) -> Model:
    """Show one."""
    route_of(caller, name)
    return Model(name)
