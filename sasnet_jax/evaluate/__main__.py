"""`python -m sasnet_jax.evaluate`."""

from sasnet_jax import cli, evaluate
from sasnet_jax.evaluate.command import EvaluateConfig, run
from sasnet_jax.model import compilation

if __name__ == "__main__":
    compilation.set_up()
    cli.main(EvaluateConfig, run, evaluate.__doc__)
