"""``tuneloop-bench``: what users of an OpenAI-compatible endpoint feel, measured from outside at a rate of arrivals.

Its words are those of docs/latency.md. Imports nothing of the gateway's hot path but the reader of its streams.
"""
