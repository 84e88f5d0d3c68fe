"""Rejection records in: files of many formats, checked, counted and converted."""
