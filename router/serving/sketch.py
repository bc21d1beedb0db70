"""A draft made beside an answer that the refiner is writing: never shown, it only lets the refiner write several tokens at once.

The draft model's canvas is handed over as it stands after every step. The refiner tries its tokens and takes those that are its own choice, so
the text is the one it would have written alone.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress

from ar_engine import api as ar
from diffusion_engine import api as diffusion
from router.serving.protocols import DraftEngine, RefineEngine

logger = logging.getLogger("draftgate")


@asynccontextmanager
async def sketching(
    drafts: DraftEngine, refiner: RefineEngine, request: diffusion.DraftRequest
) -> AsyncGenerator[None, None]:
    """Sketch an answer as long as the block runs. Whatever goes wrong with it, the answer goes on without."""
    task = asyncio.create_task(_sketch(drafts, refiner, request))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _sketch(drafts: DraftEngine, refiner: RefineEngine, request: diffusion.DraftRequest) -> None:
    canvases: dict[int, diffusion.CanvasUpdate] = {}
    try:
        async with aclosing(drafts.draft(request)) as events:
            async for event in events:
                if isinstance(event, diffusion.CanvasUpdate):
                    canvases[event.canvas] = event
                    refiner.suggest(request.request_id, _joined(list(canvases.values())))
    except diffusion.DraftError as error:
        logger.debug("no sketch for %s: %s", request.request_id, error)
    except Exception:
        logger.exception("the sketch for %s failed", request.request_id)


def _joined(canvases: list[diffusion.CanvasUpdate]) -> ar.Draft:
    return ar.Draft(
        text="".join(canvas.text for canvas in canvases),
        token_ids=tuple(token for canvas in canvases for token in canvas.token_ids),
        tokenizer_fingerprint=canvases[-1].tokenizer_fingerprint,
    )
