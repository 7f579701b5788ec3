"""What templates may name of a plan's weights: the volume that servers read, and what fills it from the hub."""

from __future__ import annotations

from typing import Any

from modelstacks.catalog import Catalog
from modelstacks.fields import digest
from modelstacks.images import mirrored
from modelstacks.plan import Plan
from modelstacks.plan.weights import MOUNT
from modelstacks.podsize import PodSize
from modelstacks.render.cloud import READ_ONLY

# The label by which the program knows what must be there before servers are.
WEIGHTS_COMPONENT = "weights"
# What S3 and GCS clients read their credentials from.
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION")
_BUCKET_MOUNT = "/etc/modelstacks/bucket"


def values(plan: Plan, labels: dict[str, str], size: PodSize) -> dict[str, Any]:
    """The part of the template context that speaks of weights."""
    spec, where = plan.spec.weights, plan.weights
    name = f"{plan.name}-weights"
    selector = {"app.kubernetes.io/instance": name}
    # Of another checkpoint the volume has another size, which Kubernetes does not let shrink; nor may its class change
    # while servers mount it. The new one is filled while they read the old one.
    repo = plan.checkpoint.repo or "" if plan.checkpoint is not None else ""
    claim = spec.claim or f"{name}-{digest(repo, spec.storage_class, spec.access_mode)}"
    revision = plan.checkpoint.revision if plan.checkpoint is not None else None
    filled = plan.weights_gib if plan.checkpoint is None else plan.checkpoint.size_gib
    return {
        "weights": where,
        "reads_hub": where.reads_hub,
        "servers_fetch": where.reaches_out,
        "streams": where.place == "object-store",
        # Google's client reads a file, the S3 one variables.
        "credentials": _CREDENTIALS if spec.credentials_secret is not None and not _is_google(plan) else (),
        "bucket_file": f"{_BUCKET_MOUNT}/credentials.json" if spec.credentials_secret and _is_google(plan) else None,
        "bucket_mount": _BUCKET_MOUNT,
        "credentials_secret": spec.credentials_secret,
        "weights_mount": MOUNT,
        "weights_source": _source(plan, claim),
        "weights_claim": claim,
        "weights_volume": {
            "access_modes": [spec.access_mode or "ReadWriteMany"],
            "storage_class": spec.storage_class,
            # Room for a second revision while servers still read the first.
            "size": f"{2 * int(filled + 1) + 10}Gi",
        }
        if spec.shared
        else None,
        "weights_target": f"{MOUNT}/{where.folder}" if where.folder is not None else MOUNT,
        "revision_or_main": revision or "main",
        "fetch_name": name,
        "fetch_job": f"{name}-{digest(where.folder, claim)}" if where.fetched_by == "job" else None,
        "fetch_labels": {key: value for key, value in labels.items() if key != "llm-d.ai/model"}
        | selector
        | {"app.kubernetes.io/component": WEIGHTS_COMPONENT},
        "fetch_selector": selector,
        "fetch_security": READ_ONLY,
        # A folder that the kubelet makes belongs to root.
        "init_security": READ_ONLY | {"runAsUser": 0, "runAsNonRoot": False},
        "fetch_placement": _placement(plan),
        "before_s": plan.timeouts.before_s,
        "before_text": str(plan.timeouts.before_s),
    }


def program(catalog: Catalog) -> str:
    """The program that fetches weights, as the ConfigMap carries it."""
    return (catalog.templates / "programs" / "prefetch.py").read_text(encoding="utf-8")


def _is_google(plan: Plan) -> bool:
    return (plan.spec.weights.uri or "").startswith("gs://")


def _placement(plan: Plan) -> dict[str, Any]:
    """Where the Job runs: anywhere; to fill a volume of one node, in its zone and rather where servers mount it."""
    cloud = plan.spec.cloud
    if not plan.spec.weights.on_one_node:
        return {"nodeSelector": {}, "tolerations": [], "affinity": {}}
    zone = {"topology.kubernetes.io/zone": cloud.zones[0]} if cloud is not None and len(cloud.zones) == 1 else {}
    servers = {"matchLabels": {"app.kubernetes.io/instance": plan.name}}
    beside = {"weight": 100, "podAffinityTerm": {"labelSelector": servers, "topologyKey": "kubernetes.io/hostname"}}
    return {
        "nodeSelector": zone,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [beside]}},
    }


def _source(plan: Plan, claim: str) -> dict[str, Any] | None:
    """The volume that servers read weights from; None where they fetch or stream them."""
    spec, where = plan.spec.weights, plan.weights
    if where.place in ("claim", "shared-volume"):
        # Not the claim's own readOnly: a first mount in that mode cannot be attached again for writing.
        return {"name": "weights", "persistentVolumeClaim": {"claimName": claim}}
    if where.place == "image":
        reference = mirrored(spec.image or "", plan.spec.registry)
        return {"name": "weights", "image": {"reference": reference, "pullPolicy": "IfNotPresent"}}
    if where.place == "node-folder":
        kind = "DirectoryOrCreate" if where.fetched_by == "init" else "Directory"
        return {"name": "weights", "hostPath": {"path": spec.host_path, "type": kind}}
    return None
