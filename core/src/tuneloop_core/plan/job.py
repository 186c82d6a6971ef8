"""The plan of one FineTuneJob: from the spec, the model's shape and the dataset's numbers to status.plan and a verdict.

Refuses only what cannot fit even where the estimate is too high by its margin. Pure.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import cast

from tuneloop_core.api.finetunejob import FineTuneJobSpec
from tuneloop_core.api.finetunejob_status import DatasetStatus, MemoryPlan, PlanStatus
from tuneloop_core.api.formats import format_duration, parse_duration
from tuneloop_core.api.shape import ModelShape
from tuneloop_core.constants import PACK_TOKENS
from tuneloop_core.plan import cost, words
from tuneloop_core.plan.accelerators import Accelerator, NodeGroup, PlanSettings, table
from tuneloop_core.plan.machines import MARGIN, Choice, Fit, best_fit, choose, fit_of, is_slice, on, too_small, ways
from tuneloop_core.plan.memory import FLOAT32, GENERATION_BATCH, Load, Memory, estimate, host_bytes
from tuneloop_core.plan.parameters import Adapter, targeted, total_parameters, trainable_parameters, untargeted
from tuneloop_core.plan.steps import StepPlan, plan_steps


@dataclass(frozen=True)
class Facts:
    """What is known besides the spec; ``groups`` None: the operator may not read nodes."""

    shape: ModelShape | None = None
    model_bytes: int = 0
    dataset: DatasetStatus = field(default_factory=DatasetStatus)
    memory_limit: int = 0  # bytes, of the train pod; 0 is no limit
    cores: float = 1.0  # that the train pod asks for, or may use
    groups: tuple[NodeGroup, ...] | None = None
    settings: PlanSettings = field(default_factory=PlanSettings)


@dataclass(frozen=True)
class Plan:
    """status.plan and whether the job may begin; ``reason`` is empty where it may."""

    status: PlanStatus
    reason: str = ""

    @property
    def feasible(self) -> bool:
        """Whether a train pod may be made."""
        return not self.reason


DOES_NOT_FIT = "DoesNotFit"
SEQUENCE_TOO_LONG = "SequenceTooLong"
TARGETS_NOT_FOUND = "TargetModulesNotFound"
SHORTEST_USEFUL = 128
"""Tokens of a row below which shortening is no advice."""
MILDER = {"None": ("LoRA", "QLoRA"), "DoRA": ("LoRA", "QLoRA"), "LoRA": ("QLoRA",), "QLoRA": ()}
"""Adapters that take less memory."""
LARGEST_NODE = 8
"""Accelerators of one machine, and the most that resources.accelerators takes."""
SIZES = (2, 4, 8, 16, 32, 64)
"""Numbers of accelerators that a refusal may advise."""
COMPARED = {"SFT": 0, "DPO": 1, "KTO": 2}
"""Passes over a row that are compared with the base model's: of its answers, and with KTO of a borrowed one as well."""


def plan_job(spec: FineTuneJobSpec, facts: Facts) -> Plan:
    """The whole plan."""
    training = spec.training
    steps = plan_steps(facts.dataset.train_tokens, training.epochs, training.tokens_per_step, training.max_steps)
    if facts.shape is None:
        message = f"{steps.message}. The model's config.json does not tell its sizes, so that memory is not planned"
        return Plan(PlanStatus(steps=steps.steps, tokens=steps.tokens, message=message))
    return _refused(spec, facts.shape, facts, steps) or _planned(spec, facts.shape, facts, steps)


