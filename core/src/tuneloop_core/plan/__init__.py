"""What a job will take, computed before an accelerator is held. Pure: never reads a model and never asks a cluster.

``job`` plans a whole FineTuneJob; ``config`` reads a model's shape. Import those modules: nothing is re-exported here
but what the settings and the stages need, so that neither pulls in the API.
"""

from tuneloop_core.plan.steps import StepPlan, plan_steps

__all__ = ["StepPlan", "plan_steps"]
