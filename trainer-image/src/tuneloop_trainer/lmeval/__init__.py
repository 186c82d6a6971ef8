"""``evaluation.tasks``: lm-eval's tasks, found by name, fed from the spec's source, asked of the loaded model.

lm-eval is imported inside functions only: it takes seconds, and a job without tasks never needs it.
"""
