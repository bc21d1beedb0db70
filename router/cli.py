"""The `draftgate` command: finds the package that does the work and hands over.

A command is the `main(argv)` of a module, imported only when it is asked for, so that no command
pays for the libraries of another.
"""

import argparse
import importlib

from router.version import version

COMMANDS = {
    "serve": ("router.server", "run the gateway"),
    "keys": ("router.keys", "make, list and revoke API keys"),
    "batch": ("router.batch", "answer a file of requests"),
    "plan": ("router.plan", "tell whether two models fit a GPU"),
    "train": ("classifiers.train", "train the classifiers on labelled outcomes"),
    "calibrate": ("classifiers.calibrate", "set the acceptance threshold to a quality target"),
    "card": ("classifiers.card", "measure the classifiers on labelled outcomes, in Markdown with pictures"),
    "convert": ("diffusion_engine.convert", "write a draft model's checkpoint in another form"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    listing = "\n".join(f"  {name:12}{words}" for name, (_, words) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="draftgate",
        description="A hybrid LLM router: drafts first, refines where needed.",
        epilog=f"commands:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"draftgate {version()}")
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see draftgate COMMAND --help")
    options = parser.parse_args(argv)
    module = importlib.import_module(COMMANDS[options.command][0])
    return module.main(options.arguments)
