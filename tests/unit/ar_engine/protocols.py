"""Small tokenizers with the markers and chat protocols of Gemma 4 and of Qwen 3, templates written for these tests."""

from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo_models.tokenizer import make_tokenizer

GEMMA_NAMED = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "escape_token": '<|"|>',
}
GEMMA_MARKERS = [
    *("<|channel>", "<channel|>", "<|think|>", "<|tool>", "<tool|>"),
    *("<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"),
]
GEMMA_TEMPLATE = """
{%- macro told(value) -%}
{%- if value is string %}<|"|>{{ value }}<|"|>
{%- elif value is boolean %}{{ 'true' if value else 'false' }}
{%- elif value is none %}null
{%- elif value is mapping %}{
{%- for key in value %}{{ key }}:{{ told(value[key]) }}{{ ',' if not loop.last }}{% endfor %}}
{%- elif value is sequence %}[{% for item in value %}{{ told(item) }}{{ ',' if not loop.last }}{% endfor %}]
{%- else %}{{ value }}{% endif -%}
{%- endmacro -%}
{%- macro shown(content) -%}
{%- if content is string %}{{ content | trim }}
{%- else %}{% for part in content %}
{%- if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] | trim }}{% endif %}
{%- endfor %}{% endif -%}
{%- endmacro -%}
{{ bos_token }}
{%- if enable_thinking or tools %}{{ '<|turn>system\\n' }}{% if enable_thinking %}<|think|>{% endif %}
{%- for tool in tools or [] %}<|tool>declaration:{{ tool['function']['name'] }}{{ told(tool['function']['parameters']) }}<tool|>
{%- endfor %}{{ '<turn|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message['role'] == 'tool' %}<|tool_response>response:{{ message['name'] }}{value:{{ told(message['content']) }}}
{{- '<tool_response|>' }}
{%- else %}{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
{%- if message['reasoning_content'] %}{{ '<|channel>thought\\n' + message['reasoning_content'] + '\\n<channel|>' }}{% endif %}
{%- for call in message['tool_calls'] %}<|tool_call>call:{{ call['function']['name'] }}
{{- told(call['function']['arguments']) }}<tool_call|>{% endfor %}
{%- if message['content'] %}{{ shown(message['content']) }}{% endif %}
{%- if not message['tool_calls'] %}{{ '<turn|>\\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and messages[-1]['role'] != 'tool' %}{{ '<|turn>model\\n' }}
{%- if not enable_thinking %}{{ '<|channel>thought\\n<channel|>' }}{% endif %}{% endif %}"""

QWEN_TEMPLATE = """
{%- if tools %}<|im_start|>system
{%- for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}
{%- for call in message['tool_calls'] %}{{ '\\n<tool_call>\\n' + (call['function'] | tojson) + '\\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}
{%- if not enable_thinking %}{{ '\\n</think>\\n\\n' }}{% endif %}{% endif %}"""

CORPUS = ["the quick brown fox, naïve café 日本語 🎉", '{"name": "look_up", "arguments": {"city": "Paris", "days": 3}}']


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-fallback vocabulary in which all markers are special tokens."""
    base = make_tokenizer(samples=500)
    return PreTrainedTokenizerFast(
        tokenizer_object=base.backend_tokenizer,
        bos_token=base.bos_token,
        eos_token=base.eos_token,
        pad_token=base.pad_token,
        unk_token=base.unk_token,
        extra_special_tokens=GEMMA_MARKERS,
        model_specific_special_tokens=GEMMA_NAMED,
        chat_template=GEMMA_TEMPLATE,
        padding_side="left",
    )


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary in which the markers of thoughts and calls are added tokens, but not special ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<|im_start|>", "<|im_end|>")])
    markers = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in markers])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=QWEN_TEMPLATE)


def stripping_tokenizer() -> PreTrainedTokenizerFast:
    """Decodes as Llama 2's: the space before the first word of a text is dropped, and only there."""
    base = make_tokenizer(samples=500)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    base.backend_tokenizer.decoder = decoders.Sequence(steps)
    return base


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte fallback": gemma_tokenizer,
    "byte level": qwen_tokenizer,
    "a first space dropped": stripping_tokenizer,
}
