"""The Ray Serve launcher's part of the template context: plan and application as files, and what Ray pods carry.

The plan file is read by the application in ray/, which runs inside the cluster and cannot import this package.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from modelstacks import documents, project
from modelstacks.catalog import Catalog
from modelstacks.fields import digest
from modelstacks.images import mirrored
from modelstacks.plan import Plan
from modelstacks.plan.rollout import rollout
from modelstacks.render import cloud
from modelstacks.render.templates import part
from modelstacks.render.values import form_of

PLAN_ROOT, CODE_ROOT = "/etc/modelstacks", "/opt/modelstacks"
PACKAGE = "modelstacks_ray"
# The label by which the program knows what must be there before a head.
STATE_COMPONENT = "head-state"
_SCHEMA = 1
# Of the plan's node agent: is the raylet alive, and on the head the global control store too.
_AGENT_PORT = 52365
_REPLICA_LABEL = "modelstacks.dev/replica"
_STATE_LABEL = "modelstacks.dev/state-of"
_SETTLE_S = 20


def values(plan: Plan, catalog: Catalog, context: dict[str, Any]) -> dict[str, Any]:
    """What the templates of this launcher name under `ray`, from a context that has everything else."""
    form = form_of(plan)
    engine = part(catalog, f"engines/{form.template}.yaml.j2", context)
    plan_json = serving_plan(plan, engine, context)
    code = application()
    digest = digest_of({"plan.json": plan_json, **code})
    recovery = _recovery(plan, form.state_image)
    found: dict[str, Any] = {
        "version": form.companions["ray"],
        "application": f"llm-{digest}",
        "digest": digest,
        "plan_json": plan_json,
        "code": code,
        "plan_config_map": f"{plan.name}-plan",
        "code_config_map": f"{plan.name}-ray",
        "plan_file": f"{PLAN_ROOT}/plan.json",
        "code_root": CODE_ROOT,
        "upgrade": "NewCluster" if rollout(plan).way == "new-cluster" else "None",
        "recovery": recovery,
        "state_labels": context["labels"] | {"app.kubernetes.io/component": STATE_COMPONENT},
        "replicas": [_replica(plan, name, context, recovery) for name in context["replica_names"]],
    }
    found["waits_for"] = _waits_for(context["waits_for"], found["application"])
    found |= _probes(context["health_path"], context["port"])
    found |= _files(found, context)
    within = context | {"ray": found}
    found["serve_config"] = documents.write(part(catalog, "parts/serveconfig.yaml.j2", within))
    found["env"] = part(catalog, "parts/ray-env.yaml.j2", within)
    found["worker_env"] = found["env"] + context["fabric"]["env"]
    return found


def serving_plan(plan: Plan, engine: dict[str, Any], context: dict[str, Any]) -> str:
    """The plan file of the application: JSON with the fields of its ServingPlan."""
    form, choice, fabric = form_of(plan), plan.choice, plan.fabric
    data = {
        "schema": _SCHEMA,
        "name": plan.name,
        "model": choice.model.id,
        "source": plan.weights.source,
        "gpu": choice.gpu.id,
        "accelerator_type": choice.gpu.ray_accelerator_type,
        "product": choice.gpu.product_label,
        "ray_version": form.companions["ray"],
        "engine_version": form.version,
        "tensor_parallel": choice.topology.tensor_parallel,
        "pipeline_parallel": choice.topology.pipeline_parallel,
        # Every replica is a Ray cluster of its own.
        "replicas": 1,
        "nodes_per_replica": plan.nodes_per_replica,
        "gpus_per_node": plan.gpus_per_node,
        "max_num_seqs": choice.load.max_num_seqs,
        "engine_kwargs": engine,
        "free_gib": round(plan.memory.budget_gib, 2),
        "shm_gib": context["shm_gib"],
        "fabric": fabric.id if fabric is not None else None,
        "paths": list(fabric.paths) if fabric is not None else [],
        # Worker pods that are Pending say why; the application waits with them.
        "nodes_within_s": None,
        "settle_s": _SETTLE_S,
        "drain_s": plan.leaving.drain_s,
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


@cache
def application() -> dict[str, str]:
    """File name → text of the package that runs inside the cluster."""
    folder = project.data_root() / "ray" / PACKAGE
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))}


def digest_of(files: dict[str, str]) -> str:
    """One word for the content of named files; the application computes the same of what it has mounted."""
    total = hashlib.sha256()
    for name, text in sorted(files.items()):
        content = text.encode()
        total.update(f"{name} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()[:12]


def _waits_for(readiness: str | None, application: str) -> str | None:
    """The launcher's readiness, where it is awaited at all, and that of the very application."""
    if readiness is None:
        return None
    status = f"{{.status.activeServiceStatus.applicationStatuses.{application}.status}}"
    return json.dumps([readiness, f"jsonpath={status}=RUNNING"])


