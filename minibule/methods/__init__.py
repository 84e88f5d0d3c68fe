"""Ways to learn from judged answers, by name."""
