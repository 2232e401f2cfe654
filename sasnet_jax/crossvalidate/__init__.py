"""Corpus, stores and flagfiles of train -> every review predicted once, models compared."""
