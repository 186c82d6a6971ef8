"""The server of a ModelDeployment: vLLM in a launcher with a guard, adapters at run time and a drain.

Only ``engine.py`` imports vLLM, and only when the engine starts: everything else is small, pure where it can be, and
tested without it.
"""

__version__ = "0.1.0"
