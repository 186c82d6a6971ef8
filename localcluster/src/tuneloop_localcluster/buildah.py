"""buildah: builds images without a daemon, in a store of its own below the cache."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneloop_localcluster import leftovers
from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.imagetable import BASE_PACKAGES, SUITE, Image
from tuneloop_localcluster.paths import Cache
from tuneloop_localcluster.shell import run

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_STAGES_KEPT = 6
_LIST_ATTEMPTS = 10
_LAYER_GONE = "layer not known"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Buildah:
    """The image store, and what is done with it."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        store = ["--root", str(cache.buildah), "--runroot", str(cache.root / "buildah-run")]
        self._buildah = ["buildah", *store, "--storage-driver", "overlay"]

    @property
    def store(self) -> Path:
        """The folder that holds layers and images."""
        return self._cache.buildah

    def references(self) -> list[str]:
        """References of all named images, the newest first."""
        return [name for image in self._images() for name in image["names"] or []]

    def _images(self, *flags: str) -> list[dict[str, Any]]:
        """What `buildah images` lists, the newest first."""
        known: list[dict[str, Any]] = json.loads(self._listing(*flags) or "null") or []
        return sorted(known, key=lambda image: str(image["createdatraw"]), reverse=True)

    def _listing(self, *flags: str) -> str:
        """`buildah images` fails when another process deletes an image while it reads the list: then it reads again."""
        for attempt in range(_LIST_ATTEMPTS):
            try:
                return run([*self._buildah, "images", "--json", *flags])
            except ClusterError:
                if attempt == _LIST_ATTEMPTS - 1:
                    raise
                time.sleep(0.5)
        return ""

    def build(self, image: Image, reference: str, arguments: dict[str, str], context: Path) -> None:
        """Build a Dockerfile; `arguments` are its build arguments, bases included."""
        flags = ["--isolation", "chroot", "--network", "host", "--layers", "--pull-never", *self._binds()]
        for key, value in arguments.items():
            flags += ["--build-arg", f"{key}={value}"]
        file = ["--file", str(context / image.dockerfile), "--tag", reference]
        command: list[str | Path] = [*self._buildah, "build", *flags, *file, context]
        try:
            run(command, log=self._log(image.name))
        except ClusterError as error:
            # Another build has deleted the layer that this one was about to take from the store's cache.
            if _LAYER_GONE not in str(error):
                raise
            run(command, log=self._log(image.name))

    def build_base(self, reference: str) -> None:
        """Make a minimal Debian with Python by debootstrap, straight into an empty image."""
        container = run([*self._buildah, "from", "scratch"]).strip()
        try:
            root = Path(run([*self._buildah, "mount", container]).strip())
            include = f"--include={','.join(BASE_PACKAGES)}"
            run(["debootstrap", "--variant=minbase", include, SUITE, root, _mirror()], log=self._log("base"))
            _finish_debian(root)
            run([*self._buildah, "config", "--env", f"PATH={_PATH}", "--cmd", "/bin/bash", container])
            run([*self._buildah, "commit", "--quiet", container, reference])
        finally:
            run([*self._buildah, "rm", container])

    def layers(self, reference: str) -> list[str]:
        """Digests of an image's uncompressed layers, the lowest first."""
        described = json.loads(run([*self._buildah, "inspect", "--type", "image", reference]))
        return [str(diff_id) for diff_id in described["OCIv1"]["rootfs"]["diff_ids"]]

    def export(self, reference: str, layout: Path) -> None:
        """Write an image as an OCI layout, uncompressed; blobs that are in the layout already are not written."""
        run([*self._buildah, "push", "--quiet", "--disable-compression", reference, f"oci:{layout}:{reference}"])

    def push(self, reference: str, target: str) -> None:
        """Push to a registry, with the credentials of the user's docker or buildah login."""
        run([*self._buildah, "push", "--quiet", *tls_flags(target), reference, f"docker://{target}"])

    def delete(self, references: list[str]) -> None:
        """Delete images by name."""
        if references:
            run([*self._buildah, "rmi", "--force", *references])

    def _binds(self) -> list[str]:
        """What builds see of the machine: its trusted certificates, its package indexes, and uv's cache."""
        self._cache.uv.mkdir(parents=True, exist_ok=True)
        settings = self._cache.root / "contexts" / "uv.toml"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(uv_settings(dict(os.environ)))
        binds = [f"{self._cache.uv}:/cache/uv", f"{settings}:/etc/uv/uv.toml:ro", f"{_CERTIFICATES}:{_CERTIFICATES}:ro"]
        if Path("/etc/pip.conf").exists():
            binds.append("/etc/pip.conf:/etc/pip.conf:ro")
        return [word for bind in binds for word in ("--volume", bind)]

    def _log(self, name: str) -> Path:
        return self._cache.root / "logs" / "images" / f"{name}.log"

    def clear(self) -> None:
        """Take away what killed builds left: mounts, working containers, staged contexts. Nobody may be building."""
        leftovers.unmount_below(self._cache.buildah)
        shutil.rmtree(self._cache.root / "contexts", ignore_errors=True)
        run([*self._buildah, "rm", "--all"])
        self.delete(stale_stages(self._images("--filter", "dangling=true")))


def tls_flags(target: str) -> list[str]:
    """A registry on this machine may speak plain HTTP, as docker has it too; others are in registries.conf or not."""
    host = target.partition("/")[0].rpartition(":")[0] or target.partition("/")[0]
    return ["--tls-verify=false"] if host == "localhost" or host.startswith("127.") else []


def stale_stages(dangling_newest_first: Sequence[dict[str, Any]]) -> list[str]:
    """Ids of unnamed images that go: those in gigabytes, left by builds that failed, and all but the last small ones.

    The last ones are the first stages of today's images: the next build starts from them.
    """
    small = [image["id"] for image in dangling_newest_first if not image["size"].endswith("GB")]
    large = [image["id"] for image in dangling_newest_first if image["size"].endswith("GB")]
    return large + small[_STAGES_KEPT:]


def uv_settings(environment: dict[str, str]) -> str:
    """A uv.toml for builds: the machine's certificates, and the package index that the machine was told to use."""
    index = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL") or environment.get("PIP_INDEX_URL")
    return "system-certs = true\n" + (f"index-url = {json.dumps(index)}\n" if index else "")


def _mirror() -> str:
    """The Debian mirror that this machine's apt uses."""
    fields = ["--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {SUITE}"]
    sites = run(["apt-get", "indextargets", *fields]).split()
    if not sites:
        raise ClusterError(f"apt knows no source for Debian {SUITE}: add one to its sources and run `apt-get update`")
    return sites[0].rstrip("/")


def _finish_debian(root: Path) -> None:
    """Drop what debootstrap downloaded, and name the updates for Dockerfiles that install more."""
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists"):
        for path in (root / folder).glob("*_*"):
            path.unlink()
    mirror = _mirror()
    security = mirror.removesuffix("/debian") + "/debian-security"
    lines = [
        f"deb {mirror} {SUITE} main",
        f"deb {mirror} {SUITE}-updates main",
        f"deb {security} {SUITE}-security main",
    ]
    (root / "etc/apt/sources.list").write_text("\n".join(lines) + "\n")
