"""Datasets before a GPU is held: reading, checking, splitting, and finding the part that is trained.

Pure Python over files and strings: no torch, no tokenizer library, no network. What needs a model's tokenizer takes
it as a small protocol, so the same code runs in the check stage and in unit tests.
"""
