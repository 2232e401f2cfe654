"""Predictions, metrics, and paired comparisons of them."""
