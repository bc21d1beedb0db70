"""`draftgate plan`: whether draft and refiner fit a GPU, before any weights are loaded; and the same check for `serve`.

A prompt is let in up to `server.max_prompt_chars`, and is taken to have no more tokens than characters. Only characters that a vocabulary lacks
break that rule: a prompt full of them may fail alone. GB are 1e9 bytes, in what is printed and in what is asked.
"""

import argparse
import os
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

import msgspec

from ar_engine.api import RefineSettings
from diffusion_engine.api import DraftSettings
from engine_core.memory import Device, Memory
from engine_core.upstream.settings import Upstream
from router.settings import Settings, SettingsError, load

GB = 10**9
UNITS = {"MB": 10**6, "GB": GB, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SHORTEST_PROMPT = 1_000  # characters; nobody is advised to go below

Fit = Literal["both", "draft", "refine", "neither"]


class PairDoesNotFit(SettingsError):
    """What is configured needs more memory than there is. The message is what `draftgate plan` prints."""


class Sizes(Protocol):
    """What two engines take under any settings; knows the shapes of one pair of models. One that an upstream runs takes nothing."""

    def draft(self, settings: Settings) -> Memory:
        """The draft engine's; with the least cache that serves where the settings leave its size open."""
        ...

    def refine(self, settings: Settings) -> Memory:
        """The refine engine's."""
        ...

    def cache_tokens(self, settings: Settings, free: int) -> int:
        """The cache that the draft engine has when so many bytes are its own; never less than the least."""
        ...


@dataclass(frozen=True)
class Plan:
    """Who needs how much of a device, and what follows."""

    device: Device
    models: tuple[str, str]
    draft: Memory  # with the cache that it gets
    refine: Memory
    fit: Fit
    changes: tuple[str, ...]  # of settings, so that both fit

    @property
    def verdict(self) -> str:
        """One sentence."""
        device, tokens = self.device, f"cache for {self.draft.cache_tokens:,} tokens"
        where, whole = ("on one card" if device.kind == "cuda" else "in memory"), _gb(device.capacity)
        draft, refine = (_gb(engine.total + device.reserve) for engine in (self.draft, self.refine))
        both = _gb(self.draft.total + self.refine.total + device.reserve)
        if not (self.draft.total and self.refine.total):
            return self._verdict_of_rest(where, both, whole, tokens)
        return {
            "both": f"Both fit {where}: {both} of {whole} GB, {tokens}.",
            "draft": f"Draft local, refiner remote: the draft takes {draft} of {whole} GB, {tokens}; the refiner would take {refine} GB.",
            "refine": f"The draft does not fit: it takes {draft} of {whole} GB; the refiner would take {refine} GB.",
            "neither": f"Neither fits: the draft takes {draft} of {whole} GB, the refiner {refine} GB.",
        }[self.fit]

    def _verdict_of_rest(self, where: str, taken: str, whole: str, tokens: str) -> str:
        """The verdict where an upstream runs one model, or both."""
        if not (self.draft.total or self.refine.total):
            return "Nothing has to fit: both models are remote."
        here, there = ("draft", "refiner") if self.draft.total else ("refiner", "draft")
        cache = f", {tokens}" if here == "draft" and self.fit == "both" else ""
        fits = f"fits {where}" if self.fit == "both" else "does not fit"
        return f"The {here} {fits}, the {there} is remote: {taken} of {whole} GB{cache}."

    def report(self) -> str:
        """Table, verdict and advice."""
        engines = (self.draft, self.refine)
        return "\n".join(
            [
                f"{self.device.name}, {_gb(self.device.capacity)} GB; a GB is 1e9 bytes",
                f"  draft     {self.models[0]}",
                f"  refine    {self.models[1]}",
                "",
                f"  {'GB':<10}{'draft':>10}{'refine':>10}",
                _row("weights", *(engine.weights for engine in engines)),
                _row("KV cache", *(engine.cache for engine in engines)),
                _row("state", *(engine.state for engine in engines)),
                _row("workspace", *(engine.workspace for engine in engines)),
                _row("total", *(engine.total for engine in engines)),
                _row("reserve", self.device.reserve) + "  for both: context, graphs, libraries",
                "",
                self.verdict,
                *self.changes,
            ]
        )

    def json(self) -> str:
        """The same for programs, in bytes."""
        engines = {"draft": self.draft, "refine": self.refine}
        told = {
            "device": {**asdict(self.device), "reserve": self.device.reserve},
            **{
                engine: {"model": model, **asdict(memory), "total": memory.total}
                for (engine, memory), model in zip(engines.items(), self.models, strict=True)
            },
            "fit": self.fit,
            "verdict": self.verdict,
            "changes": self.changes,
        }
        return msgspec.json.format(msgspec.json.encode(told)).decode()


def plan(settings: Settings, sizes: Sizes, device: Device) -> Plan:
    """Weigh two engines against a device.

    Where both fit, or the draft alone, the draft engine's cache on a GPU gets what is left, unless the settings say how large it is.
    """
    draft, refine = sizes.draft(settings), sizes.refine(settings)
    models = (named(settings.draft), named(settings.refine))
    fit = _fit(draft.total, refine.total, device.room)
    if fit in ("both", "draft") and device.kind == "cuda" and not settings.draft.cache_tokens:
        free = device.room - (refine.total if fit == "both" else 0)
        draft = sizes.draft(_with(settings, "draft.cache_tokens", sizes.cache_tokens(settings, free)))
    changes = () if fit == "both" else _changes(settings, sizes, device)
    return Plan(device, models, draft, refine, fit, tuple(changes))


def named(engine: DraftSettings | RefineSettings) -> str:
    """The model an engine runs, and where, if that is elsewhere."""
    upstream = engine.upstream
    return f"{upstream.model or 'the model'} at {upstream.base_url}" if upstream.base_url else engine.model


def admit(settings: Settings, sizes: Sizes, device: Device) -> Settings:
    """The settings with the size of the draft engine's cache filled in where they leave it open and a GPU is there.

    Raises:
        PairDoesNotFit: the two engines need more than there is.
    """
    found = plan(settings, sizes, device)
    if found.fit != "both":
        raise PairDoesNotFit(f"expected two engines that fit the memory there is, got\n{found.report()}")
    if device.kind != "cuda":
        return settings
    settings = _with(settings, "draft.cache_tokens", found.draft.cache_tokens)
    return _with(settings, "refine.cache_tokens", found.refine.cache_tokens)


def _fit(draft: int, refine: int, room: int) -> Fit:
    room = max(room, 0)  # what takes nothing fits a device that is full
    if draft + refine <= room:
        return "both"
    if draft <= room:
        return "draft"
    return "refine" if refine <= room else "neither"


def _changes(settings: Settings, sizes: Sizes, device: Device) -> Iterator[str]:
    """What to change, and by how much, so that the draft fits if it doesn't, and so that both do."""

    def draft(changed: Settings) -> int:
        return sizes.draft(changed).total - device.room

    def both(changed: Settings) -> int:
        return draft(changed) + sizes.refine(changed).total

    for goal, over in (("The draft fits", draft), ("Both fit", both)):
        if over(settings) > 0:
            yield from _advice(settings, goal, over)


def _advice(settings: Settings, goal: str, over: Callable[[Settings], int]) -> Iterator[str]:
    """Each change that is enough alone; else the changes that are enough together; else what is missing even then."""
    ways, enough = _ways(settings), False
    for key, values in ways:
        if (changed := _least_change(settings, key, values, over)) and over(changed) <= 0:
            yield f"{goal} with {_said(changed, key)}: {_gb(over(settings) - over(changed))} GB less."
            enough = True
    if enough:
        return
    reached, said = settings, list[str]()
    for key, values in ways:
        changed = _least_change(reached, key, values, over)
        if over(changed) < over(reached):
            reached, said = changed, [*said, _said(changed, key)]
        if over(reached) <= 0:
            yield f"{goal} with {' and '.join(said)}: {_gb(over(settings) - over(reached))} GB less."
            return
    even = f"even with {' and '.join(said)}, " if said else ""
    yield f"{goal} with no change of settings alone: {even}{_gb(over(reached))} GB are missing."


def _ways(settings: Settings) -> list[tuple[str, Sequence[int | bool]]]:
    """Settings that memory depends on, each with its values up to the one it has, rising in memory; those that hurt least come first."""
    ways: list[tuple[str, Sequence[int | bool]]] = []
    if not settings.draft.quantize:
        ways.append(("draft.quantize", [True]))
    if settings.draft.cache_tokens:
        ways.append(("draft.cache_tokens", [0]))  # 0: what is left
    ways.append(("draft.max_running", range(1, settings.draft.max_running)))
    ways.append(("refine.max_running", range(1, settings.refine.max_running)))
    ways.append(("server.max_prompt_chars", range(SHORTEST_PROMPT, settings.server.max_prompt_chars, SHORTEST_PROMPT)))
    return [way for way in ways if way[1]]


def _least_change(
    settings: Settings, key: str, values: Sequence[int | bool], over: Callable[[Settings], int]
) -> Settings:
    """The last of the values that is small enough, or else the first."""
    fitting = bisect_right(values, 0, key=lambda value: over(_with(settings, key, value)))
    return _with(settings, key, values[max(fitting - 1, 0)])


def _with(settings: Settings, key: str, value: int | bool) -> Settings:
    section, name = key.split(".")
    changed = msgspec.structs.replace(getattr(settings, section), **{name: value})
    return msgspec.structs.replace(settings, **{section: changed})


def _said(settings: Settings, key: str) -> str:
    section, name = key.split(".")
    return f"{key} = {msgspec.json.encode(getattr(getattr(settings, section), name)).decode()}"


def _gb(nbytes: int) -> str:
    return f"{nbytes / GB:.1f}"


def _row(words: str, *nbytes: int) -> str:
    return f"  {words:<10}" + "".join(f"{number / GB:10.2f}" for number in nbytes)


def size(text: str) -> int:
    """Bytes of "24GB" or "80 GiB".

    Raises:
        ArgumentTypeError: it is not a positive number and one of the units.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    unit = next((scale for name, scale in UNITS.items() if found and name.lower() == found[2].lower()), 0)
    if not found or not (nbytes := int(float(found[1]) * unit)):
        raise argparse.ArgumentTypeError(f"expected a size such as 24GB or 80 GiB ({', '.join(UNITS)}), got {text!r}")
    return nbytes


def main(argv: list[str]) -> int:
    """Print the plan; the exit status is 0 if both engines fit, 1 if not, 2 if something asked for can't be used."""
    parser = argparse.ArgumentParser(
        prog="draftgate plan", description="Whether draft and refiner fit a GPU, by their configs alone."
    )
    parser.add_argument("--config", metavar="FILE", help="TOML, as for serve; the environment counts too")
    names = "a folder, a name in the hub's local cache, or one of those published, such as"
    parser.add_argument("--draft", metavar="NAME", help=f"{names} diffusiongemma-26B-A4B-it")
    parser.add_argument("--refine", metavar="NAME", help=f"{names} gemma-4-26B-A4B-it")
    parser.add_argument("--vram", metavar="SIZE", type=size, help='24GB, "80 GiB"; default: of the GPU that is here')
    parser.add_argument("--json", action="store_true", help="bytes, for programs")
    options = parser.parse_args(argv)
    try:
        settings = load(options.config, os.environ)
        for section in ("draft", "refine"):
            if name := getattr(options, section):
                changed = msgspec.structs.replace(getattr(settings, section), model=name, upstream=Upstream())
                settings = msgspec.structs.replace(settings, **{section: changed})
        found = _plan_here(settings, options.vram)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"draftgate plan: {error}\n")
        return 2
    sys.stdout.write(f"{found.json() if options.json else found.report()}\n")
    return 0 if found.fit == "both" else 1


def _plan_here(settings: Settings, vram: int | None) -> Plan:
    # It imports torch, which nobody should wait for who only mistyped an option.
    from router import wiring

    device = Device("a GPU", "cuda", vram) if vram else wiring.here()
    return plan(settings, wiring.sizes(settings, device), device)
