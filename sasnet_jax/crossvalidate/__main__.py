"""`python -m sasnet_jax.crossvalidate`."""

from sasnet_jax import cli, crossvalidate
from sasnet_jax.crossvalidate.command import CrossvalidateConfig, run
from sasnet_jax.model import compilation

if __name__ == "__main__":
    compilation.set_up()
    cli.main(CrossvalidateConfig, run, crossvalidate.__doc__)
