"""Every image that the project is made of, and how its tag follows from what goes into it. Pure.

A tag is a digest of the inputs, so that an image with the right tag is the right image: nothing is built twice, and
no cluster runs yesterday's code by mistake.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tuneloop_localcluster import nodeconfig
from tuneloop_localcluster.errors import ClusterError

Contexts = Mapping[str, Mapping[str, bytes]]
PREFIX = "localhost/tuneloop"
BASE = "base"
PAUSE = "pause"
# What debootstrap puts into the image that stands in for the public python:3.11-slim-bookworm.
SUITE = "bookworm"
BASE_PACKAGES = ("ca-certificates", "python3", "python3-venv")


@dataclass(frozen=True)
class Image:
    """One image that a Dockerfile of the repository builds.

    The build context is the repository's root, reduced to `inputs`: what is not listed cannot be copied, so the tag
    cannot miss it. `bases` maps build arguments to images of this table; `arguments` are plain build arguments.
    """

    name: str
    dockerfile: str
    inputs: tuple[str, ...]
    bases: Mapping[str, str] = field(default_factory=lambda: {"BASE_IMAGE": BASE})
    arguments: Mapping[str, str] = field(default_factory=dict)

    @property
    def context(self) -> tuple[str, ...]:
        """Files and folders of the repository that the build may read."""
        return (*self.inputs, self.dockerfile)


# A uv workspace is locked as a whole: even a build of one member reads the pyproject.toml of each.
_WORKSPACE = (
    "pyproject.toml",
    "uv.lock",
    "README.md",
    *(f"{member}/pyproject.toml" for member in ("core", "operator", "gateway", "localcluster", "demo")),
)
_TORCH = {"BASE_IMAGE": BASE, "TORCH_BASE_IMAGE": "torch-base"}

IMAGES = {
    image.name: image
    for image in (
        Image("torch-base", "images/torch-base/Dockerfile", ("images/torch-base",)),
        Image("operator", "operator/Dockerfile", (*_WORKSPACE, "core", "operator", "gateway", "LICENSE")),
        Image("trainer", "trainer-image/Dockerfile", ("trainer-image", "core", "LICENSE"), _TORCH),
        Image("server", "server-image/Dockerfile", ("server-image", "core", "LICENSE"), _TORCH),
        Image("hub-mirror", "demo/Dockerfile", (*_WORKSPACE, "demo")),
    )
}
NAMES = (BASE, PAUSE, *IMAGES)


def image(name: str) -> Image:
    """The image of that name; raises a ClusterError that lists the names there are."""
    if name not in IMAGES:
        raise ClusterError(f"no image is called {name!r}: there are {', '.join(NAMES)}")
    return IMAGES[name]


def in_build_order(names: Iterable[str]) -> list[str]:
    """These images and all that they are based on, every base before what needs it, each once."""
    order: list[str] = []
    for name in names:
        needed = [] if name in (BASE, PAUSE) else in_build_order(image(name).bases.values())
        order += [n for n in (*needed, name) if n not in order]
    return order


def reference(name: str, tag: str) -> str:
    """The local reference of an image."""
    return nodeconfig.PAUSE_IMAGE if name == PAUSE else f"{PREFIX}/{name}:{tag}"


def base_tag() -> str:
    """The tag of the image that debootstrap makes."""
    return _digest([SUITE, *BASE_PACKAGES])


def tag(image: Image, files: Mapping[str, bytes], references: Mapping[str, str]) -> str:
    """The tag of an image: `files` are the context's contents by path, `references` its bases by build argument."""
    parts = [image.name, image.dockerfile]
    for arguments in (image.arguments, references):
        parts += [f"{key}={value}" for key, value in sorted(arguments.items())]
    parts += [f"{path} {hashlib.sha256(files[path]).hexdigest()}" for path in sorted(files)]
    return _digest(parts)


def configured(image: Image, arguments: Mapping[str, str], dockerfile: str) -> Image:
    """The image with those of the user's build arguments that its Dockerfile declares."""
    declared = set(re.findall(r"^ARG\s+(\w+)", dockerfile, flags=re.MULTILINE))
    own = {name: value for name, value in arguments.items() if name in declared}
    return replace(image, arguments={**image.arguments, **own})


def build_arguments(words: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE words as a mapping; raises a ClusterError for any other form, and for the names of bases."""
    taken = {argument for image in IMAGES.values() for argument in image.bases}
    arguments = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ClusterError(f"build argument {word!r}: expected NAME=VALUE, for instance ENGINE=gpu")
        if name in taken:
            raise ClusterError(f"build argument {name} is set by localcluster itself: leave it out")
        arguments[name] = value
    return arguments


def references(images: Mapping[str, Image], order: Iterable[str], contexts: Contexts) -> dict[str, str]:
    """References by name; `order` puts bases first, `contexts` are the contents of each image's context by path."""
    known: dict[str, str] = {}
    for name in order:
        if name in (BASE, PAUSE):
            known[name] = reference(name, base_tag())
            continue
        bases = {argument: known[base] for argument, base in images[name].bases.items()}
        known[name] = reference(name, tag(images[name], contexts[name], bases))
    return known


def excluded(path: str) -> bool:
    """Whether a file below an input takes no part: tests and prose do not change an image."""
    return "tests/" in path or (path.endswith(".md") and path != "README.md")


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
