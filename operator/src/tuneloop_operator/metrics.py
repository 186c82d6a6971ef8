"""The operator's Prometheus metrics, in one place so that names and labels are a documented surface.

Never decides anything.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

RECONCILES = Counter("tuneloop_reconcile", "Reconciles by kind and outcome.", ["kind", "outcome"], registry=REGISTRY)
RECONCILE_SECONDS = Histogram(
    "tuneloop_reconcile_duration_seconds",
    "Duration of one reconcile.",
    ["kind"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
QUEUE_DEPTH = Gauge("tuneloop_queue_depth", "Keys that wait for a worker.", registry=REGISTRY)
API_WRITES = Counter(
    "tuneloop_api_writes",
    "Writes to the API server by kind and verb. Renewals of the Lease are counted apart.",
    ["kind", "verb"],
    registry=REGISTRY,
)
API_READS = Counter("tuneloop_api_reads", "GETs and LISTs outside kopf's watches.", ["kind"], registry=REGISTRY)
LEASE_RENEWALS = Counter("tuneloop_lease_renewals", "Successful renewals of the Lease.", registry=REGISTRY)
LEADER = Gauge("tuneloop_leader", "1 while this process holds the Lease.", registry=REGISTRY)
ERRORS = Counter("tuneloop_errors", "Errors by where they were met.", ["where"], registry=REGISTRY)
POLLS = Counter("tuneloop_polls", "Polls of our pods by target and outcome.", ["target", "outcome"], registry=REGISTRY)
WATCH_AGE = Gauge("tuneloop_watch_age_seconds", "Seconds since a watch delivered our own Lease.", registry=REGISTRY)


ACCELERATOR_SECONDS = Counter(
    "tuneloop_accelerator_seconds",
    "Accelerators times seconds of train pods, by namespace and queue (empty without one).",
    ["namespace", "queue"],
    registry=REGISTRY,
)
PRICE = Counter(
    "tuneloop_train_price",
    "Price of train pods at their plans' hourly price, by namespace and queue.",
    ["namespace", "queue", "currency"],
    registry=REGISTRY,
)
JOB_ACCELERATOR_SECONDS = Gauge(
    "tuneloop_finetunejob_accelerator_seconds",
    "The same by job, for at most 1,000 jobs that exist.",
    ["namespace", "name", "queue"],
    registry=REGISTRY,
)
JOB_PRICE = Gauge(
    "tuneloop_finetunejob_price",
    "Price of a job's train pods, for at most 1,000 jobs that exist.",
    ["namespace", "name", "queue", "currency"],
    registry=REGISTRY,
)


COLD_START_SECONDS = Histogram(
    "tuneloop_cold_start_seconds",
    "Starts of replicas by phase: scheduled, image, model, engine, warmUp, and total. By deployment for at most 200 "
    "that exist, the others together under an empty name.",
    ["namespace", "name", "phase"],
    buckets=(0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200),
    registry=REGISTRY,
)


def exposition() -> bytes:
    """All metrics in the text format."""
    return generate_latest(REGISTRY)
