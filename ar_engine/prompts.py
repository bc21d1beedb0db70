"""Messages in OpenAI's form turned into what the model reads: token ids, and the pixels of images among them.

The chat template is the checkpoint's own. Images come inside the request, as data: URLs; the server fetches nothing.
"""

import base64
import json
import logging
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

from PIL import Image as Pillow
from PIL import ImageOps
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer

from engine_core.chat import ChatTokenizer

logger = logging.getLogger("draftgate")

MAX_IMAGES = 16  # in a conversation; the pixels of one take up to 31 MB
MAX_IMAGE_BYTES = 20_000_000  # of a file, decoded from base64
MAX_PIXELS = 50_000_000  # of all images; a small file may hold a picture that takes seconds and all memory
MEDIA = ("png", "jpeg", "webp", "gif")
DATA_URL = re.compile(rf"data:image/({'|'.join(MEDIA)})(?:;[^,;]+)*;base64,", re.IGNORECASE)
ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
FIELDS = ("name", "tool_call_id", "reasoning_content", "reasoning")  # go to the template as they are
# what Pillow raises on files that are broken or picture far too much, and warnings where they are errors
BROKEN = (OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, struct.error, zlib.error,
          Pillow.DecompressionBombError, Warning)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An image in a prompt, P patches of F values, those behind the picture's own empty."""

    start: int  # position of its first soft token
    count: int  # its soft tokens
    pixel_values: Tensor  # (P, F) float32, 0 to 1
    position_ids: Tensor  # (P, 2) int64: column and row of a patch; -1 for an empty one


class Prompt(NamedTuple):
    """What the model reads."""

    ids: list[int]
    images: tuple[Image, ...] = ()


class Prompts:
    """Reads messages for one checkpoint."""

    def __init__(self, tokenizer: ChatTokenizer, images: "ImageReader | None" = None) -> None:
        """Take what `load` loads; without `images` the model is for text only."""
        self.tokenizer = tokenizer
        self._images = images

    @classmethod
    def load(cls, checkpoint: str, multimodal: bool) -> "Prompts":
        """Load a checkpoint's tokenizer and, for a multimodal model, its image processor if it has one like Gemma 4's.

        Raises:
            OSError: there is no such checkpoint.
        """
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        return cls(ChatTokenizer(tokenizer), ImageReader.load(checkpoint, tokenizer) if multimodal else None)

    @property
    def takes_images(self) -> bool:
        """Whether messages may hold images."""
        return self._images is not None

    @property
    def fingerprint(self) -> str:
        """The tokenizer's."""
        return self.tokenizer.fingerprint

    def read(
        self,
        messages: Iterable[Mapping[str, Any]],
        tools: Sequence[dict[str, Any]] = (),
        tool_choice: str | dict[str, Any] | None = None,
        reasoning: bool = False,
    ) -> Prompt:
        """The prompt of a conversation, up to where the answer begins.

        Raises:
            ValueError: the model can't be given this; says expected and got.
        """
        if tool_choice not in (None, "auto", "none"):
            raise ValueError(
                f'expected tool_choice "auto" or "none", as nothing here forces a call, got {tool_choice!r}'
            )
        files: list[bytes] = []
        names: dict[str, str] = {}
        told = [self._message(message, names, files) for message in messages]
        ids = self.tokenizer.prompt(told, () if tool_choice == "none" else tools, enable_thinking=reasoning)
        return self._images.place(ids, files) if self._images and files else Prompt(ids)

    def _message(self, message: Mapping[str, Any], names: dict[str, str], files: list[bytes]) -> dict[str, Any]:
        """A message as chat templates take it; `names` of tools by their calls, and `files` of images, are added to."""
        role = ROLES.get(str(message.get("role")))
        if role is None:
            raise ValueError(f"expected one of the roles {', '.join(ROLES)}, got {message.get('role')!r}")
        told = {"role": role} | {field: message[field] for field in FIELDS if message.get(field) is not None}
        content = message.get("content")
        if isinstance(content, list | tuple):
            told["content"] = [self._part(part, files) for part in content]
        elif content is None or isinstance(content, str):
            told["content"] = content
        else:
            raise ValueError(f"expected content that is a text or a list of parts, got {type(content).__name__}")
        if calls := message.get("tool_calls"):
            told["tool_calls"] = [_call(call) for call in calls]
            names |= {call["id"]: call["function"]["name"] for call in told["tool_calls"]}
        if role == "tool" and (name := names.get(str(message.get("tool_call_id")))):
            told.setdefault("name", name)  # Gemma 4 is told the tool's name, which OpenAI's form leaves out
        return told

    def _part(self, part: Mapping[str, Any], files: list[bytes]) -> dict[str, Any]:
        """A part of a content as chat templates take it."""
        kind = part.get("type")
        if kind in ("text", "refusal"):
            return {"type": "text", "text": str(part.get(kind, ""))}
        if kind != "image_url":
            raise ValueError(f"expected parts of type text or image_url, got {kind!r}")
        if self._images is None:
            raise ValueError("expected text only, as this model doesn't see, got an image")
        if len(files) == MAX_IMAGES:
            raise ValueError(f"expected at most {MAX_IMAGES} images, got more")
        files.append(_file(part))
        return {"type": "image"}


