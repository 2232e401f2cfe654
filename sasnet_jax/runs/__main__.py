"""`python -m sasnet_jax.runs`."""

from sasnet_jax import cli, runs
from sasnet_jax.runs.command import RunsConfig, run

if __name__ == "__main__":
    cli.main(RunsConfig, run, runs.__doc__)
