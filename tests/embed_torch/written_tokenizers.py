"""Small real tokenizers, trained on a few reviews and written as Hugging Face folders."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from embed_torch.prompts import PHI3

VOCAB_SIZE = 320  # of a test model: no tokenizer written here gives an id from here up
REVIEWS = [
    "Great food, and the waiter was kind. We will come back with all our friends!",
    "The soup was cold and the service slow; I waited for an hour. Never again.",
    "best pizza in town: thin, crisp and cheap. the wine is good too, 5 stars",
    "We've been here twice, and it's still the best brunch that you can get.",
]
PHI3_CONTROLS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
# The template of the first Phi-3 checkpoints: a system message leaves no trace.
DROPS_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '<|end|>\n<|assistant|>\n' }}{% endif %}{% endfor %}"
)
# Gemma's template.
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + DROPS_SYSTEM
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Llama 2's template: no control token is next to the review.
INST = (
    "{{ bos_token + '[INST] <<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n'"
    " + messages[1]['content'] + ' [/INST]' }}"
)
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_phi3_tokenizer(
    folder: Path, *, chat_template: str | None = PHI3, bos: bool = True
) -> Path:
    """Like Phi-3's: SentencePiece BPE with byte fallback, every section behind its own "▁"."""
    tokenizer = _sentencepiece()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    # As in Phi-3's own files: `</s>` is not flagged as special, and most swallow what follows.
    for name, special, rstrip in [
        ("<unk>", True, False),
        ("<s>", True, False),
        ("</s>", False, True),
        *((name, True, name != "<|endoftext|>") for name in PHI3_CONTROLS),
    ]:
        token = AddedToken(name, rstrip=rstrip, normalized=False, special=special)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    names = {"unk_token": "<unk>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return _save(folder, tokenizer, chat_template, names | ({"bos_token": "<s>"} if bos else {}))


def write_metaspace_tokenizer(
    folder: Path,
    *,
    chat_template: str | None = PHI3,
    bos: bool = True,
    rstrip: bool = False,
    around: str = "<s> $A",
) -> Path:
    """Like Llama 2's in transformers 5: only the first section gets a "▁".

    Args:
      folder: to write.
      chat_template: its own, if any.
      bos: it names `<s>` as its BOS.
      rstrip: control tokens swallow white space after them.
      around: what it puts around a text.
    """
    tokenizer = _sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    names = ("<unk>", "<s>", "</s>", *PHI3_CONTROLS)
    tokenizer.add_special_tokens([AddedToken(name, rstrip=rstrip) for name in names])
    tokenizer.post_processor = _around(around, tokenizer)
    names = {"unk_token": "<unk>", "eos_token": "</s>"} | ({"bos_token": "<s>"} if bos else {})
    return _save(folder, tokenizer, chat_template, names)


def write_byte_level_tokenizer(
    folder: Path, *, chat_template: str | None = CHATML, bos: bool = False, around: str = ""
) -> Path:
    """Like Qwen's: byte-level BPE without BOS; with `bos`, like Llama 3's, which adds it.

    `around` is what it puts around a text else.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=VOCAB_SIZE - 8, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(REVIEWS, trainer)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(["<|begin_of_text|>"] if bos else [])]
    tokenizer.add_special_tokens(names)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False, special=False)])
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    if bos:
        tokenizer.post_processor = _around("<|begin_of_text|> $A", tokenizer)
        config["bos_token"] = "<|begin_of_text|>"
    elif around:
        tokenizer.post_processor = _around(around, tokenizer)
    return _save(folder, tokenizer, chat_template, config)


def write_unigram_tokenizer(folder: Path) -> Path:
    """Like XLM-RoBERTa's, an encoder: its pieces hold `<s>`, so that plain text can spell it."""
    letters = sorted(
        {letter for review in REVIEWS for letter in review if letter != " "} | {*"</>"}
    )
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(name, 0.0) for name in specials] + [("▁", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces + [(x, -5.0) for x in letters], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = _around("<s> $A </s>", tokenizer)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return _save(folder, tokenizer, None, names)


def _sentencepiece() -> Tokenizer:
    """A BPE over <unk>, <s>, </s>, every byte, and pieces learned from the reviews."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(REVIEWS, BpeTrainer(vocab_size=53, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(learned["vocab"], key=learned["vocab"].get) + ["\n", "\n\n"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [*(tuple(merge) for merge in learned["merges"]), ("\n", "\n")]
    return Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )


def _around(template: str, tokenizer: Tokenizer) -> TemplateProcessing:
    names = [name for name in template.split() if name != "$A"]
    return TemplateProcessing(
        single=template, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )


def _save(folder: Path, tokenizer: Tokenizer, chat_template: str | None, names: dict) -> Path:
    assert max(tokenizer.get_vocab().values()) < VOCAB_SIZE
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
