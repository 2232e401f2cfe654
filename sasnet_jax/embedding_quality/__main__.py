"""`python -m sasnet_jax.embedding_quality`."""

from sasnet_jax import cli, embedding_quality
from sasnet_jax.embedding_quality.command import EmbeddingQualityConfig, run

if __name__ == "__main__":
    cli.main(EmbeddingQualityConfig, run, embedding_quality.__doc__)
