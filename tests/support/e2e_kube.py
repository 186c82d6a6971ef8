"""kubectl for the e2e tier: thin, loud on errors, with waits that say what they waited for.

Goes through kubectl on purpose: that is what users run, so a test's failure reads like a user's.
"""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GENEROUS = 600.0  # seconds; machines here are noisy, a limit is there to end a hang, never to measure


class KubectlError(AssertionError):
    """kubectl said no; carries what it printed."""


@dataclass(frozen=True)
class Kube:
    """One cluster, as its administrator."""

    kubectl: Path
    kubeconfig: Path

    def run(self, *args: str, stdin: str | None = None, check: bool = True, timeout: float = 120.0) -> str:
        """Run kubectl and return its standard output; raise ``KubectlError`` with its words when it fails."""
        done = subprocess.run(
            [str(self.kubectl), "--kubeconfig", str(self.kubeconfig), *args],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise KubectlError(f"kubectl {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def apply(self, *manifests: dict[str, Any]) -> str:
        """`kubectl apply` of some manifests, as JSON: YAML writers leave "2e-4" unquoted, and it becomes a number."""
        bundle = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        return self.run("apply", "-f", "-", stdin=json.dumps(bundle))

    def refusal(self, manifest: dict[str, Any]) -> str:
        """What kubectl says when it must refuse this manifest."""
        try:
            self.apply(manifest)
        except KubectlError as error:
            return str(error)
        raise AssertionError(f"accepted, but should have been refused: {manifest}")

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        """One object, or None when it is not there."""
        text = self.run("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """Objects of one kind in one namespace."""
        args = ["-l", selector] if selector else []
        items: list[dict[str, Any]] = json.loads(self.run("get", kind, "-n", namespace, "-o", "json", *args))["items"]
        return items

    def delete(self, kind: str, name: str, namespace: str, *args: str) -> None:
        """Delete and wait until it is gone."""
        self.run("delete", kind, name, "-n", namespace, "--ignore-not-found", *args, timeout=GENEROUS)

    def wait_for(
        self,
        what: str,
        probe: Callable[[], Any],
        *,
        timeout: float = GENEROUS,
        interval: float = 1.0,
        explain: Callable[[], str] | None = None,
    ) -> Any:
        """Poll until the probe returns something true; say what was waited for and what was seen when it never does."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if found := probe():
                return found
            time.sleep(interval)
        raise AssertionError(f"waited {timeout:.0f} s for {what}; {explain() if explain else 'it never came'}")


def condition(obj: dict[str, Any] | None, kind: str) -> dict[str, Any]:
    """One condition of an object's status; empty when absent."""
    conditions = ((obj or {}).get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind), {})


def is_true(obj: dict[str, Any] | None, kind: str) -> bool:
    """Whether a condition is True for the spec as it stands now."""
    return condition(obj, kind).get("status") == "True"
