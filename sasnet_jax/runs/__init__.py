"""Run folders -> a table of them."""
