"""The same weights in our engine and in transformers: prepared checkpoints, and each system asked one thing at a time."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, DiffusionGemmaForBlockDiffusion

from demo_models.tasks import Conversation
from diffusion_engine import DiffusionGemmaModel
from diffusion_engine.api import DraftSettings
from diffusion_engine.convert import convert


class Answer(NamedTuple):
    """What a system said, and the denoising steps it took."""

    text: str
    steps: int


class Checkpoint(NamedTuple):
    """One set of weights, in the form that each side takes, and the limits that both work under."""

    form: str  # how it is shipped: plain, or the quantisation's name
    ours: str  # folder
    theirs: str  # folder; plain
    steps: int  # most denoising steps a canvas, as shipped
    tokens: int  # most tokens of an answer

    @classmethod
    def prepare(cls, shipped: Path, build: Path, most_steps: int) -> "Checkpoint":
        """Decode quantised weights for transformers, and let our engine take up to `most_steps`.

        Args:
            shipped: a checkpoint's folder.
            build: an empty folder.
            most_steps: the engine takes no more than the checkpoint says, so its copy says this.
        """
        config = json.loads((shipped / "config.json").read_text())
        said = json.loads((shipped / "generation_config.json").read_text())
        form = (config.get("quantization_config") or {}).get("quant_method", "plain")
        ours, plain = build / "ours", build / "plain"
        ours.mkdir()
        for file in shipped.iterdir():
            (ours / file.name).symlink_to(file.resolve())
        (ours / "generation_config.json").unlink()
        lifted = {**said, "max_denoising_steps": max(most_steps, said["max_denoising_steps"])}
        (ours / "generation_config.json").write_text(json.dumps(lifted))
        if form != "plain":
            convert(shipped, plain, "plain", torch.float32)
        theirs = shipped if form == "plain" else plain
        return cls(form, str(ours), str(theirs), said["max_denoising_steps"], said["max_new_tokens"])

    def settings(self, max_waiting: int = 256) -> DraftSettings:
        """Our engine's."""
        threads = torch.get_num_threads()  # as many as transformers has
        return DraftSettings(model=self.ours, max_tokens=self.tokens, max_waiting=max_waiting, threads=threads)


class Ours:
    """The engine as a library, in the caller's thread."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model = DiffusionGemmaModel.from_pretrained(checkpoint.ours, max_tokens=checkpoint.tokens)

    def answer(self, case: Conversation, seed: int, steps: int, give_up: bool) -> Answer:
        """From messages to text."""
        options: dict[str, Any] = {"seed": seed, "max_steps": steps, "give_up": give_up, "prefix_key": None}
        result = self._model.drafts([list(case.messages)], **options)[0][0]
        return Answer(result.text, sum(result.signals.steps))


class Theirs:
    """transformers' own `generate` in float32, with its default experts, attention and cache."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokens = checkpoint.tokens
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint.theirs)
        self._model: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(checkpoint.theirs, dtype=torch.float32)
        self._model.eval()
        # `generate` counts the steps of each canvas, but tells only tokens per step, which is 0 for an answer without any.
        self._model._compute_tokens_per_forward = lambda ids, steps, *_: steps
        self.forwards = 0  # of the decoder, for answers of one canvas
        self.options = {
            "experts": self._model.config.text_config._experts_implementation,
            "attention": self._model.config._attn_implementation,
        }

    def answers(self, cases: Sequence[Conversation], seed: int, steps: int) -> list[Answer]:
        """From messages to text, in one batch padded on the left; it goes on until its last canvas is done."""
        inputs = self._tokenizer.apply_chat_template(
            [list(case.messages) for case in cases],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            padding=True,
            padding_side="left",
        )
        torch.manual_seed(seed)
        output = self._model.generate(**inputs, max_new_tokens=self._tokens, max_denoising_steps=steps)
        taken = output.tokens_per_forward.tolist()
        self.forwards += max(taken)
        said = output.sequences[:, inputs["input_ids"].shape[1] :]
        texts = self._tokenizer.batch_decode(said, skip_special_tokens=True)
        return [Answer(*pair) for pair in zip(texts, taken, strict=True)]

    def answer(self, case: Conversation, seed: int, steps: int) -> Answer:
        """One of them."""
        return self.answers([case], seed, steps)[0]
