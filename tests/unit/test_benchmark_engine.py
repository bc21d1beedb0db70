"""The engine benchmark, with a few requests and a tiny random model; how fast they are is not looked at."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _engine_26b, _engine_load, engine
from benchmarks._engine_load import BATCH, ONE_BY_ONE, OURS, Done
from benchmarks._engine_systems import Answer, Checkpoint
from demo_models.tasks import Conversation
from moe_kernels.checkpoint import Checkpoint as Stored
from moe_kernels.checkpoint import write_modelopt
from tests.unit.diffusion_engine.checkpoints import save, tiny_config, tiny_model

WITHOUT_MEMORY = [part for part in engine.PARTS if part != "memory"]  # three processes that import everything anew


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="compares on a CPU only")
def test_a_smoke_run_compares_both_systems_and_draws_them(tmp_path: Path) -> None:
    file = tmp_path / "new" / "engine.json"
    arguments = ["--smoke", "--threads", "1", "--json", str(file), "--parts", *WITHOUT_MEMORY]
    assert engine.main(arguments) == 0
    report = json.loads(file.read_text())
    assert {"git_sha", "machine", "versions", "seed", "threads", "checkpoint", "transformers"} <= set(report)
    assert set(WITHOUT_MEMORY) <= set(report)
    alone = report["one_client"]
    assert set(alone["systems"]) == {OURS, engine.THEIRS, engine.AS_SHIPPED}
    for fast in (OURS, engine.AS_SHIPPED):
        for found in alone["times_as_fast"][fast].values():
            low, high = found["interval_95"]
            assert low <= found["ratio"] <= high
    for name, found in report["arrivals"]["rounds"][0].items():
        assert found["canvas_steps"] >= found["forwards"] >= 1
        assert found["mean_occupancy"] == 1 or name != ONE_BY_ONE
    assert [level["clients"] for level in report["clients"]] == list(engine.SMOKE.clients)
    for level in report["steps"]:
        assert all(found["mean_steps"] <= level["max_steps"] for found in level["systems"].values())
    assert {drawn.name for drawn in file.parent.glob("*.svg")} == {"engine_clients.svg", "engine_steps.svg"}


def test_the_full_size_benchmark_runs_on_a_tiny_model(tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    assert engine.main(["--random-26b", "--smoke", "--threads", "1", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    size = _engine_26b.SMOKE
    for kind in _engine_26b.GAINS:
        assert [row["canvases"] for row in report[kind]] == list(size.batches)
        assert all(row["step_ms"] > 0 and row["tokens_per_s"] > 0 for row in report[kind])
    flat, peaked = (report[kind][0]["mean_entropy_nats"] for kind in ("flat", "peaked"))
    assert peaked < flat / 2
    assert report["goals"] == {"step_ms": 7.8, "tokens_per_s": 1930}


def test_without_a_gpu_full_size_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engine.main(["--random-26b"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1


def test_the_work_of_a_canvas_is_that_of_the_published_shape() -> None:
    config = _engine_26b.config_of(_engine_26b.FULL)
    cached, flops = _engine_26b.work_of_a_canvas(config, context=1024)
    # By hand, in TFLOP: attention's projections .568, dense MLPs .274, experts .731, routers and self-conditioning .015, head and mean
    # embedding .378 each, attention .188.
    assert flops == pytest.approx(2.53e12, rel=0.005)
    assert 2 * cached == pytest.approx(210e6 + 21e6, rel=0.005)  # bytes of sliding and full layers


def test_weights_in_four_bits_are_decoded_for_transformers(tmp_path: Path) -> None:
    plain, packed, build = tmp_path / "plain", tmp_path / "packed", tmp_path / "build"
    build.mkdir()
    save(tiny_model(tiny_config()), plain)
    said = {"max_denoising_steps": 24, "max_new_tokens": 8}
    (plain / "generation_config.json").write_text(json.dumps(said))
    write_modelopt(Stored(plain), packed)
    checkpoint = Checkpoint.prepare(packed, build, most_steps=48)
    assert (checkpoint.form, checkpoint.steps, checkpoint.tokens) == ("modelopt", 24, 8)
    assert Stored(Path(checkpoint.ours)).form == "modelopt"
    assert Stored(Path(checkpoint.theirs)).form is None
    lifted = json.loads((Path(checkpoint.ours) / "generation_config.json").read_text())
    assert lifted == {**said, "max_denoising_steps": 48}


def conversation(name: str) -> Conversation:
    return Conversation(family=name, is_complex=False, messages=(), answer=name)


def test_static_batches_wait_for_sixteen_or_the_rest() -> None:
    class Echo:
        def __init__(self) -> None:
            self.forwards, self.batches = 0, list[int]()

        def answers(self, cases: list[Conversation], seed: int, steps: int) -> list[Answer]:
            self.batches.append(len(cases))
            self.forwards += 3
            return [Answer(case.answer, 2) for case in cases]

    echo: Any = Echo()
    cases = [conversation(str(i)) for i in range(BATCH + 5)]

    async def serve() -> list[Done]:
        async with _engine_load.static_batches(echo, 24, len(cases)) as served:
            done = await _engine_load.open_loop(served.ask, cases, [0.0] * len(cases))
            assert served.forwards() == 6
        return done

    done = asyncio.run(serve())
    assert echo.batches == [BATCH, 5]
    assert [one.answer.text for one in done] == [case.answer for case in cases]


def test_arrivals_are_those_of_the_seed_at_the_rate_asked_for() -> None:
    times = _engine_load.poisson(20.0, 5000, seed=3)
    assert times == _engine_load.poisson(20.0, 5000, seed=3) != _engine_load.poisson(20.0, 5000, seed=4)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(5000 / 20, rel=0.05)


def test_a_ratio_is_that_of_the_totals_and_steps_are_counted_out() -> None:
    slow = [Done(Answer("", 4), 8.0, 0.0), Done(Answer("", 2), 4.0, 0.0)]
    fast = [Done(Answer("", 2), 2.0, 0.0), Done(Answer("", 1), 1.0, 0.0)]
    found = engine.ratio(slow, fast, seed=1)
    assert found["a_request"] == {"ratio": 4.0, "interval_95": [4.0, 4.0]}
    assert found["a_step"] == {"ratio": 2.0, "interval_95": [2.0, 2.0]}


def test_a_process_knows_its_own_memory() -> None:
    assert 0 < _engine_load.resident("VmRSS") <= _engine_load.resident("VmHWM")
