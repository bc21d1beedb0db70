import argparse
import json
import re

import msgspec
import pytest

from ar_engine.remote import RemoteEngine
from diffusion_engine.remote import RemoteDraftEngine
from engine_core.memory import Device, Memory
from engine_core.upstream.settings import Upstream
from router import cli, plan, server, wiring
from router.plan import PairDoesNotFit, admit, size
from router.settings import ServerSettings, Settings

GB = 10**9
DRAFT, REFINE = "diffusiongemma-26B-A4B-it", "gemma-4-26B-A4B-it"


def card(gigabytes: float) -> Device:
    return Device("a card", "cuda", int(gigabytes * GB))


def pair(draft: str = DRAFT, refine: str = REFINE, **options: int | bool) -> Settings:
    settings = Settings()
    chosen = msgspec.structs.replace(settings.draft, model=draft, **options)
    return msgspec.structs.replace(
        settings, draft=chosen, refine=msgspec.structs.replace(settings.refine, model=refine)
    )


@pytest.fixture(scope="module")
def published() -> wiring.PairSizes:
    return wiring.PairSizes(DRAFT, REFINE, card(24))


class Fake:
    """A draft of 10 GB and a GB a slot, a refiner of 5 GB, and a cache of a token a byte that needs 100 at least."""

    def draft(self, settings: Settings) -> Memory:
        tokens = settings.draft.cache_tokens or 100
        return Memory(10 * GB, tokens, settings.draft.max_running * GB, 0, tokens)

    def refine(self, settings: Settings) -> Memory:
        return Memory(5 * GB, settings.server.max_prompt_chars, 0, 0, settings.server.max_prompt_chars)

    def cache_tokens(self, settings: Settings, free: int) -> int:
        return free - (10 + settings.draft.max_running) * GB


@pytest.mark.parametrize(("gigabytes", "fit"), [(24, "neither"), (48, "draft"), (80, "draft"), (141, "both")])
def test_the_published_pair_by_default(published, gigabytes, fit):
    found = plan.plan(pair(), published, card(gigabytes))
    assert found.fit == fit
    if fit != "neither":
        used = found.draft.total + (found.refine.total if fit == "both" else 0)
        assert used <= found.device.room < used + 10**6  # the cache takes what is left


def test_the_advice_for_the_published_pair_is_good_and_not_too_modest(published):
    found = plan.plan(pair(), published, card(24))
    assert any("The draft fits with draft.max_running = 6: 5.4 GB less" in change for change in found.changes)
    assert plan.plan(pair(max_running=6), published, card(24)).fit == "draft"
    assert plan.plan(pair(max_running=7), published, card(24)).fit == "neither"

    found = plan.plan(pair(), published, card(80))
    advised = re.match(r"Both fit with server\.max_prompt_chars = (\d+): ", found.changes[0])
    assert advised, found.changes
    most = int(advised[1])
    for chars, fit in ((most, "both"), (most + 1_000, "draft")):
        shorter = msgspec.structs.replace(pair(), server=ServerSettings(max_prompt_chars=chars))
        assert plan.plan(shorter, published, card(80)).fit == fit

    found = plan.plan(pair(quantize=False), published, card(48))
    assert any("The draft fits with draft.quantize = true" in change for change in found.changes)


def test_what_no_setting_helps_is_said_with_what_is_missing():
    found = plan.plan(pair(), Fake(), card(10))
    assert found.fit == "refine"
    assert found.changes[-1].startswith("Both fit with no change of settings alone: even with draft.max_running = 1 ")
    assert found.changes[-1].endswith("7.5 GB are missing.")


def test_several_changes_are_named_together():
    settings = msgspec.structs.replace(pair(max_running=2, cache_tokens=2 * GB), server=ServerSettings())
    found = plan.plan(settings, Fake(), card(10 + 5 + 1 + 1.5 + 0.01))
    assert found.changes[-1] == "Both fit with draft.cache_tokens = 0 and draft.max_running = 1: 3.0 GB less."


def remote(settings: Settings, *sections: str) -> Settings:
    upstream = Upstream(base_url="http://127.0.0.1:9/v1", model="far")
    changes = {name: msgspec.structs.replace(getattr(settings, name), upstream=upstream) for name in sections}
    return msgspec.structs.replace(settings, **changes)


@pytest.mark.parametrize(
    ("sections", "gigabytes", "fit", "verdict"),
    [
        (["refine"], 48, "both", "The draft fits on one card, the refiner is remote: 48.0 of 48.0 GB, cache for "),
        (["refine"], 24, "refine", "The draft does not fit, the refiner is remote: "),
        (["draft"], 80, "both", "The refiner fits on one card, the draft is remote: "),
        (["draft"], 24, "draft", "The refiner does not fit, the draft is remote: "),
        (["draft", "refine"], 2, "both", "Nothing has to fit: both models are remote."),
    ],
)
def test_what_an_upstream_runs_takes_nothing(sections, gigabytes, fit, verdict):
    settings = remote(pair(), *sections)
    found = plan.plan(settings, wiring.sizes(settings, card(gigabytes)), card(gigabytes))
    assert found.fit == fit
    assert found.verdict.startswith(verdict)
    for section, name in zip(("draft", "refine"), found.models, strict=True):
        assert (getattr(found, section).total == 0) == (section in sections)
        assert (name == "far at http://127.0.0.1:9/v1") == (section in sections)