def _replica(plan: Plan, name: str, context: dict[str, Any], recovery: dict[str, Any] | None) -> dict[str, Any]:
    labels = context["labels"] | {_REPLICA_LABEL: name}
    mine = context["worker_labels"] | {_REPLICA_LABEL: name}
    state = f"{name}-state"
    address = f"redis://{state}.{plan.namespace}.svc:6379"
    if recovery is not None and recovery["address"] is not None:
        address = recovery["address"]
    return {
        "name": name,
        "labels": labels,
        "affinity": cloud.affinity(plan, context["worker_labels"], mine),
        "state": {
            "name": state,
            # A volume's class cannot be changed.
            "claim": f"{state}-{digest(recovery['storage_class'])}" if recovery is not None else None,
            "address": address,
            "labels": context["labels"] | {_STATE_LABEL: name},
            "selector": context["selector"] | {_STATE_LABEL: name},
        },
    }


def _recovery(plan: Plan, image: str | None) -> dict[str, Any] | None:
    asked = plan.spec.head_recovery
    if asked is None:
        return None
    return {
        "address": asked.redis,
        "password_secret": asked.password_secret,
        "storage_class": asked.storage_class,
        "image": None if image is None else mirrored(image, plan.spec.registry),
    }


def _probes(health_path: str, port: int) -> dict[str, Any]:
    def agent(path: str, period_s: int, failures: int) -> dict[str, Any]:
        get = {"path": path, "port": _AGENT_PORT}
        return {"httpGet": get, "periodSeconds": period_s, "timeoutSeconds": 5, "failureThreshold": failures}

    return {
        "head_readiness": agent("/api/healthz", 5, 10),
        "head_liveness": {"initialDelaySeconds": 30} | agent("/api/healthz", 10, 24),
        "worker_liveness": {"initialDelaySeconds": 30} | agent("/api/local_raylet_healthz", 10, 24),
        "worker_readiness": {
            "httpGet": {"path": health_path, "port": port},
            "periodSeconds": 5, "timeoutSeconds": 6, "failureThreshold": 3,
        },
    }  # fmt: skip


def _files(ray: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    """Volumes and mounts of head and workers."""
    maps = [
        {"name": "plan", "configMap": {"name": ray["plan_config_map"]}},
        {"name": "application", "configMap": {"name": ray["code_config_map"]}},
    ]
    mounts = [
        {"name": "plan", "mountPath": PLAN_ROOT, "readOnly": True},
        {"name": "application", "mountPath": f"{CODE_ROOT}/{PACKAGE}", "readOnly": True},
    ]
    scratch = [
        {"name": "scratch", "mountPath": context["paths"]["cache"]},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    read = [{"name": "weights", "mountPath": context["weights_mount"], "readOnly": True}]
    source = context["weights_source"]
    # A volume of all nodes is on the head too, which reads the model's config; images and folders are of GPU nodes.
    on_head = source is not None and "persistentVolumeClaim" in source
    return {
        "volumes": maps + ([source] if on_head else []),
        "mounts": mounts + (read if on_head else []),
        "worker_volumes": maps + context["worker_volumes"],
        "worker_mounts": mounts + scratch + (read if source is not None else []) + context["fabric"]["mounts"],
    }
