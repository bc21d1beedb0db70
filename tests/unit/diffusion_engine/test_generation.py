"""Whole drafts by the real core on tiny random models: every wish of a request, and no influence of company."""

import random
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from msgspec.structs import replace

from diffusion_engine import DiffusionGemmaModel
from diffusion_engine.api import CanvasUpdate, DraftRejected
from diffusion_engine.config import ModelConfig
from diffusion_engine.convert import convert
from diffusion_engine.load import warm_up
from diffusion_engine.model import Model, Rows
from diffusion_engine.runner import Runner, _tensors
from diffusion_engine.sampler import Inputs
from diffusion_engine.weights import load_weights
from engine_core import pages, scheduler
from moe_kernels import attention
from tests.marks import on_gpu
from tests.unit.diffusion_engine.checkpoints import save, tiny_config, tiny_model, write_all_forms
from tests.unit.diffusion_engine.engines import (
    SAMPLING,
    IdTokenizer,
    Inbox,
    alone,
    essence,
    load_model,
    make_core,
    run,
    submit,
)

CANVAS = 8
PROMPT = [(11 * i) % 150 + 3 for i in range(40)]
LONG = replace(SAMPLING, max_tokens=3 * CANVAS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("checkpoint")
    save(tiny_model(tiny_config(), seed=3), folder)
    return load_model(folder)


def test_a_seed_repeats_its_draft_and_another_seed_has_another(model: Model) -> None:
    first, again, other = (alone(model, PROMPT, seed=seed) for seed in (1, 1, 2))
    assert essence(first) == essence(again)
    assert first.token_logprobs == again.token_logprobs
    assert first.token_ids != other.token_ids


def test_company_changes_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of all lengths, wishes of all kinds, joining while others run, some pausing, some leaving in the middle."""
    monkeypatch.setattr(scheduler, "BACKGROUND_EVERY", 3)
    monkeypatch.setattr(scheduler, "CALM", 2)
    chance = random.Random(5)
    wishes = [
        {"seed": i, "max_steps": chance.randint(1, 5), "max_tokens": chance.randint(1, 30), "candidates": chance.choice((1, 1, 2)),
         "entropy_bound": chance.choice((0.1, 0.5, 3.0)), "t_max": chance.choice((0.5, 0.8, 1.2)),
         "stability": chance.choice((0, 1, 2)), "confidence": chance.choice((0.005, 1.0, 4.0)), "updates": chance.random() < 0.3,
         "priority": chance.choice((0, 1, 2, 2))}
        for i in range(24)
    ]  # fmt: skip
    prompts = [PROMPT[: chance.randint(1, 40)] for _ in wishes]
    core = make_core(model, max_running=6, encode_tokens=24)
    kept: list[tuple[int, Inbox]] = []
    for i, (prompt, wish) in enumerate(zip(prompts, wishes, strict=True)):
        inbox = submit(core, prompt, **wish)
        if chance.random() < 0.3:
            for _ in range(chance.randint(0, 3)):
                core.step()
            assert inbox.job is not None
            core.drop(inbox.job)
        else:
            kept.append((i, inbox))
        core.step()
    run(core)
    assert core.running == core.waiting == 0
    for i, inbox in kept:
        single = make_core(model)
        expected = run(single, submit(single, prompts[i], **wishes[i]))[0]
        assert [essence(result) for result in inbox.results] == [essence(result) for result in expected]


def test_a_canvas_that_pauses_for_foreground_goes_on_where_it_was(model: Model) -> None:
    core = make_core(model, LONG, max_running=4)
    paused = [submit(core, PROMPT[:20], seed=i, priority=2, candidates=i) for i in (1, 2)]
    for _ in range(7):  # into the second canvas
        core.step()
    sequences = [sequence for inbox in paused for sequence in (inbox.job.group.sequences if inbox.job else [])]
    before = [(one.step, len(one.reports), one.forwards) for one in sequences]
    assert any(step and reports for step, reports, _ in before)
    user = submit(core, PROMPT, seed=9)
    while user.job in core._jobs.values() and core._scheduler._busy_plans < 15:
        core.step()
    assert [(one.step, len(one.reports), one.forwards) for one in sequences] == before
    run(core)
    assert essence(user.results[0]) == essence(alone(model, PROMPT, LONG, seed=9))
    for i, inbox in zip((1, 2), paused, strict=True):
        single = make_core(model, LONG)
        expected = run(single, submit(single, PROMPT[:20], seed=i, candidates=i))[0]
        assert [essence(result) for result in inbox.results] == [essence(result) for result in expected]


def test_an_equal_prefix_is_encoded_once_and_changes_nothing(model: Model) -> None:
    core = make_core(model, LONG, encode_tokens=16)
    first = run(core, submit(core, PROMPT, seed=1))[0][0]
    turn = [*PROMPT, *first.token_ids, 9, 8, 7]
    again, other_key, never = (
        run(core, submit(core, turn, seed=2, prefix_key=key))[0][0] for key in ("", "another tenant", None)
    )
    assert again.signals.reused_tokens == 48, "the prompt's pages, and those of the canvases that were encoded"
    assert other_key.signals.reused_tokens == never.signals.reused_tokens == 0
    assert essence(again) == essence(other_key) == essence(never)
    assert again.signals.forwards < never.signals.forwards


def test_a_small_cache_forgets_the_oldest_prefix_first(model: Model) -> None:
    core = make_core(model, max_running=1, cache_tokens=6 * 16)
    prompts = [[p] * 33 for p in (10, 20, 30)]
    for prompt in prompts:
        run(core, submit(core, prompt))
    reused = [run(core, submit(core, prompt))[0][0].signals.reused_tokens for prompt in (prompts[2], prompts[0])]
    assert reused == [32, 0]


def test_candidates_share_their_prompt_and_come_best_first(model: Model) -> None:
    core = make_core(model)
    results = run(core, submit(core, PROMPT, seed=4, candidates=4))[0]
    assert sorted(result.candidate for result in results) == [0, 1, 2, 3]
    assert len({result.token_ids for result in results}) == 4, "a random model repeats itself only if seeds do"
    first = next(result for result in results if result.candidate == 0)
    assert essence(first)[0] == alone(model, PROMPT, seed=4).token_ids
    reused = {result.candidate: result.signals.reused_tokens for result in results}
    assert reused == {0: 0, 1: 32, 2: 32, 3: 32}
    agreements = [result.signals.agreement for result in results]
    assert agreements == sorted(agreements, key=lambda x: -(x or 0.0))


def test_a_canvas_that_will_not_settle_is_given_up_and_said_so(model: Model) -> None:
    patient = replace(SAMPLING, max_steps=40, give_up=True)
    result = alone(model, PROMPT, patient)
    assert result.finish_reason == "unsettled"
    assert result.signals.converged == (False,)
    assert 6 <= result.signals.steps[0] < 40
    stubborn = alone(model, PROMPT, patient, give_up=False)
    assert sum(stubborn.signals.steps) > sum(result.signals.steps)
    assert stubborn.finish_reason == "length"


def test_the_first_stop_token_ends_the_answer_inside_a_canvas(model: Model) -> None:
    whole = alone(model, PROMPT, LONG, seed=3)
    assert len(whole.token_ids) == 3 * CANVAS
    stop = whole.token_ids[CANVAS + 2]
    at = whole.token_ids.index(stop)
    result = alone(model, PROMPT, LONG, seed=3, stop_token_ids=(stop,))
    assert result.token_ids == whole.token_ids[:at]
    assert result.finish_reason == "stop"
    assert len(result.signals.steps) == at // CANVAS + 1
    assert len(result.signals.token_entropy) == len(result.signals.mean_entropy) == len(result.token_logprobs) == at


def test_max_tokens_cuts_the_last_canvas(model: Model) -> None:
    whole = alone(model, PROMPT, LONG, seed=3)
    result = alone(model, PROMPT, LONG, seed=3, max_tokens=CANVAS + 3)
    assert result.token_ids == whole.token_ids[: CANVAS + 3]
    assert (result.finish_reason, len(result.signals.steps)) == ("length", 2)


def test_updates_show_every_step_and_end_in_the_draft(model: Model) -> None:
    core = make_core(model, LONG)
    inbox = submit(core, PROMPT, seed=3, updates=True)
    result = run(core, inbox)[0][0]
    assert [(update.canvas, update.step) for update in inbox.updates] == [
        (canvas, step + 1) for canvas, steps in enumerate(result.signals.steps) for step in range(steps)
    ]
    assert all(len(update.settled) == len(update.token_ids) for update in inbox.updates)
    assert all(any(update.settled) for update in inbox.updates), "a step takes at least one position"
    last = {update.canvas: update.token_ids for update in inbox.updates}
    assert sum(last.values(), ()) == result.token_ids


def test_infilling_keeps_what_is_given_and_fills_the_gap(model: Model) -> None:
    core = make_core(model, replace(SAMPLING, end_ids=(1,)))
    inbox = submit(core, PROMPT, template=("20 21", 3, "22"), updates=True)
    result = run(core, inbox)[0][0]
    assert (result.token_ids[:2], result.token_ids[5:]) == ((20, 21), (22,))
    assert result.filled == (" ".join(map(str, result.token_ids[2:5])),)
    assert (result.finish_reason, len(result.token_ids)) == ("stop", 6)
    assert all(update.token_ids[:2] == (20, 21) for update in inbox.updates)
    assert [entropy == 0 for entropy in result.signals.token_entropy] == [True, True, False, False, False, True]


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"max_tokens": 600}, r"at most 512 tokens in all, got a prompt of 40 and 600 answer tokens"),
        ({"candidates": 99}, r"1 to 16 candidates, got 99"),
        ({"candidates": 0}, r"1 to 16 candidates, got 0"),
        ({"max_steps": -1}, r"max_steps of at least 1, got -1"),
        ({"t_min": 0.9}, r"0 <= t_min <= t_max < inf, got 0.9 and 0.8"),
        ({"entropy_bound": float("nan")}, r"entropy_bound of at least 0, got nan"),
        ({"stability": -1}, r"stability of at least 0, got -1"),
        ({"seed": 2**63}, r"seed of 64 bits, got 9223372036854775808"),
        ({"template": ("1 2",)}, r"a gap to fill, got none"),
        ({"template": (99,)}, r"at most 8 tokens, got 99"),
        ({"priority": -1}, r"priority of at least 0, got -1"),
    ],
)
def test_what_can_never_be_served_is_refused_with_expected_and_got(model: Model, wish: dict, says: str) -> None:
    with pytest.raises(DraftRejected, match=says):
        submit(make_core(model), PROMPT, **wish)


def test_a_failed_step_takes_only_its_requests(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    core = make_core(model, max_running=2)
    taking_part = [submit(core, PROMPT, seed=seed) for seed in (1, 2)]
    waiting = submit(core, PROMPT, seed=3)
    core.step()
    with monkeypatch.context() as broken:
        broken.setattr(Model, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            core.step()
    assert [type(inbox.error) for inbox in taking_part] == [ZeroDivisionError] * 2
    assert essence(run(core, waiting)[0][0]) == essence(alone(model, PROMPT, seed=3))


def test_a_probe_leaves_running_requests_alone(model: Model) -> None:
    core = make_core(model)
    inbox = submit(core, PROMPT, seed=6)
    while core.busy:
        core.step()
        core.probe()
    assert essence(inbox.results[0]) == essence(alone(model, PROMPT, seed=6))


@pytest.mark.parametrize("form", ["modelopt", "compressed-tensors", "draftgate"])
def test_nvfp4_is_its_dequantised_twin(form: str, tmp_path: Path) -> None:
    forms = write_all_forms(tiny_model(tiny_config(), seed=8), tmp_path)
    convert(forms[form], tmp_path / "decoded", "plain", torch.float32)
    drafts = [alone(load_model(folder), PROMPT, LONG) for folder in (forms[form], tmp_path / "decoded")]
    assert essence(drafts[0]) == essence(drafts[1])
    assert drafts[0].token_logprobs == drafts[1].token_logprobs


def test_the_forms_give_equal_outputs_within_quantisation_error(tmp_path: Path) -> None:
    """Log-probabilities of a first step: the two NVFP4 libraries round scales differently, bfloat16 does not round to four bits."""
    forms = write_all_forms(tiny_model(tiny_config(), seed=8), tmp_path)
    once = replace(SAMPLING, max_steps=1, max_tokens=CANVAS)
    found = {
        form: torch.tensor(alone(load_model(folder), PROMPT, once).token_logprobs) for form, folder in forms.items()
    }
    assert torch.equal(found["draftgate"], found["modelopt"])
    for form in ("modelopt", "compressed-tensors"):
        assert 0 < (found[form] - found["plain"]).abs().mean() < 1.0


def test_replaying_a_step_from_tensors_of_its_own_changes_nothing(model: Model) -> None:
    """What a CUDA graph does, without one: rows and inputs are copied into those it was captured with."""

    class Replayed:
        def __init__(self, runner: Runner, count: int) -> None:
            self.runner = runner
            with torch.inference_mode():
                self.rows, self.inputs = runner._idle(count)

        def replay(self, rows: Rows, inputs: Inputs) -> torch.Tensor:
            mine = _tensors(self.rows)
            assert len({tensor.data_ptr() for tensor in mine}) == len(mine)
            for tensor, new in zip(mine, _tensors(rows), strict=True):
                tensor.copy_(new)
            for attended in self.rows.attended.values():
                attended.spans._kept = None  # the torch twin's notes of what it read
            self.inputs.whole.copy_(inputs.whole)
            self.inputs.real.copy_(inputs.real)
            return self.runner._step(self.rows, self.inputs)

    results = []
    for replayed in (False, True):
        core = make_core(model, LONG, max_running=3)
        if replayed:
            runner = core.runner
            assert isinstance(runner, Runner)
            runner._graphs = {count: cast(Any, Replayed(runner, count)) for count in (1, 2, 3)}
        results.append(run(core, *(submit(core, PROMPT[:n], seed=n) for n in (5, 20, 40, 33))))
    plain, again = ([essence(result[0]) for result in several] for several in results)
    assert plain == again


@on_gpu
def test_graphs_change_nothing(tmp_path: Path) -> None:
    folder = save(tiny_model(tiny_config(), seed=8), tmp_path)
    config = ModelConfig.load(folder)
    model = Model(config, load_weights(folder, config, torch.device("cuda"), torch.bfloat16, quantize=True))
    results = []
    for captured in (False, True):
        core = make_core(model, LONG, max_running=3)
        if captured:
            assert isinstance(core.runner, Runner)
            core.runner.capture()
        results.append(run(core, *(submit(core, PROMPT[:n], seed=n) for n in (5, 20, 40, 33))))
    plain, replayed = ([essence(result[0]) for result in several] for several in results)
    assert plain == replayed


def test_positions_beyond_the_last_token_of_the_context_are_never_asked_for(model: Model) -> None:
    prompt = [5] * (model.config.context - 3)
    result = alone(model, prompt, LONG)
    assert len(result.token_ids) == 3
    assert torch.isfinite(torch.tensor(result.token_logprobs)).all()


def test_a_script_that_stops_in_the_middle_leaves_nothing_behind(model: Model) -> None:
    core = make_core(model, LONG)
    library = DiffusionGemmaModel(core)
    words = " ".join(map(str, PROMPT))
    stream = library.stream(words)
    assert isinstance(next(stream), CanvasUpdate)
    stream.close()
    assert not core.busy
    with pytest.raises(DraftRejected, match="at most 512 tokens"):
        library.generate([words, " ".join(["7"] * 600)])
    assert not core.busy
    assert library.generate(words, seed=2) == " ".join(map(str, alone(model, PROMPT, LONG, seed=2).token_ids))


def test_pages_are_those_of_attention() -> None:
    assert pages.PAGE == attention.PAGE


def test_warming_up_leaves_an_idle_engine(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    core = make_core(model, encode_tokens=16)
    monkeypatch.setattr(IdTokenizer, "encode", lambda _, text: [7] * len(text.split()))
    warm_up(core, 100)
    assert not core.busy
    assert core.running == core.waiting == 0
