"""`python -m sasnet_jax.leakage`."""

from sasnet_jax import cli, leakage
from sasnet_jax.leakage.command import LeakageConfig, run

if __name__ == "__main__":
    cli.main(LeakageConfig, run, leakage.__doc__)
