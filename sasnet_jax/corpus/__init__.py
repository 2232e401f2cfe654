"""The data: reviews, their contexts, their embeddings, and what the network reads."""
