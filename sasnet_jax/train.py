"""`python -m sasnet_jax.train`: corpus and store in, a run folder out (docs/formats.md)."""

from sasnet_jax import cli
from sasnet_jax.training import compilation, loop
from sasnet_jax.training.config import TrainConfig

if __name__ == "__main__":
    compilation.set_up()
    cli.main(TrainConfig, loop.train, "Corpus + embedding store -> trained run.")
