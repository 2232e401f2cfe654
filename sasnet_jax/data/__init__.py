"""Raw reviews to corpus, contexts of targets, and embedding tables."""
