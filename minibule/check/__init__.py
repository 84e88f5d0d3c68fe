"""Exercises marked: a learner's functions, value by value, against answers from outside."""
