"""`python -m sasnet_jax`: lists the commands."""

import importlib

# In the order of the data flow.
COMMANDS = (
    *("prepare", "train", "sweep", "baselines", "evaluate", "leakage"),
    *("crossvalidate", "embedding_quality", "runs", "report"),
)


def main() -> None:
    """One line per command: its name, and the first line of its package's docstring."""
    for name in COMMANDS:
        package = importlib.import_module(f"sasnet_jax.{name}")
        print(f"{name:<20}{(package.__doc__ or '').splitlines()[0]}")


if __name__ == "__main__":
    main()
