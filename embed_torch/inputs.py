"""Turns texts into token ids of whole inputs: prompt and review, truncated to the window."""

import dataclasses
import functools
from typing import Literal

from embed_torch import prompts
from embed_torch.checkpoint import Checkpoint
from embed_torch.cli import UserError
from embed_torch.config import EncoderConfig
from embed_torch.limits import within_limits
from embed_torch.prompts import Prompt


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """Tokenized texts.

    Attributes:
      of: what the texts are.
      rows: row numbers of the reviews, or of the category names.
      ids: token ids of each input.
      uncut: tokens of each input before truncation.
      around: tokens of the prompt before and after each text.
    """

    of: Literal["review", "category"]
    rows: list[int]
    ids: list[list[int]]
    uncut: list[int]
    around: tuple[int, int]


class Tokenization:
    """Turns the texts of a store into inputs.

    Attributes:
      prompt: the prompt of reviews; category names have neither an instruction nor a prefix.
      window: the most tokens of an input.
    """

    def __init__(self, checkpoint: Checkpoint, config: EncoderConfig):
        """Makes the prompts.

        Raises:
          UserError: the tokenizer, --template or --prefix does not fit the model, or --max_tokens
            is beyond its positions.
        """
        self.prompt, self._plain = within_limits(
            f"the tokenizer or the chat template of {checkpoint.name}",
            lambda: _make_prompts(checkpoint, config),
        )
        positions = checkpoint.positions
        if config.max_tokens > positions:
            raise UserError(
                f"--max_tokens={config.max_tokens} is more than the {positions} positions "
                f"of {checkpoint.name}"
            )
        self.window = config.max_tokens or checkpoint.window
        self._truncate = config.truncate
        self._decode = checkpoint.tokenizer.decode
        # The input for an empty text, if the model has no BOS and so no token is left.
        self._nothing = [checkpoint.tokenizer.eos_token_id or 0]

    def of_reviews(self, rows: list[int], texts: list[str]) -> Inputs:
        """The inputs of some reviews; raises UserError for one that --truncate=error refuses."""
        return self._inputs(self.prompt, "review", rows, texts)

    def text(self, review: str) -> str:
        """A review's input as the model sees it, truncated and with its control tokens."""
        return self._decode(self.of_reviews([0], [review]).ids[0])

    def of_categories(self, names: list[str]) -> Inputs:
        """The inputs of category names."""
        return self._inputs(self._plain, "category", list(range(len(names))), names)

    def _inputs(
        self,
        prompt: Prompt,
        of: Literal["review", "category"],
        rows: list[int],
        texts: list[str],
    ) -> Inputs:
        around = (len(prompt.prefix_ids), len(prompt.suffix_ids))
        inputs = Inputs(of, rows, [], [], around)
        for row, text_ids in zip(rows, prompt.tokenize(texts), strict=True):
            try:
                ids = prompt.ids(prompt.truncate(text_ids, self.window, self._truncate))
            except UserError as error:
                raise UserError(f"{of} {row}: {error}") from None
            inputs.ids.append(ids or self._nothing)
            inputs.uncut.append(len(text_ids) + sum(around))
        return inputs


def _make_prompts(checkpoint: Checkpoint, config: EncoderConfig) -> tuple[Prompt, Prompt]:
    """The prompts of the reviews and of the category names."""
    tokenizer, modules = checkpoint.tokenizer, checkpoint.modules
    prompts.check_vocabulary(tokenizer, checkpoint.config.vocab_size)
    # A sentence-transformers model reads what its tokenizer returns.
    make_prompt = functools.partial(
        prompts.make_prompt,
        tokenizer,
        causal=checkpoint.causal,
        as_tokenizer=modules.given,
    )
    prefix = modules.prefix if config.prefix is None else config.prefix
    of_reviews = make_prompt(
        instruction=config.instruction,
        template=config.template,
        prefix="" if config.instruction else prefix,
    )
    return of_reviews, make_prompt()
