"""The network, its inputs, and a trained run."""
