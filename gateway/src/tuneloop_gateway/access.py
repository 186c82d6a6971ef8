"""What one request may see: the key decides which models of a namespace exist for it.

Pure. Who has a key of the namespace and asks for a name that it does not open is told so: the namespace is the
boundary of trust, and a wrong name in a program is found faster than a wrong key.
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


def opener(route: Route, digest: bytes | None, allow_without_keys: bool) -> str | None:
    """The name of the key that opens the route, empty where none is asked for; None if it stays closed."""
    keys = route.deployment.keys
    if not keys:
        return "" if allow_without_keys else None
    key = auth.find(keys, digest) if digest is not None else None
    return key.name if key is not None and key.opens(route.model) else None


def usable(namespace: Namespace, digest: bytes | None, allow_without_keys: bool) -> list[Route]:
    """All routes that the key opens, by name."""
    return [
        route for _, route in sorted(namespace.models.items()) if opener(route, digest, allow_without_keys) is not None
    ]


def find(namespace: Namespace, model: str, digest: bytes | None, allow_without_keys: bool) -> Route:
    """The route of a model.

    Raises:
        ApiError: 404 that lists what the key may use; 401 or 403 where the model exists and the key does not open it.
    """
    route = namespace.models.get(model)
    if route is not None and opener(route, digest, allow_without_keys) is not None:
        return route
    names = [each.model for each in usable(namespace, digest, allow_without_keys)]
    if route is None:
        raise ApiError(errors.unknown_model(model, names))
    if digest is not None and auth.find(namespace.keys, digest):
        raise ApiError(errors.closed_model(model, names))
    raise ApiError(errors.no_key() if digest is None else errors.wrong_key())
