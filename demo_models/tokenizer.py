"""One byte-fallback BPE tokenizer and one chat template for both demo models, in the checkpoints' own form."""

import json
from itertools import islice

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo_models.tasks import conversations

PAD, EOS, BOS, UNK = "<pad>", "<eos>", "<bos>", "<unk>"
TURN, TURN_END = "<|turn>", "<turn|>"
IMAGE, BOI, EOI = "<|image|>", "<|image>", "<image|>"  # the configs must name image tokens; the demo never uses them
SPECIAL = (PAD, EOS, BOS, UNK, TURN, TURN_END, IMAGE, BOI, EOI)
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
VOCAB_SIZE = 1024
PIECES = r"▁?[0-9]|▁?[A-Za-z]+|▁?[^A-Za-z0-9▁]+|▁"  # "▁" stands for a space

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] | trim }}{% endfor %}{% endif %}"
    "{{ '<turn|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)


def make_tokenizer(seed: int = 0, samples: int = 20_000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the task generator's training split.

    A piece holds one digit, letters, or signs, with the space before it; what no piece covers falls back to UTF-8 bytes, so
    any text encodes. All text decodes back to itself but "▁" (U+2581), which stands for a space as in SentencePiece.
    """
    pieces = pre_tokenizers.Split(Regex(PIECES), "isolated")
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pieces
    corpus = (
        text
        for conversation in islice(conversations("train", seed, complex_share=0.4), samples)
        for text in (*(message["content"] for message in conversation.messages), conversation.answer)
    )
    learner.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE - len(SPECIAL) - len(BYTES),
            initial_alphabet=[chr(code) for code in range(33, 127)] + ["▁", "\n"],
            show_progress=False,
        ),
    )
    learned = sorted(learner.get_vocab().items(), key=lambda entry: entry[1])
    vocab = {piece: i for i, piece in enumerate((*SPECIAL, *BYTES, *(piece for piece, _ in learned)))}
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]

    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token=UNK))
    tokenizer.normalizer = learner.normalizer
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
