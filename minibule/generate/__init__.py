"""Answers: prefill, sampling, one token at a time."""
