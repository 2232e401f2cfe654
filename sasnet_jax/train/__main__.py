"""`python -m sasnet_jax.train`."""

from sasnet_jax import cli, train
from sasnet_jax.model import compilation
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.train import loop

if __name__ == "__main__":
    compilation.set_up()
    cli.main(TrainConfig, loop.train, train.__doc__)
