"""Stage check as the process that a pod runs: what it imports differs from what a test in this process sees."""

import pods
from tuneloop_core.stages import Stage


def test_the_check_of_a_pod_runs_without_torch(pod: pods.Pod) -> None:
    done = pod.process(Stage.CHECK, pod.check_input(), "-X", "importtime")
    assert done.returncode == 0, done.stderr[-3000:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "transformers" in imported
    assert "torch" not in imported
