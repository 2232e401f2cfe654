"""Makes prompts: the tokens before and after every review (docs/design.md 4.1).

In: a fast tokenizer, an instruction, a chat template. Out: token ids in three segments, a fixed
prefix, the review's own and a fixed suffix. A review is tokenized as plain text and never passes
through the template, so its tokens are known, only they are truncated, and no review can end its
turn.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from embed_torch.cli import UserError
from embed_torch.files import require_file
from embed_torch.manifest import Truncate

# The format that Phi-3 was trained on; its first checkpoints' template drops the system message.
PHI3 = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_PHI3_CONTROLS = {"<|system|>", "<|user|>", "<|assistant|>", "<|end|>"}
_REMEDY = "--template=phi3 for a Phi-3, else --template=FILE with a Jinja template"
_TEMPLATE_LENGTH = 1_000_000
# Some templates print today's date, but a prompt must be the same tomorrow.
_FIXED_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
_REVIEW = "QzTheReviewStandsHereQz"
_PROBES = (
    "The soup was cold, but the waiter could not have been kinder!",
    "5 stars. we've been here twice:\n\nonce at noon, once at night (too dark)",
)
# Not every control token is flagged as special: in Phi-3's own tokenizer `</s>` is not.
_MARKUP = re.compile(r"<.+>|\[.+\]", re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True)
class PlainTokenizer:
    """Tokenizes a text as text: it never gives a control token, whatever the text spells."""

    backend: tokenizers.Tokenizer
    controls: dict[int, list[int]]  # id of a control token -> ids of its spelling
    anchor: str = ""  # put before each text while it is tokenized, and then cut off
    gap: str = ""  # white space between them, part of the text: it may join its first token

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, untruncated; none for an empty text."""
        self.backend.encode_special_tokens = True  # at every call, because pickling forgets it
        anchored = [self.anchor, *(self.anchor + self.gap + text for text in texts)]
        encoded = self.backend.encode_batch_fast(anchored, add_special_tokens=False)
        lead, *rows = [row.ids for row in encoded]
        for row, ids in enumerate(rows):
            if ids[: len(lead)] != lead:  # the text merges with the anchor: tokenize it alone
                (alone,) = self.backend.encode_batch_fast([texts[row]], add_special_tokens=False)
                ids = lead + alone.ids
            ids = ids[len(lead) :]
            # A Unigram model finds `<s>` among its pieces, even where special tokens are split.
            if not self.controls.keys().isdisjoint(ids):
                ids = [part for token in ids for part in self.controls.get(token, [token])]
            rows[row] = ids
        return rows


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """The fixed tokens around every review, and how a review is tokenized between them.

    For ordinary reviews, prefix + review + suffix are BOS and the tokens that the model's tokenizer
    gives for the whole rendered conversation. They differ if a review begins or ends with white
    space that a control token would swallow, or if the template and the review would share a token.
    """

    prefix_ids: list[int]
    suffix_ids: list[int]
    plain: PlainTokenizer
    instruction: str | None = None
    template_sha256: str | None = None  # of the Jinja text
    instruction_sha256: str | None = None
    template: str | None = None  # the Jinja text
    prefix: str = ""

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of the reviews alone, untruncated; none for an empty review."""
        return self.plain.tokenize(texts)

    def truncate(self, review_ids: list[int], window: int, how: Truncate) -> list[int]:
        """Truncates a review so that it fits, prompt included, into `window` tokens.

        "head" and "tail" keep that end, "head_tail" half from each (the head's half is the larger).

        Raises:
          UserError: the prompt leaves no room, or `how` is "error" and the review is too long.
        """
        around = len(self.ids([]))
        if (room := window - around) < 1:
            raise UserError(
                f"{around} tokens of prompt leave no room in {window} "
                "(give more --max_tokens, or a shorter --instruction or --prefix)"
            )
        if len(review_ids) <= room:
            return review_ids
        if how == "error":
            whole = around + len(review_ids)
            raise UserError(f"{whole} tokens do not fit into {window} (--truncate=head cuts them)")
        tail = {"head": 0, "tail": room, "head_tail": room // 2}[how]
        return review_ids[: room - tail] + review_ids[len(review_ids) - tail :]

    def ids(self, review_ids: list[int]) -> list[int]:
        """The model's whole input."""
        return self.prefix_ids + review_ids + self.suffix_ids


def make_prompt(
    tokenizer: Any,
    *,
    causal: bool,
    instruction: str = "",
    template: str = "",
    prefix: str = "",
    as_tokenizer: bool = False,
) -> Prompt:
    """Finds the tokens around a review.

    Args:
      tokenizer: a fast tokenizer of transformers.
      causal: whether the model is a decoder, which reads BOS and the text; an encoder reads what
        its tokenizer puts around a text.
      instruction: the system message; empty for none, and then no chat template either.
      template: empty for the model's own, "phi3" for `PHI3`, a Jinja text, or a file's path.
      prefix: plain text before every review that is not instructed.
      as_tokenizer: whether a decoder, too, reads what its tokenizer puts around a text, such as
        an end-of-text token that the model was trained to pool.

    Raises:
      UserError: an encoder is instructed; there is no template, or it does not fit or leaves the
        instruction out; the instruction or the prefix spells a control token.
    """
    plain = _plain_tokenizer(tokenizer)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if not instruction:
        text = plain.tokenize(_PROBES)[0]
        whole = bos + text if causal and not as_tokenizer else tokenizer(_PROBES[0])["input_ids"]
        return _prefixed(Prompt(*_split_at(whole, text), plain), tokenizer, prefix)
    if not causal:
        raise UserError("--instruction needs a causal language model with a chat template")
    jinja = _read_template(tokenizer, template)
    before, after = _render(tokenizer, jinja, instruction)

    def tokenized(text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        while bos and ids[:1] == bos:  # written by the template, or missing
            ids = ids[1:]
        return ids

    wholes = [bos + tokenized(before + probe + after) for probe in _PROBES]
    for anchor in ("", "\n"):  # alone, a text may get a "▁" that it does not get inside a prompt
        anchored = dataclasses.replace(plain, anchor=anchor)
        reviews = anchored.tokenize(_PROBES)
        prefix_ids, suffix_ids = _split_at(wholes[0], reviews[0])
        if wholes == [prefix_ids + review + suffix_ids for review in reviews]:
            break
    else:
        anchored, prefix_ids, suffix_ids = plain, bos + tokenized(before), tokenized(after)
    # Compared without white space and control tokens; an instruction must not spell the latter.
    segments = (prefix_ids, suffix_ids, plain.tokenize([instruction])[0])
    *carried, wanted = ["".join(plain.backend.decode(ids).split()) for ids in segments]
    if not any(wanted in text for text in carried):
        raise UserError("--instruction spells a control token of this model: reword it")
    of_template, of_instruction = (
        hashlib.sha256(text.encode()).hexdigest() for text in (jinja, instruction)
    )
    return Prompt(prefix_ids, suffix_ids, anchored, instruction, of_template, of_instruction, jinja)


def _prefixed(prompt: Prompt, tokenizer: Any, prefix: str) -> Prompt:
    """A prompt with `prefix` before every review, tokenized together with it."""
    if not prefix:
        return prompt
    if tokenizer(prefix, add_special_tokens=False)["input_ids"] != prompt.tokenize([prefix])[0]:
        raise UserError("--prefix spells a control token of this model: reword it")
    anchor = prefix.rstrip()
    ids = prompt.prefix_ids + prompt.tokenize([anchor])[0]
    plain = dataclasses.replace(prompt.plain, anchor=anchor, gap=prefix[len(anchor) :])
    return dataclasses.replace(prompt, prefix_ids=ids, plain=plain, prefix=prefix)


def check_vocabulary(tokenizer: Any, embedding_rows: int) -> None:
    """Raises UserError for a tokenizer that can give an id without an embedding."""
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= embedding_rows:
        raise UserError(
            f"the tokenizer's {token!r} is {largest}, past the model's {embedding_rows} embeddings"
        )


def _plain_tokenizer(tokenizer: Any) -> PlainTokenizer:
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    controls = {
        number: token.content
        for number, token in backend.get_added_tokens_decoder().items()
        if token.special or _MARKUP.fullmatch(token.content)
    }
    backend.add_special_tokens(list(controls.values()))
    controls.pop(tokenizer.unk_token_id, None)  # characters without a token give it
    plain = PlainTokenizer(backend, {})
    spelled = {number: plain.tokenize([text[:1], text[1:]]) for number, text in controls.items()}
    return PlainTokenizer(
        backend, {number: head + rest for number, (head, rest) in spelled.items()}
    )


def _split_at(whole: list[int], part: list[int]) -> tuple[list[int], list[int]]:
    """The ids before and after the last `part` in `whole`; all of them before, if there is none."""
    for start in range(len(whole) - len(part), -1, -1):
        if whole[start : start + len(part)] == part:
            return whole[:start], whole[start + len(part) :]
    return whole, []


def _read_template(tokenizer: Any, template: str) -> str:
    if template == "phi3":
        for control in sorted(_PHI3_CONTROLS - tokenizer.get_added_vocab().keys()):
            raise UserError(f"--template=phi3: {control} is no token of {tokenizer.name_or_path}")
        return PHI3
    if "{{" in template or "{%" in template:
        return template
    try:
        if not template:
            return tokenizer.get_chat_template()
        return require_file(
            Path(template), "give --template a Jinja file, Jinja text or phi3"
        ).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--template={template} cannot be read: {error}") from None
    except ValueError:
        raise UserError(f"{tokenizer.name_or_path} has no chat template: {_REMEDY}") from None


def _render(tokenizer: Any, jinja: str, instruction: str) -> list[str]:
    """The conversation's text before and after the review."""
    if len(jinja) > _TEMPLATE_LENGTH:
        raise UserError(f"the chat template has over {_TEMPLATE_LENGTH:,} characters: {_REMEDY}")
    messages = [{"role": "system", "content": instruction}, {"role": "user", "content": _REVIEW}]
    try:
        rendered = tokenizer.apply_chat_template(
            messages, chat_template=_FIXED_DAY + jinja, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # jinja2 passes on whatever a template's expressions raise
        why = str(error) or type(error).__name__
        raise UserError(f"the chat template refuses --instruction ({why}): {_REMEDY}") from None
    parts = rendered.split(_REVIEW)
    if len(parts) != 2 or not any(instruction.strip() in part for part in parts):
        raise UserError(f"the chat template leaves out --instruction or the review: {_REMEDY}")
    return parts
