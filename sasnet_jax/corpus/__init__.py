"""What the data are: reviews, who may be seen, embeddings, what the network reads."""
