"""A streamed completion, chunk by chunk."""

from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

from msgspec import UNSET, UnsetType

from router.api.answers import to_info, to_usage
from router.api.schemas.completions import TextChoice, TextCompletion
from router.api.schemas.shared import DraftgateInfo, WireUsage
from router.api.stream import DONE, sse
from router.api.text_convert import Place, to_finish, to_text_logprobs
from router.errors import describe
from router.serving.messages import ChoiceEnd, Decided, Delta, Event, Finished, Usage

Numbered = tuple[int, Event]  # of which prompt


class TextChunks:
    """Turns the events of all prompts into chunks; each prompt's last one says which route its answer took."""

    def __init__(
        self,
        completion_id: str,
        created: int,
        places: Sequence[Place],
        fingerprint: str | None,
        *,
        echo: bool,
        with_usage: bool,
    ) -> None:
        self._id = completion_id
        self._created = created
        self._places = places
        self._fingerprint = fingerprint
        self._echo = echo
        self._with_usage = with_usage
        self._usages: list[Usage] = []
        self._chars = Counter[int]()  # of each choice's tokens so far
        self._ended: dict[int, ChoiceEnd] = {}  # held back for each prompt, as it may be the prompt's last

    async def stream(self, first: Numbered, events: AsyncGenerator[Numbered, None]) -> AsyncGenerator[bytes, None]:
        """Server-sent events up to [DONE], or to an error event."""
        async with aclosing(events):
            try:
                for chunk in self._of(*first):
                    yield sse(chunk)
                async for number, event in events:
                    for chunk in self._of(number, event):
                        yield sse(chunk)
            except Exception as error:  # noqa: BLE001  described and logged like any other
                _, body, _ = describe(error)
                yield sse(body)
                return
            if self._with_usage:
                yield sse(self._chunk(usage=to_usage(self._usages)))
            yield DONE

    def _of(self, number: int, event: Event) -> Iterator[TextCompletion]:
        prompt, ask = self._places[number]
        if number in self._ended and not isinstance(event, Finished):
            yield self._end(number, self._ended.pop(number))
        match event:
            case Decided() if self._echo:
                for at in range(ask.n):
                    yield self._chunk(TextChoice(text=prompt, index=number * ask.n + at))
            case Delta(choice=at) if event.text or event.logprobs:
                index = number * ask.n + at
                logprobs = to_text_logprobs(ask, event.logprobs, self._chars[index])
                self._chars[index] += sum(len(token.token) for token in event.logprobs)
                yield self._chunk(TextChoice(text=event.text, index=index, logprobs=logprobs))
            case ChoiceEnd():
                self._ended[number] = event
            case Finished(usage=usage, decision=decision):
                self._usages.append(usage)
                yield self._end(number, self._ended.pop(number), [to_info(ask.request_id, decision, usage)])
            case _:
                pass

    def _end(self, number: int, event: ChoiceEnd, infos: list[DraftgateInfo] | UnsetType = UNSET) -> TextCompletion:
        index = number * self._places[number].ask.n + event.choice
        return self._chunk(TextChoice(text="", index=index, finish_reason=to_finish(event.finish_reason)), infos=infos)

    def _chunk(
        self,
        *choices: TextChoice,
        usage: WireUsage | None = None,
        infos: list[DraftgateInfo] | UnsetType = UNSET,
    ) -> TextCompletion:
        return TextCompletion(
            id=self._id,
            created=self._created,
            model=self._places[0].ask.model,
            system_fingerprint=self._fingerprint,
            choices=list(choices),
            usage=usage if self._with_usage else UNSET,
            draftgate=infos,
        )