def _refused(spec: FineTuneJobSpec, shape: ModelShape, facts: Facts, steps: StepPlan) -> Plan | None:
    """What no machine makes right."""
    longest = _longest(spec, facts.dataset)
    status = PlanStatus(steps=steps.steps, tokens=steps.tokens, total_parameters=total_parameters(shape))
    if shape.max_positions and longest > shape.max_positions:
        message = words.too_long(longest, spec.training.max_sequence_length, shape.max_positions)
        return Plan(status.model_copy(update={"message": message}), SEQUENCE_TOO_LONG)
    modules = spec.method.lora.target_modules
    unknown = untargeted(shape, modules) if shape.known and _adapter(spec) != "Full" else ()
    if unknown and (not shape.experts or not targeted(shape, modules)):  # routers and experts may be meant
        message = words.no_targets(shape, modules, unknown)
        return Plan(status.model_copy(update={"message": message}), TARGETS_NOT_FOUND)
    return None


def _planned(spec: FineTuneJobSpec, shape: ModelShape, facts: Facts, steps: StepPlan) -> Plan:
    load = job_load(spec, facts.dataset)
    if not spec.resources.accelerators:
        return _on_cpu(spec, shape, facts, steps, load)
    choice = choose(
        facts.settings.accelerators, spec.resources.accelerator_resource, spec.pod.node_selector, facts.groups
    )
    if not choice.kinds:
        status = _status(spec, shape, facts, steps, load, estimate(shape, load))
        unknown = f"{spec.resources.accelerator_resource} is not in the table of accelerators: its memory is not known"
        return Plan(status.model_copy(update={"message": f"{words.plan(steps, status)}. {unknown}"}))
    return _on_accelerator(spec, shape, facts, steps, load, choice)


def _on_cpu(spec: FineTuneJobSpec, shape: ModelShape, facts: Facts, steps: StepPlan, load: Load) -> Plan:
    """Float32 is planned for; refused is only what does not fit in bfloat16 either, which some CPUs compute in."""
    found = [(way, estimate(shape, way)) for way in ways(load, _longest(spec, facts.dataset))]
    limit = facts.memory_limit
    load, memory = next(((way, size) for way, size in found if not limit or size.total <= limit), found[0])
    status = _status(spec, shape, facts, steps, load, memory, limit)
    message = words.plan(steps, status)
    if not limit or memory.total <= limit:
        return Plan(status.model_copy(update={"message": message}))
    least = min((estimate(shape, replace(way, number_bytes=2)).total for way, _ in found), default=0)
    if least <= limit * MARGIN:
        return Plan(status.model_copy(update={"message": f"{message}. {words.tight(memory.total, limit)}"}))
    need = min(size.total for _, size in found)
    refusal = words.no_fit_cpu(memory, need, limit, _remedies(spec, shape, facts.dataset, limit))
    return Plan(status.model_copy(update={"message": refusal}), DOES_NOT_FIT)


def _on_accelerator(  # noqa: PLR0913 - the parts of a plan
    spec: FineTuneJobSpec, shape: ModelShape, facts: Facts, steps: StepPlan, load: Load, choice: Choice
) -> Plan:
    longest = _longest(spec, facts.dataset)
    fit = fit_of(choice, shape, load, longest)
    status = _status(spec, shape, facts, steps, fit.load, fit.memory, fit.kind.memory_bytes, fit, choice.source)
    message = words.plan(steps, status)
    if fit.excess <= MARGIN:
        small = too_small(shape, fit, longest, choice.kinds)
        told = words.accelerator(fit, choice, small)
        extra = told if fit.fits else words.tight(fit.memory.total, fit.kind.memory_bytes)
        host = _host_words(spec, status.host_memory_bytes, facts.memory_limit)
        return Plan(status.model_copy(update={"message": f"{message}. {extra}{host}"}))
    every = table(facts.settings.accelerators)
    wider = [kind for kind in every if best_fit(shape, load, longest, (kind,)).fits]
    remedies = _remedies(spec, shape, facts.dataset, fit.kind.memory_bytes, fit.kind)
    refusal = words.no_fit_accelerator(fit, choice, wider, remedies)
    return Plan(status.model_copy(update={"message": refusal}), DOES_NOT_FIT)


