"""Corpus and embedding stores -> a trained run."""
