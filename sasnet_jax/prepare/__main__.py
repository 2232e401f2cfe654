"""`python -m sasnet_jax.prepare`."""

from sasnet_jax import cli, prepare
from sasnet_jax.prepare.command import PrepareConfig, run

if __name__ == "__main__":
    cli.main(PrepareConfig, run, prepare.__doc__)
