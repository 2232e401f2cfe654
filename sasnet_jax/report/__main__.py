"""`python -m sasnet_jax.report`."""

from sasnet_jax import cli, report
from sasnet_jax.report.command import ReportConfig, run

if __name__ == "__main__":
    cli.main(ReportConfig, run, report.__doc__)
