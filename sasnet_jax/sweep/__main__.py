"""`python -m sasnet_jax.sweep`."""

from sasnet_jax import cli, sweep
from sasnet_jax.model import compilation
from sasnet_jax.sweep.command import SweepConfig, run

if __name__ == "__main__":
    compilation.set_up()
    cli.main(SweepConfig, run, sweep.__doc__)
