"""`draftgate batch`: answers a file of requests, by engines in this process or by a running gateway.

What is answered is in the output file at once, so the same command goes on after whatever ended it. Failures are asked again.
"""

import argparse
import asyncio
import itertools
import os
import sys
from functools import partial
from pathlib import Path

from classifiers.api import ArtifactError
from router.batch_io import CHAT, COMPLETIONS, Halted, Output, Unusable, missing, survey
from router.serving.batch_lines import answer_lines
from router.serving.messages import Caller
from router.serving.protocols import DraftEngine, RefineEngine
from router.settings import Settings, SettingsError, load

CHUNK_LINES = 64  # read at a time
WATCH_EVERY_S = 0.2
STOPPED = 130  # exit status after Ctrl-C


def main(argv: list[str]) -> int:
    """Answer a file; the exit status is 0 if all is answered, 1 if something isn't, 2 if the input can't be used."""
    options = _options(argv)
    source, target = Path(options.input), Path(options.output)
    try:
        total = survey(source)
        with Output(target, total) as output:
            try:
                _answer(options, source, output)
            except KeyboardInterrupt:
                sys.stderr.write(f"Stopped. {output.summary()} The same command goes on from here.\n")
                return STOPPED
            except Halted as error:
                sys.stderr.write(f"draftgate: {error} {output.summary()} The same command goes on from here.\n")
                return 1
            sys.stderr.write(f"{output.summary()}\n")
            return 0 if output.answered == total else 1
    except (Unusable, SettingsError, ArtifactError) as error:
        sys.stderr.write(f"draftgate: {error}\n")
        return 2


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="draftgate batch",
        description="Answer a file of requests. A line is one of OpenAI's batch lines, the body of a chat request, or a JSON string to ask.",
    )
    parser.add_argument("input", metavar="IN.jsonl")
    parser.add_argument(
        "output", metavar="OUT.jsonl", help="results, as OpenAI's batches give them; what it has is not asked again"
    )
    parser.add_argument(
        "--url",
        metavar="URL",
        help="of a running gateway, such as http://127.0.0.1:8080; without it the models run here",
    )
    parser.add_argument("--key", metavar="NAME", help="the environment variable with the gateway's API key")
    parser.add_argument("--config", metavar="FILE", help="TOML; see config.example.toml")
    parser.add_argument("--concurrency", metavar="N", type=int, help="requests at once; default: batch.max_running")
    options = parser.parse_args(argv)
    if options.key and not options.url:
        parser.error("--key is for a gateway at --url")
    if options.url and (options.config or options.concurrency):
        parser.error("with --url the gateway has settings of its own")
    if options.concurrency is not None and options.concurrency < 1:
        parser.error(f"--concurrency: expected at least 1, got {options.concurrency}")
    return options


def _answer(options: argparse.Namespace, source: Path, output: "Output") -> None:
    if not options.url:
        asyncio.run(answer_here(load(options.config, os.environ), source, output, options.concurrency))
        return
    from router import batch_remote

    if options.key and options.key not in os.environ:
        raise Unusable(f"--key: expected an environment variable, got {options.key}, which is not set")
    batch_remote.answer(options.url, os.environ.get(options.key or ""), source, output)


async def answer_here(settings: Settings, source: Path, output: Output, concurrency: int | None) -> None:
    """Have all that is missing answered by engines in this process.

    Raises:
        Halted: an engine failed.
    """
    from router import app, wiring  # torch is imported only where it is needed
    from router.api import chat, completions

    house = app.House(settings, wiring.build(settings))
    house.runner.stop()  # a gateway's batches are the gateway's
    answers = {CHAT: partial(chat.answer_body, house.desk), COMPLETIONS: partial(completions.answer_body, house.desk)}
    most = concurrency or settings.batch.max_running
    lines = missing(source, output)
    chunks = iter(lambda: list(itertools.islice(lines, CHUNK_LINES)), [])
    async with house.running():
        engines = {"draft": house.parts.draft, "refine": house.parts.refine}
        while any(engine.load().state == "loading" for engine in engines.values()):  # noqa: ASYNC110  an engine tells nobody
            await asyncio.sleep(WATCH_EVERY_S)
        work = answer_lines(chunks, answers, Caller(), asyncio.Semaphore(most), most, output.add)
        await _while_well(engines, asyncio.create_task(work))


async def _while_well(engines: dict[str, DraftEngine | RefineEngine], work: asyncio.Task[None]) -> None:
    """Wait for some work, unless an engine fails: the gateway would wait for it to come back."""
    try:
        while True:
            for name, engine in engines.items():
                if engine.load().state == "failed":
                    raise Halted(f"The {name} engine failed.")
            if (await asyncio.wait({work}, timeout=WATCH_EVERY_S))[0]:
                return work.result()
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
