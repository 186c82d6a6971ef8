"""The foundation model as it is tuned, and the two things asked of it: hidden states of a pack, and text.

Loads safetensors only and runs no code of a repository. What a model needs for packed documents is proven on the
model itself before training (``verify``), not looked up in a list of architectures.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from peft import PeftModel
from tuneloop_core.api.finetunejob import Method
from tuneloop_core.stages import Reason

from tuneloop_trainer import attention
from tuneloop_trainer.adapters import attach, take_adapter, with_weights
from tuneloop_trainer.attention import Layout
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.loss import Head, summed_loss
from tuneloop_trainer.machine import Machine
from tuneloop_trainer.peers import Peers
from tuneloop_trainer.quantized import count, is_quantized, keep_differentiable, quantized, release_memory
from tuneloop_trainer.sharding import Root, merge, split
from tuneloop_trainer.structure import as_leader
from tuneloop_trainer.tokens import Document
from tuneloop_trainer.whole import merged, round_as_published, write_model, write_split_model

log = logging.getLogger("tuneloop")

T = TypeVar("T")
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


@dataclass
class TunedModel:
    """A model, what of it is trained, its head, and how attention is computed over packs."""

    module: Any  # a PeftModel, or the transformers model itself when all its weights are trained
    machine: Machine
    isolates: bool = True  # packs of several documents are proven to be isolated
    shares: bool = True  # and may share what they begin with
    labels: Sequence[str] = ()  # of a classifier: the names of its classes
    root: Root | None = None  # where the weights are split over all processes
    total_parameters: int = field(init=False)  # of the base model
    trainable_parameters: int = field(init=False)

    def __post_init__(self) -> None:
        self.trainable_parameters = sum(parameter.numel() for parameter in self.parameters.values())
        every = sum(map(count, self.module.parameters()))
        self.total_parameters = every - (self.trainable_parameters if self.has_adapter else 0)

    @property
    def has_adapter(self) -> bool:
        """Whether the base's weights are frozen beside an adapter."""
        return isinstance(self.module, PeftModel)

    @property
    def causal(self) -> Any:
        """The transformers model inside, with the adapter's layers in place."""
        return self.module.get_base_model() if self.has_adapter else self.module

    @property
    def head(self) -> Head:
        """The last layer as it is now: where weights are split, only what ``gathered`` runs sees all of it."""
        causal = self.causal
        return Head(causal.score.weight, causal.score.bias) if self.labels else Head.of(causal)

    def gathered(self, compute: Callable[[], T]) -> T:
        """The result of ``compute``, which may use the model: every forward pass is within one.

        Where weights are split, all processes must compute the same passes.
        """
        return compute() if self.root is None else cast("T", self.root(compute))

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by name."""
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}

    def hidden(self, documents: list[Document], shared: int = 0) -> torch.Tensor:
        """Last hidden states of a pack, (tokens, hidden size); each document sees itself only.

        The first ``shared`` tokens of all documents must be the same; they come once, before what is left of each.
        """
        ids = np.concatenate([documents[0].ids[:shared], *(document.ids[shared:] for document in documents)])
        layout = Layout(shared, tuple(len(document.ids) - shared for document in documents))
        output = self.causal.base_model(
            input_ids=torch.from_numpy(ids.astype("int64")).unsqueeze(0).to(self.machine.device),
            use_cache=False,
            **attention.packing_arguments(layout, self.machine.device),
        )
        states: torch.Tensor = output.last_hidden_state
        return states.squeeze(0)

    def loss(self, documents: list[Document]) -> tuple[torch.Tensor, int]:
        """Summed cross-entropy over the trained tokens of a pack, in nats, and how many they are."""
        hidden, targets, _ = self.trained(documents)
        return summed_loss(hidden, targets, self.head), len(targets)

    def trained(self, documents: list[Document]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hidden states that predict the trained tokens of a pack, those tokens, and which document each is of."""
        if self.isolates or len(documents) == 1:
            hidden, targets = self._trained(documents)
        else:
            parts = [self._trained([document]) for document in documents]
            hidden, targets = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        counts = torch.tensor([int(document.trained[1:].astype(bool).sum()) for document in documents])
        owners = torch.arange(len(documents)).repeat_interleave(counts)
        return hidden, targets, owners.to(self.machine.device)

    def last(self, documents: list[Document]) -> torch.Tensor:
        """Hidden state of each document's last token, (documents, hidden size)."""
        if not self.isolates:
            return torch.cat([self.hidden([document])[-1:] for document in documents])
        shared = shared_beginning(documents) if self.shares else 0
        ends = torch.tensor([len(document.ids) - shared for document in documents]).cumsum(0) + shared - 1
        return self.hidden(documents, shared)[ends.to(self.machine.device)]

    def _trained(self, documents: list[Document]) -> tuple[torch.Tensor, torch.Tensor]:
        shared = shared_beginning(documents) if self.shares else 0
        positions, targets = trained_positions(documents, shared)
        device = self.machine.device
        return self.hidden(documents, shared)[positions.to(device)], targets.to(device)

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """The base model alone. Where all weights are trained, it is there only until they are."""
        with self.module.disable_adapter() if self.has_adapter else nullcontext():
            yield

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as PEFT and vLLM load it."""
        self.module.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # publish writes the model card

    def save_whole(self, base: Path, folder: Path | None) -> None:
        """Merge the adapter for good and write the whole model; from here on this is the model as written.

        Without a folder nothing is written: for a process that does not lead.
        """
        self._merge(base)
        if self.root is not None:
            write_split_model(self.root, self.machine.dtype, base, folder, self._changes())
        elif folder is not None:
            write_model(self.module, base, folder, self._changes())
        else:
            round_as_published(self.module, base)

    def _merge(self, base: Path) -> None:
        """From here on without an adapter; one that was trained over 4 bits goes into the base as it was."""
        if self.has_adapter and is_quantized(self.causal):
            config, weights = take_adapter(self.module)
            self.module = None
            release_memory()  # the two models never lie in memory together
            self.module = with_weights(_load(base, self.machine, {}).to(self.machine.device), config, weights)
        if self.root is None:
            self.module = merged(self.module)
        elif self.has_adapter:
            self.module = merge(self.module, self.root)

    def _changes(self) -> dict[str, Any]:
        """Where the configuration differs from the base's: a classifier's head and the names of its classes."""
        if not self.labels:
            return {}
        return {
            "architectures": [type(self.module).__name__],
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: number for number, label in enumerate(self.labels)},
        }

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Attention and cache as generation needs them."""
        before = self.causal.config._attn_implementation
        self.causal.set_attn_implementation("sdpa" if before == attention.NAME else before)
        try:
            yield
        finally:
            self.causal.set_attn_implementation(before)


