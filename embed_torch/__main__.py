"""`python -m embed_torch`: a corpus folder in, an embedding store out (docs/formats.md)."""

from embed_torch import cli, embed
from embed_torch.config import EmbedConfig

if __name__ == "__main__":
    cli.main(EmbedConfig, embed.run, "Corpus folder -> embedding store, once.")
