"""Corpus and stores -> simple models to compare with, and their predictions."""
