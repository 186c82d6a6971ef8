"""Names that more than one part of Tuneloop must agree on.

One place, so that the operator, the trainer, the server and the gateway cannot drift apart. Never holds
settings (what an administrator may change) and never anything computed.
"""

from typing import Final

GROUP: Final = "tuneloop.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

FINETUNEJOB_KIND: Final = "FineTuneJob"
FINETUNEJOB_PLURAL: Final = "finetunejobs"
MODELDEPLOYMENT_KIND: Final = "ModelDeployment"
MODELDEPLOYMENT_PLURAL: Final = "modeldeployments"

FIELD_MANAGER: Final = "tuneloop"

# Labels on every child; watches select on the first one at the API server.
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "tuneloop"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"  # fetch | check | train | publish | server | store
LABEL_FINETUNEJOB: Final = f"{GROUP}/finetunejob"
LABEL_MODELDEPLOYMENT: Final = f"{GROUP}/modeldeployment"
LABEL_STAGE: Final = f"{GROUP}/stage"
LABEL_REVISION: Final = f"{GROUP}/revision"
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY_LABEL: Final = "kueue.x-k8s.io/priority-class"

# The store: one claim per namespace, these folders at its root.
STORE_CLAIM: Final = "tuneloop-store"
STORE_MODELS: Final = "models"
STORE_DATASETS: Final = "datasets"
STORE_WORK: Final = "work"
STORE_TOKENS: Final = "tokens"  # checked datasets, kept for the next job on the same data
STORE_ARTIFACTS: Final = "artifacts"

# Every pod we make runs as this user and group; fsGroup makes the store writable for it.
RUN_AS_ID: Final = 65532

# Environment and files of stage pods.
STAGE_INPUT_ENV: Final = "TUNELOOP_STAGE_INPUT"
TERMINATION_LOG: Final = "/dev/termination-log"
TERMINATION_MESSAGE_LIMIT: Final = 3584  # bytes; the kubelet cuts at 4096 over all containers

# Tokens a pack of the trainer. On CPU, small enough that activations stay in the caches; on CUDA, enough to fill it.
PACK_TOKENS: Final = {"cpu": 1024, "cuda": 8192}

# The most that a train pod gets for its checkpoint after SIGTERM: the kubelet's grace by the plan, and torchrun's wait.
STOPPING_SECONDS: Final = 3600

# A generated token costs as much as so many of a packed forward pass: what plan and progress count with.
GENERATED_TOKEN_COST: Final = 4

PROGRESS_PORT: Final = 8080
MEETING_PORT: Final = 29500  # of the first train pod, where the processes of a job of several pods meet
SERVER_PORT: Final = 8000
MODEL_FOLDER: Final = "/model"  # where a server finds its base model
GATEWAY_PORT: Final = 8080
GATEWAY_INTERNAL_PORT: Final = 9090
OPERATOR_METRICS_PORT: Final = 9090
OPERATOR_LIVENESS_PORT: Final = 8081

# Exit codes of stage pods. USER_ERROR fails the Job at once (pod failure policy); anything else counts as a try.
EXIT_USER_ERROR: Final = 42
EXIT_TRANSIENT: Final = 75  # EX_TEMPFAIL: the hub or store did not answer; worth another try
EXIT_STEP_TIMEOUT: Final = 76  # the train pod's watchdog: no progress within training.stepTimeout; counts as a try
EXIT_PEER_LOST: Final = 77  # of a job of several processes: another one ended, and none trains alone; no try
EXIT_TERMINATED: Final = 143  # SIGTERM obeyed: the checkpoint is saved
