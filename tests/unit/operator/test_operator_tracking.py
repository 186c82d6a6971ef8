"""A tracker that was not told: the job has succeeded all the same, and says so."""

from datetime import UTC, datetime

from operator_world import PUBLISHED

from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.stages import Stage, Termination
from tuneloop_operator.policy.results import absorb
from tuneloop_operator.policy.transitions import training_notes

JOB = FineTuneJob.model_validate(
    {
        "metadata": {"name": "j", "namespace": "t", "uid": "u"},
        "spec": {"model": {"uri": "hf://org/model"}, "dataset": {"uri": "pvc://data/a.jsonl"}},
        "status": {"notices": [{"reason": "LossSpike", "message": "before"}]},
    }
)


def test_a_tracker_that_was_not_told_is_a_warning_beside_the_artifact() -> None:
    notice = {"reason": "TrackingFailed", "message": "http://mlflow was not told"}
    said = Termination(stage=Stage.PUBLISH, outcome="Succeeded", result=PUBLISHED | {"notices": [notice]})
    fields = absorb(Stage.PUBLISH, JOB, said, (), datetime.now(UTC))
    assert fields["artifact"].digest == PUBLISHED["digest"]
    assert [each.reason for each in fields["notices"]] == ["LossSpike", "TrackingFailed"]
    (note,) = training_notes(JOB.status.notices, fields["notices"])
    assert (note.reason, note.message, note.warning) == ("TrackingFailed", "http://mlflow was not told", True)
