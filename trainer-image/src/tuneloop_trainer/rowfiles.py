"""Files of rows wherever they lie: what is there by name, and how some of it is brought into a folder.

One shape for hub repositories, S3 prefixes, claims and single files, so that datasets, held-out files and the rows of
evaluation tasks are chosen in one way. Never decides which files are wanted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuneloop_core.stages import FetchInput, Reason
from tuneloop_core.uris import ClaimPath, HTTPSAddress, HubDataset, S3Object, URIError, parse_dataset_uri, shown

from tuneloop_trainer.arrival import require_allowed, require_room
from tuneloop_trainer.claims import open_claim
from tuneloop_trainer.download import About, Downloader, S3Credentials, file_name
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.hub import Hub
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.s3files import S3Folder

SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Access:
    """What a fetch may use to get somewhere."""

    stage_input: FetchInput
    paths: Paths
    guard: AddressGuard

    @property
    def max_bytes(self) -> int:
        """Cap of a download; 0 is none."""
        return self.stage_input.max_bytes

    def downloader(self, field: str) -> Downloader:
        """For single files; ``field`` is the one of the spec that names them."""
        return Downloader(self.guard, self.max_bytes, about=About(field=field))

    def hub(self, purpose: str) -> Hub:
        """The installation's hub, with the purpose's token."""
        return Hub(self.stage_input.hub_endpoint, self.paths.secret(purpose, "token"), self.guard)

    def s3_keys(self, purpose: str) -> S3Credentials:
        """The purpose's keys, empty ones where no Secret is mounted."""
        keys = (self.paths.secret(purpose, key) for key in ("accessKeyId", "secretAccessKey", "sessionToken"))
        return S3Credentials(*keys)


@dataclass(frozen=True)
class Address:
    """A block of the spec that says where rows are. ``purpose`` names its mounts, ``field`` its uri in words."""

    uri: str
    endpoint: str
    purpose: str
    field: str
    mount: str = ""  # of a claim


@dataclass(frozen=True)
class RowFiles:
    """What lies at an address: at least one file."""

    uri: str  # as messages have it
    sizes: dict[str, int]  # bytes by name below the uri; 0 where only reading tells
    get: Callable[[Sequence[str], Path], None]
    single: bool = False  # the uri names the one file
    whole: bool = False  # a copy takes all of it unless files are chosen: nothing is downloaded
    field: str = "dataset.uri"  # of the spec, which names the uri
    above: str = ""  # what a name has before it once it is brought, with a slash at its end

    @property
    def shown(self) -> str:
        """A few names, for messages."""
        more = ", ..." if len(self.sizes) > SHOWN else ""
        return ", ".join(sorted(self.sizes)[:SHOWN]) + more

    def bring(self, names: Sequence[str], folder: Path, max_bytes: int) -> None:
        """Put files into a folder, below their own names; raises ``StageError``, for too many bytes too."""
        size = sum(self.sizes[name] for name in names)
        fewer = "" if self.single else f"Choose fewer of its files by {self.field.removesuffix('uri')}files."
        require_allowed(Reason.DATASET_INVALID, size, max_bytes, self.uri, fewer)
        folder.mkdir(parents=True, exist_ok=True)
        require_room(folder, size, self.uri)
        self.get(names, folder)


def open_rows(address: Address, access: Access) -> RowFiles:
    """Look at an address; raises ``StageError`` where nothing lies there or nobody may look."""
    try:
        place = parse_dataset_uri(address.uri)
    except URIError as error:
        raise StageError(Reason.DATASET_NOT_FOUND, f"{address.field}: {error}.") from error
    match place:
        case HubDataset(repo, file):
            return hub_rows(address, repo, file.rstrip("/"), access)
        case S3Object(_, key) if key.endswith("/"):
            return _s3_folder(address, access)
        case S3Object():
            keys, downloader = access.s3_keys(address.purpose), access.downloader(address.field)
            return _single(address, lambda folder: downloader.s3(address.uri, address.endpoint, keys, folder))
        case ClaimPath():
            return _claim(address, access)
        case HTTPSAddress():
            token, downloader = access.paths.secret(address.purpose, "token"), access.downloader(address.field)
            return _single(address, lambda folder: downloader.https(address.uri, token, folder))
        case other:
            raise TypeError(f"no rows come from {other}")


def _single(address: Address, download: Callable[[Path], object]) -> RowFiles:
    def get(_names: Sequence[str], folder: Path) -> None:
        download(folder)

    uri = shown(address.uri)
    return RowFiles(uri, {file_name(uri): 0}, get, single=True, field=address.field)


def hub_rows(address: Address, name: str, below: str, access: Access) -> RowFiles:
    """A hub's repository, or what is ``below`` in it. A file keeps its path in the repository, whatever is named.

    ``name`` may be one that no uri has: the oldest datasets have no organisation (``xnli``).
    """
    hub = access.hub(address.purpose)
    repository = hub.resolve_dataset(name)
    single = below in repository.files
    prefix = below[: below.rfind("/") + 1] if single else f"{below}/" if below else ""
    wanted = {below: repository.files[below]} if single else repository.files
    sizes = {path.removeprefix(prefix): size for path, size in wanted.items() if path.startswith(prefix)}
    if not sizes:
        seen = ", ".join(sorted(repository.files)[:SHOWN]) or "no files"
        words = f"hf://datasets/{name} has no file {below} (it has {seen}). Check {address.field}."
        raise StageError(Reason.DATASET_NOT_FOUND, words)

    def get(names: Sequence[str], folder: Path) -> None:
        hub.download(replace(repository, files={prefix + each: sizes[each] for each in names}), folder)

    return RowFiles(address.uri, sizes, get, single=single, field=address.field, above=prefix)


def _s3_folder(address: Address, access: Access) -> RowFiles:
    about, keys = About(field=address.field), access.s3_keys(address.purpose)
    source = S3Folder(address.uri, address.endpoint, keys, access.guard, about)
    listed = {each.name: each for each in source.listing()}

    def get(names: Sequence[str], folder: Path) -> None:
        source.download([listed[name] for name in names], folder)

    return RowFiles(address.uri, {name: each.size for name, each in listed.items()}, get, field=address.field)


def _claim(address: Address, access: Access) -> RowFiles:
    claim = open_claim(access.paths, address.mount, address.uri, address.purpose)
    single = claim.place.is_file()
    there = {claim.place.name: claim.place} if single else claim.listing()
    if not there:
        words = f"{address.uri}: there is no such file or folder in the claim, or nothing in it. Check {address.field}."
        raise StageError(Reason.DATASET_NOT_FOUND, words)

    def get(names: Sequence[str], folder: Path) -> None:
        by_place = {there[name]: name for name in names}
        found = claim.files(by_place)
        if not found:
            words = f"{address.uri}: none of {', '.join(names[:SHOWN])} is a file there, only links that lead nowhere"
            raise StageError(Reason.DATASET_NOT_FOUND, f"{words}. Check {address.field}.")
        for path in found:
            claim.copy(path, folder / by_place[path])

    return RowFiles(address.uri, dict.fromkeys(there, 0), get, single=single, whole=True, field=address.field)
