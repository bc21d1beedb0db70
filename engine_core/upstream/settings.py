"""Where an upstream is, and how long to wait for it. Both engines' settings hold one. Imports no torch."""

from typing import Annotated

from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(gt=0)]


class Upstream(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server with OpenAI's API that runs a model for us: vLLM, SGLang, NIM, `transformers serve`, OpenAI itself."""

    # "http://host:8000/v1"; empty: no upstream, the model runs in this process. It is logged, so "@" and with it
    # passwords are refused.
    base_url: Annotated[str, Meta(pattern=r"^(https?://[^@\s]+)?$")] = ""
    model: str = ""  # its name there; empty: the first that the upstream lists
    api_key_env: str = "DRAFTGATE_UPSTREAM_KEY"  # the environment variable that holds the key, if there is one
    connect_timeout_s: Seconds = 5.0
    first_byte_timeout_s: Seconds = 60.0  # from the request sent to the first byte of an answer
    idle_timeout_s: Seconds = 30.0  # between two pieces of an answer
    max_connections: Annotated[int, Meta(ge=1)] = 64
    context_tokens: Annotated[int, Meta(ge=0)] = 0  # longest prompt plus answer; 0: what the upstream says, if it does
