"""`python -m sasnet_jax.baselines`."""

from sasnet_jax import baselines, cli
from sasnet_jax.baselines.command import BaselinesConfig, run

if __name__ == "__main__":
    cli.main(BaselinesConfig, run, baselines.__doc__)
