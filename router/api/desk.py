"""What the handlers of the OpenAI surface work with."""

from dataclasses import dataclass

from router.serving.images import ImageFetcher
from router.serving.service import Service
from router.settings import ServerSettings


@dataclass(frozen=True)
class Desk:
    """Where questions are taken in."""

    service: Service
    images: ImageFetcher
    server: ServerSettings
    fingerprint: str | None = None  # of models and settings, as `system_fingerprint` shows it
