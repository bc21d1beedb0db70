"""The same weights in our refine engine and in transformers, each asked for greedy answers."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
    Qwen3Config,
)

from ar_engine import attention
from ar_engine.api import RefineRequest, RefineResult, RefineSettings
from ar_engine.core import Core
from ar_engine.engine import AutoregressiveEngine
from ar_engine.load import core_of
from ar_engine.load_model import load_model
from ar_engine.prompts import Prompts
from benchmarks._engine_load import Ask, Done
from demo_models import store
from demo_models.tasks import Conversation
from demo_models.tokenizer import EOS, SPECIAL

DEMO = str(store.path("refine"))
MOST_TOKENS = 64  # of an answer; the demo shop's have at most 60
PAD = 0
Make = Callable[[], PreTrainedModel]


class Answer(NamedTuple):
    """What a system wrote."""

    number: int  # of the conversation in its list
    ids: tuple[int, ...]  # without the token that ended it
    tokens: int  # with it


class Subject(NamedTuple):
    """A model that systems are compared on; all read the demo's prompts."""

    name: str
    make: Make
    tokens: int  # most tokens of an answer


def demo(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The shipped refiner, a Gemma 4 whose layers have two head sizes."""
    return load_model(DEMO, torch.device("cpu"), dtype)


def random_qwen3() -> PreTrainedModel:
    """As large as the demo refiner, of random weights, and never at an end: what continuous batching of transformers can run, too."""
    config = Qwen3Config(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:  # twice the usual, so that answers change from token to token
                weight.copy_(torch.randn(weight.shape, generator=generator) * 2 * weight.shape[-1] ** -0.5)
        model.get_output_embeddings().weight[: len(SPECIAL)] = 0  # some other token is always more likely
    model.generation_config = GenerationConfig(eos_token_id=SPECIAL.index(EOS), pad_token_id=PAD)
    return model


@asynccontextmanager
async def our_engine(make: Make, **settings: Any) -> AsyncIterator[AutoregressiveEngine]:
    """The engine as a server has it, around this model, with as many threads as the others."""
    chosen = RefineSettings(threads=torch.get_num_threads(), max_waiting=4096, **settings)
    engine = AutoregressiveEngine(chosen, partial(_core, make))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def _core(make: Make, settings: RefineSettings) -> Core:
    """As `load_core`, which takes a folder and always computes in float32 on a CPU."""
    torch.set_flush_denormal(True)
    model = make()
    model.set_attn_implementation(attention.NAME)
    return core_of(model, Prompts.load(DEMO, multimodal=False), settings)


async def refine(engine: AutoregressiveEngine, case: Conversation, **options: Any) -> tuple[RefineResult, float]:
    """One answer, nothing of it shared with others, and the seconds from messages to text."""
    options = {"mode": "fresh", "max_tokens": MOST_TOKENS, **options}
    request = RefineRequest(request_id="", messages=case.messages, prefix_key=None, **options)
    started = time.perf_counter()
    events = [event async for event in engine.refine(request)]
    seconds = time.perf_counter() - started
    assert isinstance(events[-1], RefineResult), "the last event is the result"
    return events[-1], seconds


class Theirs:
    """transformers, with its default attention and cache."""

    def __init__(self, make: Make, tokens: int = MOST_TOKENS) -> None:
        self.model: Any = make()
        self.tokenizer = AutoTokenizer.from_pretrained(DEMO)
        end = self.model.generation_config.eos_token_id
        self.generation = GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=end, pad_token_id=PAD, bos_token_id=None
        )
        self.ends = set(end if isinstance(end, list) else [end])

    def prompt(self, case: Conversation) -> list[int]:
        """Ids, up to where the answer begins."""
        return self.tokenizer.apply_chat_template(list(case.messages), add_generation_prompt=True)["input_ids"]

    def answers(self, cases: Sequence[Conversation], first: int = 0) -> list[Answer]:
        """From messages to tokens, in one batch padded on the left; `first` is the number of the first conversation."""
        inputs = self.tokenizer.apply_chat_template(
            [list(case.messages) for case in cases],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            padding=True,
            padding_side="left",
        )
        written = self.model.generate(**inputs, generation_config=self.generation)
        said = written[:, inputs["input_ids"].shape[1] :].tolist()
        return [self.read(number, ids) for number, ids in enumerate(said, first)]

    def answer(self, case: Conversation, number: int) -> Answer:
        """One of them."""
        return self.answers([case], number)[0]

    def read(self, number: int, ids: list[int]) -> Answer:
        """Tokens up to the end, which padding may follow."""
        length = next((i for i, token in enumerate(ids) if token in self.ends), len(ids))
        return Answer(number, tuple(ids[:length]), min(length + 1, len(ids)))


@asynccontextmanager
async def ours(engine: AutoregressiveEngine, tokens: int) -> AsyncIterator[Ask]:
    async def ask(case: Conversation, number: int) -> Any:
        result, _ = await refine(engine, case, max_tokens=tokens)
        return Answer(number, result.token_ids, result.completion_tokens)

    yield ask


@asynccontextmanager
async def one_by_one(theirs: Theirs) -> AsyncIterator[Ask]:
    """`generate` for one request after the other, first come, first served."""
    with ThreadPoolExecutor(1) as worker:

        async def ask(case: Conversation, number: int) -> Any:
            return await asyncio.get_running_loop().run_in_executor(worker, theirs.answer, case, number)

        yield ask


@asynccontextmanager
async def continuous(theirs: Theirs, most: int) -> AsyncIterator[Ask]:
    """transformers' continuous batching of at most so many requests, without sharing of prompts.

    Raises:
        Exception: whatever it raises for a model that it can't run.
    """
    config = ContinuousBatchingConfig(
        page_size=32, num_blocks=8 * most, max_batch_tokens=512, allow_block_sharing=False
    )
    manager = theirs.model.init_continuous_batching(theirs.generation, config)
    manager.warmup()  # here and not in its thread, so that it raises
    manager.start()
    try:

        async def ask(case: Conversation, number: int) -> Any:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            manager.register_result_handler(str(number), future.set_result)
            manager.add_request(theirs.prompt(case), request_id=str(number))
            output = await future
            if output.error is not None:
                raise RuntimeError(output.error)
            return theirs.read(number, output.generated_tokens)

        yield ask
    finally:
        await asyncio.to_thread(manager.stop, timeout=30)
        manager.destroy()


def in_batches(theirs: Theirs, cases: Sequence[Conversation], size: int) -> list[Done]:
    """Static batches in the order of the list: each begins when the last is done to its longest answer."""
    started, done = time.perf_counter(), []
    for first in range(0, len(cases), size):
        asked = time.perf_counter()
        answers: list[Any] = theirs.answers(cases[first : first + size], first)
        now = time.perf_counter()
        done += [Done(answer, now - asked, now - started) for answer in answers]
    return done
