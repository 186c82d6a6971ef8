"""What the server's tests need around it: keys and tokens as an API server signs them, adapters as a trainer writes."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jwt
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from safetensors.numpy import save_file

from tuneloop_core.servertokens import server_audience
from tuneloop_core.serving import Adapter, AdapterList, GuardConfig

ISSUER = "https://kubernetes.default.svc.cluster.local"
AUDIENCE = server_audience("team-a")  # this server is in team-a
GATEWAY = "system:serviceaccount:tuneloop-system:tuneloop-gateway"
OPERATOR = "system:serviceaccount:tuneloop-system:tuneloop-operator"
STRANGER = "system:serviceaccount:team-a:default"


class Signer:
    """A key pair that signs tokens; RSA as clusters have it, or P-256."""

    def __init__(self, key_id: str, algorithm: str = "RS256") -> None:
        self.key_id = key_id
        self.algorithm = algorithm
        self.private: Any = (
            rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())
        )

    def jwk(self) -> dict[str, Any]:
        """The public half."""
        kind = jwt.algorithms.RSAAlgorithm if self.algorithm == "RS256" else jwt.algorithms.ECAlgorithm
        return {**kind.to_jwk(self.private.public_key(), as_dict=True), "kid": self.key_id, "alg": self.algorithm}

    def token(self, subject: str, **claims: Any) -> str:
        """A token that lives for an hour; a claim given as None is left out."""
        now = int(time.time())
        body = {"iss": ISSUER, "aud": [AUDIENCE], "sub": subject, "iat": now, "exp": now + 3600, **claims}
        body = {name: value for name, value in body.items() if value is not None}
        return jwt.encode(body, self.private, algorithm=self.algorithm, headers={"kid": self.key_id})


def guard_config(*signers: Signer) -> GuardConfig:
    """guard.json for these keys: the gateway infers, the operator administers."""
    keys = [signer.jwk() for signer in signers]
    return GuardConfig(issuer=ISSUER, audience=AUDIENCE, jwks={"keys": keys}, inference=[GATEWAY], admin=[OPERATOR])


def write_json(path: Path, model: Any) -> None:
    """Write a wire model the way a ConfigMap changes: a new file in the old one's place."""
    aside = path.with_suffix(".new")
    aside.write_text(model.model_dump_json(by_alias=True))
    aside.replace(path)


def write_adapter(
    artifacts: Path,
    name: str,
    seed: int,
    *,
    hidden: int = 128,
    layers: int = 2,
    rank: int = 8,
    scale: float = 0.5,
    **config: Any,
) -> Adapter:
    """A random LoRA on q_proj and down_proj for the tiny model, in PEFT's format, under its digest."""
    random = np.random.default_rng(seed)
    shapes = {"self_attn.q_proj": (hidden, hidden), "mlp.down_proj": (hidden, 2 * hidden)}
    tensors = {}
    for layer in range(layers):
        for module, (rows, columns) in shapes.items():
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = (random.standard_normal((rank, columns)) * scale).astype(np.float32)
            tensors[f"{prefix}.lora_B.weight"] = (random.standard_normal((rows, rank)) * scale).astype(np.float32)
    digest = hashlib.sha256(f"{name} {seed} {hidden} {layers} {rank} {config}".encode()).hexdigest()
    folder = artifacts / digest
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    body = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["q_proj", "down_proj"],
        "bias": "none",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(body))
    (folder / "DIGEST").write_text(f"sha256:{digest}\n")
    return Adapter(name=name, digest=f"sha256:{digest}", path=f"artifacts/{digest}")


def adapter_list(*adapters: Adapter) -> AdapterList:
    """adapters.json with these."""
    return AdapterList(adapters=list(adapters))