def test_a_remote_model_is_not_looked_for_here_and_makes_room_for_the_other():
    settings = remote(pair(refine="nobody/nothing"), "refine")
    admitted = admit(settings, wiring.sizes(settings, card(48)), card(48))
    assert admitted.draft.cache_tokens > 0
    parts = wiring.build(remote(Settings(), "draft", "refine"), Device("a small card", "cuda", GB))
    assert isinstance(parts.draft, RemoteDraftEngine)
    assert isinstance(parts.refine, RemoteEngine)
    assert "refine model: far at http://127.0.0.1:9/v1" in wiring.banner(settings)


def test_the_verdicts_words():
    words = {
        gigabytes: plan.plan(pair(max_running=1), Fake(), card(gigabytes)).verdict for gigabytes in (20, 13, 12.3, 3)
    }
    assert words[20].startswith("Both fit on one card: 20.0 of 20.0 GB, cache for 2,499,936,000 tokens.")
    assert words[13].startswith("Draft local, refiner remote: the draft takes 13.0 of 13.0 GB, ")
    assert words[12.3] == "The draft does not fit: it takes 12.5 of 12.3 GB; the refiner would take 6.5 GB."
    assert words[3] == "Neither fits: the draft takes 12.5 of 3.0 GB, the refiner 6.5 GB."


def test_who_is_admitted_gets_the_cache_and_keeps_what_was_set():
    assert admit(pair(max_running=1), Fake(), card(20)).draft.cache_tokens == int(2.5 * GB) - 64_000
    assert admit(pair(max_running=1, cache_tokens=7), Fake(), card(20)).draft.cache_tokens == 7
    assert admit(pair(), Fake(), Device("host", "cpu", 100 * GB)).draft.cache_tokens == 0


def test_the_start_is_refused_with_the_figures_of_the_plan():
    small = Device("a small card", "cuda", GB)
    with pytest.raises(PairDoesNotFit) as refused:
        wiring.build(Settings(), small)
    assert plan.plan(Settings(), wiring.sizes(Settings(), small), small).report() in str(refused.value)


def test_serve_says_so_and_ends(monkeypatch, capsys):
    monkeypatch.setattr(wiring, "here", lambda *, unused: Device("a small card", "cuda", GB))
    assert server.main([]) == 2
    assert "Neither fits" in capsys.readouterr().err


def test_the_demo_starts_and_so_does_what_is_not_here_yet():
    wiring.build(Settings())
    wiring.build(pair(draft="nobody/nothing"), Device("a small card", "cuda", GB))  # the engine will say it


def test_the_command(capsys):
    assert cli.main(["plan", "--draft", DRAFT, "--refine", REFINE, "--vram", "141GB"]) == 0
    assert "Both fit on one card" in capsys.readouterr().out
    assert cli.main(["plan", "--draft", DRAFT, "--refine", REFINE, "--vram", "24 GB", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["fit"] == "neither"
    assert found["device"]["capacity"] == 24 * GB
    draft = found["draft"]
    assert draft["total"] == draft["weights"] + draft["cache"] + draft["state"] + draft["workspace"]
    assert cli.main(["plan"]) == 0


def test_settings_count(capsys, monkeypatch, tmp_path):
    file = tmp_path / "draftgate.toml"
    file.write_text(f'draft.model = "{DRAFT}"\ndraft.max_running = 2\nrefine.model = "{REFINE}"\n')
    monkeypatch.setenv("DRAFTGATE_SERVER__MAX_PROMPT_CHARS", "4000")
    assert cli.main(["plan", "--config", str(file), "--vram", "80GB"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    "arguments", [["--draft", "nobody/nothing"], ["--draft", REFINE], ["--config", "nowhere.toml"]]
)
def test_what_cannot_be_used_is_told_in_a_line(arguments, capsys):
    assert cli.main(["plan", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("text", "nbytes"), [("24GB", 24 * GB), ("80 GiB", 80 * 2**30), (" 1.5tb ", 1500 * GB)])
def test_sizes(text, nbytes):
    assert size(text) == nbytes


@pytest.mark.parametrize("text", ["", "24", "GB", "24 G B", "-1GB", "0GB", "1e3GB", "24 parsecs"])
def test_malformed_sizes(text, capsys):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a size such as"):
        size(text)
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", f"--vram={text}"])
    assert ended.value.code == 2