class ImageReader:
    """Turns image files into what Gemma 4's vision tower takes, with the checkpoint's own image processor."""

    def __init__(self, processor: Any, tokenizer: Any) -> None:
        """Take an image processor of transformers and a tokenizer that names its image tokens.

        Gemma4Processor would do the same, but it asks for torchvision to read videos, which nothing here does.
        """
        self._processor = processor
        self._token: int = tokenizer.image_token_id  # the template writes one for each image
        self._open: int = tokenizer.boi_token_id
        self._close: int = tokenizer.eoi_token_id

    @classmethod
    def load(cls, checkpoint: str, tokenizer: Any) -> "ImageReader | None":
        """Load by name or folder; None if the checkpoint has no image processor, or one unlike Gemma 4's."""
        try:
            processor = AutoImageProcessor.from_pretrained(checkpoint)
        except (OSError, ValueError, ImportError) as err:  # none, of no known kind, in want of torchvision
            logger.warning("%s reads no images: %s", checkpoint, err)
            return None
        return cls(processor, tokenizer) if "image_position_ids" in processor.model_input_names else None

    def place(self, ids: Sequence[int], files: Sequence[bytes]) -> Prompt:
        """The prompt with each image's placeholder grown into its soft tokens, between the tokens that open and close it.

        Raises:
            ValueError: a file is no image, or the template doesn't show all images.
        """
        if ids.count(self._token) != len(files):
            raise ValueError(
                f"expected {len(files)} images in the prompt, got {ids.count(self._token)} by the template"
            )
        left = MAX_PIXELS
        grown: list[int] = []
        images: list[Image] = []
        for token in ids:
            if token != self._token:
                grown.append(token)
                continue
            picture = _picture(files[len(images)], left)
            left -= picture.width * picture.height
            made = self._processor(images=[picture], return_tensors="pt")
            count = int(made["num_soft_tokens_per_image"][0])
            images.append(Image(len(grown) + 1, count, made["pixel_values"][0], made["image_position_ids"][0]))
            grown += [self._open, *[token] * count, self._close]
        return Prompt(grown, tuple(images))


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A past call, with its arguments as an object instead of JSON."""
    function = call.get("function") or {}
    text = function.get("arguments") or "{}"
    try:
        arguments = json.loads(text)
    except (ValueError, TypeError, RecursionError) as err:
        raise ValueError(f"expected arguments of a tool call as JSON, got {text!r:.100}") from err
    if not isinstance(arguments, dict):
        raise ValueError(f"expected arguments of a tool call as a JSON object, got {text!r:.100}")
    name = str(function.get("name", ""))
    return {"id": str(call.get("id", "")), "type": "function", "function": {"name": name, "arguments": arguments}}


def _file(part: Mapping[str, Any]) -> bytes:
    """The image file in a part of a content."""
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, Mapping) else image
    if not isinstance(url, str) or not (head := DATA_URL.match(url)):
        raise ValueError(
            f"expected an image as a data: URL with base64 of {', '.join(MEDIA)}, as nothing is fetched, got {url!r:.50}"
        )
    text = url[head.end() :]
    if len(text) * 3 // 4 > MAX_IMAGE_BYTES:
        raise ValueError(f"expected an image of at most {MAX_IMAGE_BYTES} bytes, got about {len(text) * 3 // 4}")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as err:
        raise ValueError(f"expected an image in base64, got: {err}") from err


def _picture(file: bytes, most: int) -> Pillow.Image:
    """The picture in an image file, upright, if it has at most so many pixels; of a moving one the first frame."""
    try:
        with Pillow.open(BytesIO(file), formats=[kind.upper() for kind in MEDIA]) as image:
            width, height = image.size
            if width * height <= most:
                return ImageOps.exif_transpose(image).convert("RGB")
    except BROKEN as err:
        raise ValueError(f"expected an image of {', '.join(MEDIA)}, got: {err}") from err
    raise ValueError(f"expected images of at most {MAX_PIXELS} pixels together, got one of {width} × {height}")
