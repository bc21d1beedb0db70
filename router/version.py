"""The version of what is running."""

from importlib import metadata


def version() -> str:
    """As installed; a source tree that isn't has none."""
    try:
        return metadata.version("draftgate")
    except metadata.PackageNotFoundError:
        return "0+source"
