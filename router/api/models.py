"""GET /v1/models: the three names a request may ask for."""

from typing import Literal

from litestar import get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath
from msgspec import Struct

from router.api.schemas import MODELS
from router.errors import ErrorBody, UnknownModel

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


@get("/v1/models", sync_to_thread=False)
def list_models() -> ModelList:
    """List what can be asked for."""
    return ModelList([Model(name) for name in MODELS])


@get(
    "/v1/models/{name:str}",
    sync_to_thread=False,
    responses={404: ResponseSpec(ErrorBody, generate_examples=False, description="Unknown.")},
)
def get_model(name: FromPath[str]) -> Model:
    """Show one."""
    if name not in MODELS:
        raise UnknownModel(f"No such model; served here: {', '.join(MODELS)}.", param="model")
    return Model(name)