def shared_beginning(documents: list[Document]) -> int:
    """How many tokens all documents of a pack begin with; never what predicts a trained token, or a last one."""
    if len(documents) < 2:
        return 0
    limit = min(
        len(document.ids) - 1 if not document.trained.any() else int(document.trained.argmax()) - 1
        for document in documents
    )
    first = documents[0].ids[: max(0, limit)]
    for document in documents[1:]:
        differing = (first != document.ids[: len(first)]).nonzero()[0]
        first = first[: int(differing[0])] if len(differing) else first
    return len(first)


def trained_positions(documents: list[Document], shared: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions in the pack whose next token is trained, and those tokens. A document's first token is never one."""
    positions, targets, start = [], [], 0
    for document in documents:
        marked = torch.from_numpy(document.trained[1:].astype("bool")).nonzero().squeeze(1)
        positions.append(marked + start)
        targets.append(torch.from_numpy(document.ids[1:].astype("int64"))[marked])
        start += len(document.ids) - shared
    return torch.cat(positions), torch.cat(targets)


def load_model(  # noqa: PLR0913 - what a model is made from
    folder: Path, machine: Machine, method: Method, seed: int, labels: Sequence[str] = (), among: Peers | None = None
) -> TunedModel:
    """The model in a folder, ready to be tuned; raises ``ModelUnsupported`` in words. ``labels`` make a classifier.

    ``among`` splits its weights over these processes, of which only the leader then reads the files.
    """
    attention.register()
    torch.manual_seed(seed)  # a classifier's head is new
    options = quantized(machine) if method.adapter == "QLoRA" else {}
    options |= {"num_labels": len(labels)} if labels else {}
    causal = _load(folder, machine, options, empty=among is not None and not among.leads)
    if among is not None:
        as_leader(causal, among)
    keep_differentiable(causal)
    torch.manual_seed(seed)
    module = attach(causal, method, machine)
    if among is not None:
        return TunedModel(module, machine, labels=labels, root=split(module, causal, machine, among))
    if method.adapter != "QLoRA":  # a base in 4 bits was loaded onto its device
        module = module.to(machine.device)
    return TunedModel(module, machine, labels=labels)


def _load(folder: Path, machine: Machine, more: dict[str, Any], *, empty: bool = False) -> Any:
    """The transformers model; ``empty`` on the meta device, from its configuration alone."""
    from transformers import (  # noqa: PLC0415 - slow to import
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    kind = AutoModelForSequenceClassification if "num_labels" in more else AutoModelForCausalLM
    try:
        config = AutoConfig.from_pretrained(folder, **options, **(more if empty else {}))
        if kind is AutoModelForSequenceClassification:
            _require_decoder(config)
        implementation = "eager" if getattr(config, "attn_logit_softcapping", None) else attention.NAME
        chosen = {"dtype": machine.dtype, "attn_implementation": implementation}
        if empty:
            return _empty(kind, config, folder, chosen)
        return kind.from_pretrained(folder, use_safetensors=True, **chosen, **options, **more)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise StageError(Reason.MODEL_UNSUPPORTED, f"the model cannot be loaded: {error}") from error


def _empty(kind: Any, config: Any, folder: Path, chosen: dict[str, Any]) -> Any:
    """As ``from_pretrained`` would make it, without a weight."""
    from transformers import GenerationConfig  # noqa: PLC0415 - slow to import

    with torch.device("meta"):
        causal = kind.from_config(config, trust_remote_code=False, **chosen)
    if causal.can_generate():
        with suppress(OSError):  # without the file it is made from the configuration
            causal.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return causal.eval()


def _require_decoder(config: Any) -> None:
    """Packs are computed as decoders see them: each token what came before."""
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415 - slow to import
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    )

    names = config.architectures or []
    decoder = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    kind = type(config)
    if not decoder or kind not in MODEL_FOR_CAUSAL_LM_MAPPING or kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        found = ", ".join(names) or config.model_type
        message = (
            f"method.task SequenceClassification takes decoder models that transformers can classify with (Llama, "
            f"Qwen, Mistral, Gemma and their like), and this is {found}."
        )
        raise StageError(Reason.MODEL_UNSUPPORTED, message)


# ---- proofs before training ----------------------------------------------------------------------------------------


@torch.no_grad()
def verify(model: TunedModel, documents: list[Document]) -> None:
    """Prove on this model that our loss is its own and that packed documents do not see each other.

    Switches to transformers' masks, and then to single documents, where packing is not proven; raises
    ``ModelUnsupported`` if not even the loss of one document agrees.
    """
    samples = [_shortened(document) for document in documents[:2]]
    if not model.hidden(samples[:1]).isfinite().all():
        message = f"the model's weights give no numbers in {model.machine.dtype}: they are broken, or overflow."
        raise StageError(Reason.MODEL_UNSUPPORTED, message)
    if not _loss_agrees(model, samples[0]):
        message = "the model's logits are more than its last layer's product; such heads cannot be trained here."
        raise StageError(Reason.MODEL_UNSUPPORTED, message)
    if len(samples) < 2 or _isolated(model, samples):
        model.shares = len(samples) > 1 and _shares(model, samples)
        return
    log.warning("packed documents are not isolated by this model's attention; trying transformers' own masks")
    model.shares = False
    model.causal.set_attn_implementation("sdpa")
    if not _isolated(model, samples):
        log.warning("packing is off: this model carries state from one document to the next")
        model.isolates = False


def _loss_agrees(model: TunedModel, sample: Document) -> bool:
    if model.labels:
        return _classes_agree(model, sample)
    positions, targets = trained_positions([sample])
    ours = summed_loss(model.hidden([sample])[positions], targets.to(model.machine.device), model.head)
    ids = torch.from_numpy(sample.ids.astype("int64")).unsqueeze(0).to(model.machine.device)
    with model.generating():
        logits = model.causal(input_ids=ids, use_cache=False).logits[0, positions].float()
    theirs = torch.nn.functional.cross_entropy(logits, targets.to(model.machine.device), reduction="sum")
    return bool(torch.isclose(ours.float(), theirs, rtol=TOLERANCE[model.machine.dtype], atol=1e-3))


def _classes_agree(model: TunedModel, sample: Document) -> bool:
    ids = torch.from_numpy(sample.ids.astype("int64")).unsqueeze(0).to(model.machine.device)
    with model.generating():
        theirs = model.causal(input_ids=ids, use_cache=False).logits
    return _equal(model, model.head.logits(model.last([sample])), theirs)


def _isolated(model: TunedModel, samples: list[Document]) -> bool:
    return _equal(model, model.hidden(samples), torch.cat([model.hidden([sample]) for sample in samples]))


def _shares(model: TunedModel, samples: list[Document]) -> bool:
    """Whether two documents with the same first half are computed the same when that half comes once."""
    shared = min(len(sample.ids) for sample in samples) // 2
    first, second = samples
    ids = np.concatenate([first.ids[:shared], second.ids[shared:]])
    twin = Document(ids, second.trained)
    together = model.hidden([first, twin], shared)[shared:]
    return _equal(model, together, torch.cat([model.hidden([sample])[shared:] for sample in (first, twin)]))


def _equal(model: TunedModel, left: torch.Tensor, right: torch.Tensor) -> bool:
    error = (left.float() - right.float()).norm() / right.float().norm()
    return bool(error < TOLERANCE[model.machine.dtype])


def _shortened(document: Document) -> Document:
    """At most 64 tokens around the first trained one, so that the proof costs little."""
    first = int(document.trained.argmax())
    window = slice(max(0, first - 32), first + 32)
    return Document(document.ids[window], document.trained[window])
