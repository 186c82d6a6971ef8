"""Tokens towards servers as the real API server makes them: for one namespace, for the asker's own account."""

import subprocess
import uuid
from pathlib import Path

import aiohttp
import pytest
from chart_render import objects
from operator_api import Api, jwt_body

from tuneloop_core.servertokens import read_token
from tuneloop_gateway.cluster import from_kubeconfig as gateway_access
from tuneloop_gateway.server_tokens import ask_token
from tuneloop_localcluster.paths import cache
from tuneloop_operator.kube.client import Client
from tuneloop_operator.kube.credentials import from_kubeconfig
from tuneloop_operator.kube.servertokens import ServerTokens


@pytest.fixture
def system(admin: Api) -> str:
    """A release's namespace with the chart's accounts and their right to tokens."""
    name = f"system-{uuid.uuid4().hex[:8]}"
    admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    for obj in objects("{}", name):
        if obj["kind"] == "ServiceAccount" or obj["metadata"]["name"].endswith("-tokens"):
            admin.create(obj)
    return name


async def test_the_operators_tokens(kubeconfig: Path, system: str) -> None:
    client = Client(from_kubeconfig(kubeconfig))
    tokens = ServerTokens(client, system, "tuneloop-operator")
    found = {namespace: jwt_body(await tokens.value(namespace)) for namespace in ("team-a", "team-b")}
    for namespace, said in found.items():
        assert said["sub"] == f"system:serviceaccount:{system}:tuneloop-operator"
        assert f"tuneloop-server/{namespace}" in said["aud"]
        assert said["exp"] - said["iat"] >= 3600
    assert "tuneloop-server/team-b" not in found["team-a"]["aud"]
    assert await tokens.value("team-a") == await tokens.value("team-a"), "kept until it is due"
    assert await ServerTokens(client, system, "nobody").value("team-a") == ""
    await client.close()


async def test_the_gateways_tokens(kubeconfig: Path, system: str) -> None:
    access = gateway_access(kubeconfig)
    async with aiohttp.ClientSession() as session:
        token = await ask_token(session, access, system, "tuneloop-gateway", "team-a")
        said = jwt_body(token.value)
        assert said["sub"] == f"system:serviceaccount:{system}:tuneloop-gateway"
        assert "tuneloop-server/team-a" in said["aud"]
        assert 0 < token.refresh_after < said["exp"] - said["iat"]
        with pytest.raises(aiohttp.ClientResponseError):
            await ask_token(session, access, system, "nobody", "team-a")


@pytest.mark.parametrize("who", ["operator", "gateway"])
def test_each_may_make_tokens_of_its_own_account_only(kubeconfig: Path, system: str, who: str) -> None:
    def make(account: str) -> "subprocess.CompletedProcess[str]":
        me = f"system:serviceaccount:{system}:tuneloop-{who}"
        command = [str(cache().root / "bin" / "kubectl"), "--kubeconfig", str(kubeconfig), "--as", me, "-n", system]
        command += ["create", "token", account, "--audience", "tuneloop-server/team-a"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    own, other = f"tuneloop-{who}", {"operator": "tuneloop-gateway", "gateway": "tuneloop-operator"}[who]
    assert jwt_body(make(own).stdout.strip())["sub"].endswith(own)
    for account in (other, "default"):
        refused = make(account)
        assert refused.returncode != 0
        assert "forbidden" in refused.stderr


def test_another_answer_is_no_token() -> None:
    with pytest.raises(KeyError):
        read_token({"kind": "Status", "status": {}, "spec": {}})
