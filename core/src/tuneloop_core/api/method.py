"""``spec.method`` of a FineTuneJob: what is learnt, and which weights learn it. Never computes anything."""

from typing import Literal

from pydantic import Field

from tuneloop_core.api.base import SpecModel, cel, rules
from tuneloop_core.api.formats import Decimal, decimal_rule

ALL_LINEAR = "all-linear"


class LoRASettings(SpecModel):
    """LoRA (arXiv:2106.09685): a pair of low-rank matrices beside each chosen weight."""

    rank: int = Field(default=16, ge=1, le=256, description="Rank of the added matrices: more learns more, costs more.")
    alpha: int = Field(default=32, ge=1, le=1024, description="Scale of the update is alpha / rank.")
    rank_stabilized: bool = Field(
        default=False,
        description="rsLoRA (arXiv:2312.03732): the scale is alpha / sqrt(rank), so that high ranks learn more.",
    )
    target_modules: str = Field(
        default=ALL_LINEAR,
        max_length=256,
        description='"all-linear", or module names separated by commas, such as "q_proj,v_proj".',
        json_schema_extra=rules(
            cel(
                "self.matches('^[A-Za-z0-9_.-]+(,[A-Za-z0-9_.-]+)*$')",
                'targetModules must be "all-linear" or module names separated by commas, such as "q_proj,v_proj"',
            )
        ),
    )


class Method(SpecModel):
    """How the model is tuned."""

    model_config = {
        "json_schema_extra": rules(
            cel(
                "self.adapter != 'None' || (self.lora.rank == 16 && self.lora.alpha == 32 && "
                "!self.lora.rankStabilized && self.lora.targetModules == 'all-linear')",
                "adapter None trains all weights and has no use for lora: leave lora out, or take adapter LoRA",
                ".lora",
            ),
            cel(
                "self.adapter != 'None' || !self.merge",
                "adapter None trains all weights and publishes them: there is nothing to merge; leave merge out",
                ".merge",
            ),
            cel(
                "self.task == 'TextGeneration' || self.objective == 'SFT'",
                "DPO and KTO compare answers, and a classifier gives none: take objective SFT with task "
                "SequenceClassification",
                ".objective",
            ),
            cel(
                "self.task == 'TextGeneration' || self.adapter != 'QLoRA'",
                "a classifier is published whole, and a base in 4 bits cannot be: take adapter LoRA, DoRA or None",
                ".adapter",
            ),
            cel(
                "self.objective != 'SFT' || self.beta == '0.1'",
                "beta is of DPO and KTO; leave it out with objective SFT",
                ".beta",
            ),
        )
    }

    task: Literal["TextGeneration", "SequenceClassification"] = Field(
        default="TextGeneration",
        description="TextGeneration answers; SequenceClassification gives each text one of the dataset's classes, and "
        "publishes a whole model with a classifying head in place of the one for words.",
    )
    objective: Literal["SFT", "DPO", "KTO"] = Field(
        default="SFT",
        description="SFT learns answers, DPO (arXiv:2305.18290) which of two answers is liked better, KTO "
        "(arXiv:2402.01306) answers with thumbs up or down. DPO and KTO want a learningRate of about a tenth of SFT's.",
    )
    adapter: Literal["LoRA", "QLoRA", "DoRA", "None"] = Field(
        default="LoRA",
        description="LoRA and DoRA train an adapter, QLoRA (arXiv:2305.14314) one over a base held in 4 bits, which "
        "takes a quarter of its memory and more time; None trains all weights, and wants about a tenth of the "
        "learningRate. DoRA and None publish a whole model, LoRA and QLoRA an adapter for the base as it was, or with "
        "merge a whole model too.",
    )
    lora: LoRASettings = Field(default=LoRASettings(), description="Settings of the adapter.")
    merge: bool = Field(
        default=False,
        description="Publish a whole model with the adapter merged into its weights, for servers and tools that load "
        "no adapters; what is scored is the merged model. QLoRA merges into the base as it was, not in 4 bits: it must "
        "fit the device. DoRA and SequenceClassification merge in any case.",
    )
    beta: Decimal = Field(
        default="0.1",
        description='DPO and KTO: how strongly the tuned model is held to its base, a decimal in quotes such as "0.1"; '
        "more stays closer.",
        json_schema_extra=rules(
            decimal_rule(
                "double(self) > 0.0 && double(self) <= 10.0", 'beta must be above 0 and at most 10, such as "0.1"'
            )
        ),
    )

    @property
    def classifies(self) -> bool:
        """Whether the model gives classes instead of words."""
        return self.task == "SequenceClassification"

    @property
    def learns(self) -> str:
        """What the rows must teach: the objective, or Classification."""
        return "Classification" if self.classifies else self.objective

    @property
    def publishes_model(self) -> bool:
        """Whether a whole model is published: as asked, or since no server loads DoRA, all weights, or a new head."""
        return self.merge or self.classifies or self.adapter in ("DoRA", "None")
