"""One gradient, worked through with its numbers."""
