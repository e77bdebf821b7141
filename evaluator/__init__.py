"""Runs completions against their tests, where they can do no harm. Only the standard library; imports no other part."""
