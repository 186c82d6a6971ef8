"""What a job will take, computed before an accelerator is held. Pure: never reads a model and never asks a cluster."""

from tuneloop_core.plan.steps import StepPlan, plan_steps

__all__ = ["StepPlan", "plan_steps"]