def _host_words(spec: FineTuneJobSpec, need: int, limit: int) -> str:
    """Where the user's own limit may be too little for the pod: told, not refused, since much of it is file pages."""
    own = "memory" in spec.pod.resources.limits
    return f". {words.small_host(need, limit)}" if own and limit < need else ""


def _remedies(
    spec: FineTuneJobSpec, shape: ModelShape, dataset: DatasetStatus, limit: int, kind: Accelerator | None = None
) -> list[str]:
    """Single changes of the spec with which the job would fit, by the estimate; the mildest of each kind."""
    longest = _longest(spec, dataset)
    lengths = [longest >> halves for halves in range(1, 12) if longest >> halves >= SHORTEST_USEFUL]
    refused = {"QLoRA"} if spec.method.classifies else set()
    milder = MILDER[spec.method.adapter] if _processes(spec) == 1 else {*MILDER[spec.method.adapter], "LoRA"}
    adapters = [name for name in ("LoRA", "QLoRA") if name in milder and name not in {spec.method.adapter, *refused}]
    options = (
        [
            (f"training.maxSequenceLength: {length}", _changed(spec, "training", max_sequence_length=length))
            for length in lengths
        ],
        [(f"evaluation.generations: {count}", _changed(spec, "evaluation", generations=count)) for count in (8, 0)],
        [(f"method.adapter: {name}", _changed(spec, "method", adapter=name)) for name in adapters],
        [("method.merge: false", _changed(spec, "method", merge=False))] if spec.method.merge else [],
        _more_devices(spec),
    )
    found = (
        next((told for told, changed in each if _fits(changed, shape, dataset, limit, kind)), "") for each in options
    )
    return [told for told in found if told]


