"""Sample, judge, train, again."""
