"""All settings: defaults, then a TOML file, then the environment. Nothing is read at import.

`DRAFTGATE_SERVER__PORT=8081` sets `server.port`. Variables without the double underscore are left
alone: Kubernetes injects `DRAFTGATE_SERVICE_HOST` and the like into pods.
"""

import re
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ar_engine.api import RefineSettings
from diffusion_engine.api import DraftSettings
from router.policy import Policy

PREFIX = "DRAFTGATE_"

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class SettingsError(ValueError):
    """A setting that can't be used. The message names the key, what was expected and what was got."""


class ServerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to listen and what to let in."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080  # 0: any free port
    workers: Count = 1  # processes, each with engines of its own; more than one needs a Redis
    data_dir: str = ".draftgate"  # files and batches; keys too, where there is no Redis
    request_timeout_s: Seconds = 60.0  # from arrival to the last token; a request may ask for less
    body_timeout_s: Seconds = 15.0  # for a request's body to arrive
    drain_timeout_s: Count = 45  # running requests may take this long after SIGTERM
    max_body_bytes: Count = 1_000_000
    max_prompt_chars: Count = 64_000  # all messages of a request together
    max_requests: Count = 256  # under way at once; the next one is refused
    max_pending_tokens: Count = 200_000  # of the prompts of all requests under way, at 4 characters a token


class RedisSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The Redis to share state in."""

    url: Annotated[str, Meta(pattern=r"^(redis|rediss|unix)://")] | None = None  # None: in process
    timeout_s: Seconds = 0.1  # per round trip; a slower Redis counts as gone
    retry_after_s: Seconds = 5.0  # how long a Redis that keeps failing is left alone


class CacheSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers to repeated questions."""

    keep: Literal["deterministic", "all", "nothing"] = (
        "deterministic"  # answers that would come out the same again; a request may say otherwise
    )
    ttl_s: Count = 3600
    max_entry_bytes: Count = 64_000  # longer answers are not kept
    local_bytes: Count = 8_000_000  # kept in this process besides Redis


class KeySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """API keys. None is needed on a loopback address as long as there is none."""

    env: str = "DRAFTGATE_API_KEY"  # the environment variable with a key without limits; unset: there is none
    refresh_s: Seconds = 1.0  # how soon a change of keys is known to every gateway


class ImageSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Images that a message gives by their address."""

    fetch: bool = False  # whether the gateway fetches them; else they must come inside the request
    hosts: tuple[str, ...] = ()  # that may be fetched from; empty: any public one
    max_bytes: Count = 10_000_000  # of all images of a request
    timeout_s: Seconds = 5.0  # for all of them


class BatchSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests that nobody waits for."""

    max_running: Count = 32  # requests of all batches in the engines at once
    max_file_bytes: Count = 100_000_000
    keep_days: Count = 30  # files and batches, then they are deleted


class PrivacySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of what people say."""

    keep_text: bool = False  # the last turn and the answer in the decision stream, redacted
    text_chars: Count = 500  # of each
    keep_hours: Count = 24  # decisions, and with them such texts


class ClassifierSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The trained classifiers: folders that `draftgate train` wrote, or names of shipped ones."""

    complexity: str = "demo"  # or "general": trained on exam questions and word problems
    quality: str = "demo"


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be configured. Engines are handed their own part, never the whole."""

    server: ServerSettings = ServerSettings()
    redis: RedisSettings = RedisSettings()
    cache: CacheSettings = CacheSettings()
    policy: Policy = Policy()
    keys: KeySettings = KeySettings()
    images: ImageSettings = ImageSettings()
    batch: BatchSettings = BatchSettings()
    privacy: PrivacySettings = PrivacySettings()
    draft: DraftSettings = DraftSettings()
    refine: RefineSettings = RefineSettings()
    classifiers: ClassifierSettings = ClassifierSettings()


def load(path: str | None, environ: Mapping[str, str]) -> Settings:
    """Defaults < TOML at `path` < environment.

    Raises:
        SettingsError: a file that can't be read, an unknown key or a bad value.
    """
    values = _read(path) if path else {}
    _convert(values)  # the file's own mistakes are reported as the file's
    for name, text in environ.items():
        if name.startswith(PREFIX) and "__" in name:
            _override(values, name, text)
    return _convert(values)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"{path}: can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error


def _override(values: dict[str, Any], name: str, text: str) -> None:
    """Put one environment variable into `values`, converted to its field's type."""
    keys = name.removeprefix(PREFIX).lower().split("__")
    kind: Any = Settings
    for depth, key in enumerate(keys):
        fields = {f.name: f.type for f in msgspec.structs.fields(kind)} if _is_struct(kind) else {}
        if key not in fields:
            raise SettingsError(f"{name}: {_unknown('.'.join(keys[: depth + 1]), list(fields))}")
        kind = fields[key]
    if _is_struct(kind):
        raise SettingsError(f"{name}: names the section {'.'.join(keys)}, expected one of its keys")
    try:
        value = msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{name}: {'.'.join(keys)}: {_expected(error)}, got {text!r}") from None
    section = values
    for key in keys[:-1]:
        section = section.setdefault(key, {})
    section[keys[-1]] = value


def _convert(values: dict[str, Any]) -> Settings:
    try:
        return msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        at = re.search(r" - at `\$\.?(.*?)`$", str(error))
        keys = at[1].split(".") if at and at[1] else []
        if surplus := re.search(r"unknown field `(.*?)`", str(error)):
            kind: Any = Settings
            for key in keys:
                kind = {f.name: f.type for f in msgspec.structs.fields(kind)}[key]
            names = [f.name for f in msgspec.structs.fields(kind)]
            raise SettingsError(_unknown(".".join([*keys, surplus[1]]), names)) from None
        got: Any = values
        for key in keys:
            got = got[key]
        raise SettingsError(f"{'.'.join(keys)}: {_expected(error)}, got {got!r}") from None


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def _unknown(key: str, names: list[str]) -> str:
    return f"{key}: no such setting, expected one of: {', '.join(names) or 'none, it has no keys'}"


def _expected(error: msgspec.ValidationError) -> str:
    """Keep "expected int" of "Expected `int`, got `str` - at `$.server.port`"."""
    words = str(error).split(" - at ")[0].split(", got ")[0].replace("`", "")
    return words[0].lower() + words[1:]
