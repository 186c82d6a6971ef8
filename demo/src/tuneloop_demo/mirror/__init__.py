"""A small hub that speaks the Hugging Face protocol, so that ``hf://`` is real where no hub can be reached.

Serves a folder tree; enough for ``huggingface_hub`` and transformers to resolve, list and download. Never accepts
uploads over HTTP and never stands in for a hub in production.
"""
