"""Trained runs -> predictions, metrics, and a comparison with baselines."""
