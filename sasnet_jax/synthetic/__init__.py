"""Generated worlds of reviews, and the best that can be done on them."""
