"""Whether a batch can begin: a look at all of its lines before the first is answered."""

from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from router.errors import UnknownModel
from router.serving import batch_lines
from router.serving.batch_lines import LineError
from router.serving.messages import Caller
from router.state.batches import Batch, BatchError

MOST_LINES = 50_000  # of a batch
MOST_ERRORS = 100  # told of an input

CheckModel = Callable[[Caller, str], object]  # raises UnknownModel


class Found(Struct):
    """What a look at a batch's input found."""

    total: int
    model: str | None  # that all lines name
    errors: list[BatchError]


def check(path: Path, batch: Batch, caller: Caller, check_model: CheckModel, longest: int) -> Found:
    """Look at all lines of an input before the first is answered. Blocks for seconds where there are many."""
    errors: list[BatchError] = []
    seen: set[str] = set()
    models: set[str] = set()
    total = 0

    def wrong(code: str, message: str, line: int | None, param: str | None = None) -> None:
        errors.append(BatchError(code=code, message=message, line=line, param=param))

    with path.open("rb") as file:
        number = 0
        while (text := file.readline(longest)) and len(errors) < MOST_ERRORS:
            number += 1
            if text.isspace():
                continue
            total += 1
            if total > MOST_LINES:
                wrong("too_many_requests", f"expected at most {MOST_LINES} requests, got more", None)
                break
            if len(text) == longest:
                wrong("line_too_long", f"expected a line shorter than {longest} bytes, got a longer one", number)
                break  # where the next one begins is not known
            try:
                line = batch_lines.parse(text)
                if line.custom_id in seen:
                    raise LineError("duplicate_custom_id", "Another line has this custom_id.", "custom_id")
                seen.add(line.custom_id)
                models.add(_model(line, batch, caller, check_model))
            except LineError as error:
                wrong(error.code, str(error), number, error.param)
    if not total:
        wrong("empty_file", "expected at least one request, got none", None)
    return Found(total, models.pop() if len(models) == 1 else None, errors)


def _model(line: batch_lines.Line, batch: Batch, caller: Caller, check_model: CheckModel) -> str:
    if line.url != batch.endpoint:
        raise LineError("invalid_url", f"expected the batch's endpoint {batch.endpoint}, got another", "url")
    if line.body.get("stream"):
        raise LineError("invalid_request", "A batch's answers can't be streamed; leave stream out.", "body.stream")
    model = line.body.get("model")
    if not isinstance(model, str):
        raise LineError("missing_required_parameter", "expected the name of a model, got none", "body.model")
    try:
        check_model(caller, model)
    except UnknownModel as error:
        raise LineError("model_not_found", str(error), "body.model") from None
    return model