def _more_devices(spec: FineTuneJobSpec) -> list[tuple[str, FineTuneJobSpec]]:
    """More accelerators, of one node and then of several, over which the weights may be split; QLoRA's are not."""
    other = "" if spec.method.adapter != "QLoRA" else "method.adapter: LoRA and "
    spec = _changed(spec, "method", adapter="LoRA") if other else spec
    counts = [count for count in SIZES if count > _processes(spec)] if _splits(spec) else []
    crews = [(min(count, LARGEST_NODE), -(-count // LARGEST_NODE)) for count in counts]
    changed = [_changed(spec, "resources", accelerators=accelerators, nodes=nodes) for accelerators, nodes in crews]
    return [(other + words.devices(*crew), each) for crew, each in zip(crews, changed, strict=True)]


def _splits(spec: FineTuneJobSpec) -> bool:
    """Whether weights may be split: not those in 4 bits (docs/adr/0070), nor over slices, which NCCL does not join."""
    asked = spec.resources
    return asked.accelerators > 0 and spec.method.adapter != "QLoRA" and not is_slice(asked.accelerator_resource)


def _changed(spec: FineTuneJobSpec, block: str, **fields: object) -> FineTuneJobSpec:
    return spec.model_copy(update={block: getattr(spec, block).model_copy(update=fields)})


def _fits(
    spec: FineTuneJobSpec, shape: ModelShape, dataset: DatasetStatus, limit: int, kind: Accelerator | None
) -> bool:
    every: Sequence[Load] = ways(job_load(spec, dataset), _longest(spec, dataset))
    return any(estimate(shape, on(kind, way) if kind else way).total <= limit for way in every)


def job_load(spec: FineTuneJobSpec, dataset: DatasetStatus) -> Load:
    """What the job asks of its device: packs as the trainer makes them, prompts as long as the longest row's."""
    device = "cuda" if spec.resources.accelerators else "cpu"
    longest = _longest(spec, dataset)
    share = -(-spec.training.tokens_per_step // _processes(spec))  # of a step; each process computes its own packs
    filled = min(PACK_TOKENS[device], max(share, longest))
    alone = longest * (2 if spec.method.objective == "DPO" else 1)  # two answers are compared in one pack
    tokens = max(longest, filled) if spec.training.packing else alone
    trained = dataset.trained_tokens / max(1, dataset.train_tokens)
    return Load(
        device=device,
        number_bytes=2 if device == "cuda" else FLOAT32,
        pack_tokens=tokens,
        trained_tokens=max(1, round(tokens * trained)),
        adapter=_adapter(spec),
        rank=spec.method.lora.rank,
        target_modules=spec.method.lora.target_modules,
        longest_prompt=round(longest * (1 - trained)),
        answers=min(spec.evaluation.generations, dataset.validation_rows),
        new_tokens=spec.evaluation.max_new_tokens,
        merges=spec.method.merge and spec.method.adapter == "QLoRA",
        processes=_processes(spec) if _splits(spec) else 1,
    )


def _processes(spec: FineTuneJobSpec) -> int:
    """One a device; on CPU one a node."""
    return spec.resources.nodes * max(1, spec.resources.accelerators)


def _adapter(spec: FineTuneJobSpec) -> Adapter:
    return "Full" if spec.method.adapter == "None" else cast("Adapter", spec.method.adapter)


def _longest(spec: FineTuneJobSpec, dataset: DatasetStatus) -> int:
    return max(1, min(dataset.max_tokens or spec.training.max_sequence_length, spec.training.max_sequence_length))


def _status(  # noqa: PLR0913 - the parts of a plan
    spec: FineTuneJobSpec,
    shape: ModelShape,
    facts: Facts,
    steps: StepPlan,
    load: Load,
    memory: Memory,
    limit: int = 0,
    fit: Fit | None = None,
    source: str = "",
) -> PlanStatus:
    """status.plan but for its words. No time and no price where the device's speed is not known."""
    status = PlanStatus(
        steps=steps.steps,
        tokens=steps.tokens,
        total_parameters=total_parameters(shape),
        trainable_parameters=trainable_parameters(shape, load.adapter, load.rank, load.target_modules),
        memory_bytes=memory.total,
        memory=MemoryPlan(**asdict(memory)),
        memory_limit_bytes=limit,
        host_memory_bytes=_host_bytes(spec, shape, load),
        pack_tokens=load.pack_tokens,
        recompute=load.recompute,
        shards=load.shards,
        accelerator=fit.kind.name if fit else "",
    )
    if load.device == "cuda" and (fit is None or source == "slice"):
        return status
    time = _time(spec, shape, facts, steps, load, fit)
    seconds, units, hourly = time.seconds, time.units, time.hourly
    return status.model_copy(
        update={
            "estimated_duration": format_duration(round(seconds)),
            "evaluation_duration": format_duration(round(time.evaluation)),
            "tasks_duration": format_duration(round(time.tasks)) if time.tasks else "",
            "price": round(cost.price(seconds, units, hourly), 4),
            "price_per_hour": round(units * hourly, 4),
            "currency": facts.settings.currency,
        }
    )


def _host_bytes(spec: FineTuneJobSpec, shape: ModelShape, load: Load) -> int:
    if load.device == "cpu":
        return 0
    best, whole = spec.training.early_stopping is not None, spec.method.publishes_model
    return host_bytes(shape, load, spec.resources.accelerators, keeps_best=best, writes_model=whole)


@dataclass(frozen=True)
class _Time:
    """Seconds of the train stage, those of them that are not training, and for evaluation.tasks; what it holds:
    accelerators or cores in all, and the hourly price of one."""

    seconds: float
    evaluation: float
    tasks: float
    units: float
    hourly: float


def _time(  # noqa: PLR0913 - the parts of a plan
    spec: FineTuneJobSpec, shape: ModelShape, facts: Facts, steps: StepPlan, load: Load, fit: Fit | None
) -> _Time:
    settings, resources = facts.settings, spec.resources
    if fit is None:
        units, hourly = facts.cores * resources.nodes, settings.cpu_price_per_hour
        rate = settings.cpu_gigaflops * 1e9 * facts.cores
    else:
        units = float(resources.accelerators * resources.nodes)
        hourly, rate = fit.kind.price_per_hour, cost.accelerator_rate(shape, fit.kind.bf16_teraflops)
    limit = parse_duration(spec.training.max_duration)
    work = _work(spec, facts.dataset, steps, load)
    trained = trainable_parameters(shape, load.adapter, load.rank, load.target_modules)
    gathers = _gathers(spec, shape, facts.dataset, steps, load) if load.shards > 1 else None
    crew = cost.Crew(_processes(spec), resources.nodes, steps.steps, trained, gathers)
    seconds, others = (
        cost.stage_seconds(shape, work, load.adapter, load.recompute, rate, most, facts.model_bytes, crew)
        for most in (limit, 0.0)
    )
    return _Time(seconds, others, cost.tasks_seconds(shape, work, rate, crew), units, hourly)


def _gathers(
    spec: FineTuneJobSpec, shape: ModelShape, dataset: DatasetStatus, steps: StepPlan, load: Load
) -> cost.Gathers:
    """What processes send each other of a model that is split over them: every pass gathers all of it.

    Passes as the trainer makes them: a step's packs in rounds of one a process (batches.py, ``spread``), held-out rows
    in packs, the base's view of answers an example at a time (objectives.py, ``reference``), and one a generated token.
    """
    total, mean = total_parameters(shape), _mean(dataset.train_tokens, dataset.train_rows)
    scored = min(spec.evaluation.max_samples, dataset.validation_rows)
    held_out = -(-scored // _rows_of(load.pack_tokens, _mean(dataset.validation_tokens, dataset.validation_rows)))
    seen = math.ceil(min(steps.tokens, dataset.train_tokens) / mean) + scored
    answers = -(-load.answers // GENERATION_BATCH[load.device]) * (1 + load.new_tokens)
    packed = _rows_of(load.pack_tokens, mean)
    rounds, measured = (
        steps.steps * math.ceil(steps.tokens / max(1, steps.steps) / mean / (rows * load.shards))
        for rows in (packed if spec.training.packing else 1, packed)
    )
    asked = -(-dataset.task_passes // cost.rows_asked_at_once(shape))
    return cost.Gathers(
        weights=total * load.number_bytes,
        gradients=total * FLOAT32 * load.trains_base,
        rounds=rounds,
        measured=measured * (spec.method.objective == "KTO"),
        evaluated=2 * (held_out + answers) + seen * (COMPARED[spec.method.objective] > 0),
        asked=2 * asked,
    )


def _mean(tokens: int, rows: int) -> float:
    return max(1.0, tokens / max(1, rows))


def _rows_of(pack_tokens: int, mean: float) -> int:
    """Rows of the mean length in a pack; a longer one has a pack of its own."""
    return max(1, int(pack_tokens / mean))


def _work(spec: FineTuneJobSpec, dataset: DatasetStatus, steps: StepPlan, load: Load) -> cost.Work:
    scored = min(spec.evaluation.max_samples, dataset.validation_rows)
    held_out = math.ceil(dataset.validation_tokens * scored / max(1, dataset.validation_rows))
    compared = COMPARED[spec.method.objective]
    mean = dataset.train_tokens / max(1, dataset.train_rows)
    return cost.Work(
        tokens=steps.tokens,
        mean_length=mean,
        trained_share=dataset.trained_tokens / max(1, dataset.train_tokens),
        scored_tokens=held_out * max(1, compared),
        answers=load.answers,
        prompt_tokens=min(load.longest_prompt, round(mean)),
        new_tokens=load.new_tokens,
        asked_tokens=dataset.task_tokens,
        reference_tokens=compared * (min(steps.tokens, dataset.train_tokens) + held_out),
        measured_tokens=steps.tokens if spec.method.objective == "KTO" else 0,
    )
