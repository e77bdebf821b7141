"""What becomes of completions: their small facts, what editors say of them, and the way of both to MLflow.

facts.py     a completion's facts, and its hashes
store.py     one SQLite file for all workers: what was answered lately, what is on its way, what was counted
sender.py    one thread in one worker, which takes from there to MLflow: each once, in order
"""
