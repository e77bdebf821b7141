"""Evaluation: how good a model is on examples that it has not seen.

table        one row per example: likelihood, completion, syntax, similarity, whether its test passed
benchmarks   public data sets with tests
sandbox      runs completions against tests, where they can do no harm
runs         an evaluation as a run in MLflow, found again where it was made before
"""
