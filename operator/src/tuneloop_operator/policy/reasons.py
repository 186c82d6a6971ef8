"""Condition reasons that the operator finds itself. Those that pods report are ``tuneloop_core.stages.Reason``."""

from typing import Final

# Calm
SUCCEEDED: Final = "Succeeded"
READY: Final = "Ready"
SUSPENDED: Final = "Suspended"
STOPPING: Final = "Stopping"

# On the way
CREATED: Final = "Created"
RUNNING: Final = "Running"
STARTING: Final = "Starting"
RETRYING: Final = "Retrying"
RESULT_MISSING: Final = "ResultMissing"
QUEUE_WAITING: Final = "QueueWaiting"
WAITING_FOR_JOB: Final = "WaitingForFineTuneJob"
ROLLING_OUT: Final = "RollingOut"
ADAPTER_FETCHING: Final = "FetchingAdapter"
ADAPTERS_LOADING: Final = "AdaptersLoading"
SCALED_TO_ZERO: Final = "ScaledToZero"
SCALED_UP: Final = "ScaledUp"
SCALED_DOWN: Final = "ScaledDown"
WOKEN: Final = "Woken"

# Lifted from children
QUOTA_EXCEEDED: Final = "QuotaExceeded"
POD_REFUSED: Final = "PodRefused"
UNSCHEDULABLE: Final = "Unschedulable"
IMAGE_NOT_PULLED: Final = "ImageNotPulled"
VOLUME_NOT_MOUNTED: Final = "VolumeNotMounted"
CLAIM_PENDING: Final = "ClaimPending"
CONTAINER_NOT_STARTED: Final = "ContainerNotStarted"
OOM_KILLED: Final = "OOMKilled"
POD_FAILED: Final = "PodFailed"
EVICTED: Final = "Evicted"
NODE_LOST: Final = "NodeLost"
DEADLINE_EXCEEDED: Final = "DeadlineExceeded"
CRASHING: Final = "CrashLooping"

# Plans
FITS: Final = "Fits"
MEMORY_UNKNOWN: Final = "MemoryUnknown"
DOES_NOT_FIT: Final = "DoesNotFit"

# A person must act
NAME_TAKEN: Final = "NameTaken"
FOREIGN_OBJECT: Final = "ForeignObject"
SECRET_NOT_ALLOWED: Final = "SecretNotAllowed"  # noqa: S105 - a reason
GATE_FAILED: Final = "GateFailed"
RETRIES_EXHAUSTED: Final = "RetriesExhausted"
INVALID_RESULT: Final = "InvalidResult"
FINETUNEJOB_FAILED: Final = "FineTuneJobFailed"
ADAPTER_FAILED: Final = "AdapterFailed"
WRONG_ARTIFACT: Final = "WrongArtifact"
WRONG_BASE: Final = "WrongBase"
ADAPTER_MISFIT: Final = "AdapterMisfit"
INVALID_SPEC: Final = "InvalidSpec"
INVALID_STATUS: Final = "InvalidStatus"
REFUSED_BY_CLUSTER: Final = "RefusedByCluster"
