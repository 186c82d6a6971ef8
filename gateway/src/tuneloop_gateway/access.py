"""What one request may see: the key decides which models of a namespace exist for it.

Pure. A name that the key does not open is answered like one that does not exist, so that names cannot be guessed.
"""

from tuneloop_gateway import auth, errors
from tuneloop_gateway.errors import ApiError
from tuneloop_gateway.routes import Namespace, Route

NOTHING = Namespace()


def admit(namespace: Namespace | None, name: str, digest: bytes | None, allow_without_keys: bool) -> Namespace:
    """The namespace, for a request that may speak to at least one of its models.

    Looks at the headers only, so a request without a right is refused before its body is read.

    Raises:
        ApiError: 401, or 404 where no key is asked for.
    """
    if namespace is None and allow_without_keys:
        raise ApiError(errors.unknown_namespace(name))
    found = namespace or NOTHING
    if found.open or (digest is not None and auth.find(found.keys, digest)):
        return found
    raise ApiError(errors.no_key() if digest is None else errors.wrong_key())


def opens(route: Route, digest: bytes | None, allow_without_keys: bool) -> bool:
    """Whether the key (or its absence) may use the route."""
    keys = route.deployment.keys
    if not keys:
        return allow_without_keys
    key = auth.find(keys, digest) if digest is not None else None
    return key is not None and key.opens(route.model)


def usable(namespace: Namespace, digest: bytes | None, allow_without_keys: bool) -> list[Route]:
    """All routes that the key opens, by name."""
    return [route for _, route in sorted(namespace.models.items()) if opens(route, digest, allow_without_keys)]


def find(namespace: Namespace, model: str, digest: bytes | None, allow_without_keys: bool) -> Route:
    """The route of a model.

    Raises:
        ApiError: 404 that lists what the key may use.
    """
    route = namespace.models.get(model)
    if route is not None and opens(route, digest, allow_without_keys):
        return route
    raise ApiError(errors.unknown_model(model, (each.model for each in usable(namespace, digest, allow_without_keys))))
