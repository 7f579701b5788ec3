"""GPU software of a cluster: what the cloud brings, what must be there, and operators that nobody looks after."""

from __future__ import annotations

from modelstacks.catalog import Catalog, Operator
from modelstacks.catalog.versions import version_key
from modelstacks.cluster import operators
from modelstacks.cluster.findings import Finding, note, problem, quantity, warning
from modelstacks.cluster.nodes import GPU, has_gpu
from modelstacks.cluster.snapshot import Snapshot
from modelstacks.plan import Plan


def installations(snapshot: Snapshot, catalog: Catalog) -> dict[str, operators.Installation]:
    """Operators that are there, by what the snapshot holds."""
    return operators.find(
        catalog.operators.values(),
        deployments=snapshot.of("deployments"),
        daemonsets=snapshot.of("daemonsets"),
        releases=snapshot.of("helm_releases"),
        definitions=[d["metadata"]["name"] for d in snapshot.of("definitions")],
    )


def examine(snapshot: Snapshot, plan: Plan | None, catalog: Catalog) -> list[Finding]:
    """Operators that the stack asks for or depends on, and two that do one job."""
    there = installations(snapshot, catalog)
    found = _both(there) + _twice(snapshot, catalog)
    if plan is None:
        return found + [_unused(snapshot, one) for one in there.values() if _is_unused(snapshot, one)]
    simulated = plan.cloud is not None and plan.cloud.simulated
    needed = set(plan.spec.operators) if not simulated else set()
    needed |= {plan.tier_form.operator} if plan.tier_form.operator is not None else set()
    needed |= {"keda"} if plan.spec.autoscale is not None and not simulated else set()
    for name in sorted(needed):
        row, installed = catalog.operators[name], there.get(name)
        if installed is None:
            if name in plan.spec.operators:
                found.append(
                    note("operators", f"{name} is not there yet: pulumi up installs {row.chart} {row.version}")
                )
            else:
                mend = f"modelstacks:operators: [{name}], or {row.install_command}"
                found.append(problem("operators", f"{name} is not there: {row.about}", mend))
        elif installed.ready is False:
            text = f"{name} in {installed.namespace} is not ready: its pods do not run"
            found.append(problem("operators", text, f"kubectl -n {installed.namespace} get pods"))
        elif installed.by == "definitions" and not simulated:
            text = f"of {name} only its definitions are there: if no add-on of the cloud runs it, nobody acts on them"
            found.append(warning("operators", text, row.install_command))
        elif name == plan.tier_form.operator == "kuberay" and _is_shut_out(plan, row, installed):
            text = f"{name} runs in {installed.namespace}, and the stack's NetworkPolicy lets that of "
            text += f"{plan.spec.ray_operator_namespace or row.namespace} reach Ray heads: no application would start"
            found.append(
                problem("operators", text, f"modelstacks:rayOperatorNamespace: {installed.namespace}, then make render")
            )
        elif installed.version is not None and installed.version != row.version.removeprefix("v"):
            older = (version_key(installed.version) or ()) < (version_key(row.version) or ())
            if older and name == plan.tier_form.operator:
                # What it does not know of it drops without a word, the token that guards the head among it.
                text = f"{name} {installed.version} is there, the stack uses fields of {row.version}"
                found.append(problem("operators", text, _upgrade(row, installed)))
                continue
            text = f"{name} {installed.version} is there, {row.version} is what this was tested with"
            found.append(warning("operators", text, _upgrade(row, installed)))
    return found + _gpu_software(snapshot, plan, catalog, there)


def _is_shut_out(plan: Plan, row: Operator, installed: operators.Installation) -> bool:
    """The operator is known to be elsewhere than where the stack lets it in from."""
    let_in = plan.spec.ray_operator_namespace or row.namespace
    return installed.by == "workload" and installed.namespace not in (None, let_in)


def _upgrade(row: Operator, installed: operators.Installation) -> str:
    """The pinned chart over the installation that is there; the conventional place would be a second one."""
    place = installed.namespace or row.namespace
    if place == row.namespace:
        return row.install_command
    command = row.install_command.replace(f"--namespace {row.namespace}", f"--namespace {place}")
    return f"{command}   # under the release name that helm list -n {place} shows"


def _both(there: dict[str, operators.Installation]) -> list[Finding]:
    """Two that would both hand out GPUs, or both label nodes."""
    found = []
    for name, one in there.items():
        for other in one.operator.not_beside:
            if other in there and name < other and {one.by, there[other].by} == {"workload"}:
                if "node-feature-discovery" in (name, other):
                    continue
                text = f"{name} (in {one.namespace}) and {other} (in {there[other].namespace}) hand out the same GPUs"
                drop = there[other]
                mend = f"keep one: helm uninstall {drop.operator.release} --namespace {drop.namespace}"
                found.append(problem("gpu-software", text, mend))
    return found


def _twice(snapshot: Snapshot, catalog: Catalog) -> list[Finding]:
    """The device plugin running twice: on one node both would hand out the same GPUs."""
    rows = [row for row in catalog.operators["nvidia-device-plugin"].workloads if row.kind == "DaemonSet"]
    plugins = [d for d in snapshot.of("daemonsets") if any(operators.carries(d, row.labels) for row in rows)]
    if len(plugins) < 2:
        return []
    where = [f"{d['metadata']['namespace']}/{d['metadata']['name']}" for d in plugins]
    space, _, name = where[-1].partition("/")
    text = f"the device plugin runs {len(plugins)} times: {', '.join(where)}"
    return [problem("gpu-software", text, f"keep one: kubectl -n {space} delete daemonset {name}")]


def _is_unused(snapshot: Snapshot, one: operators.Installation) -> bool:
    claims = operators.claims(snapshot.of("operator_claims"))
    return one.operator.id not in claims and one.by == "workload"


def _unused(snapshot: Snapshot, one: operators.Installation) -> Finding:
    name = one.operator.id
    text = f"{name} {one.version or ''} in {one.namespace}: no stack of modelstacks says that it uses it".replace(
        "  ", " "
    )
    mend = f"if nobody else does: helm uninstall {one.operator.release} --namespace {one.namespace}"
    return note("operators", text, mend)


def _gpu_software(
    snapshot: Snapshot, plan: Plan, catalog: Catalog, there: dict[str, operators.Installation]
) -> list[Finding]:
    """Device plugin or driver for claims, where the cloud does not bring them."""
    kind, cloud = plan.cloud, plan.spec.cloud
    if kind is None or kind.simulated or cloud is None:
        return []
    if cloud.gpu_allocation == "dra":
        return _claims_driver(snapshot, plan, catalog)
    for name, row in catalog.operators.items():
        if name in there and kind.id in row.never_with and there[name].by == "workload":
            text = f"{name} is installed, and {row.never_with[kind.id]}"
            return [problem("gpu-software", text, f"helm uninstall {row.release} --namespace {there[name].namespace}")]
    plugins = [s for s in kind.software if s.name == "device plugin" and s.brought_by == "you"]
    some = any(quantity((n.get("status") or {}).get("allocatable", {}).get(GPU, 0)) for n in snapshot.of("nodes"))
    has_one = some or bool({"gpu-operator", "nvidia-device-plugin"} & there.keys())
    asked = {"gpu-operator", "nvidia-device-plugin"} & set(plan.spec.operators)
    if plugins and not has_one and not asked and snapshot.can_read("daemonsets"):
        name = plugins[0].operator or "nvidia-device-plugin"
        row = catalog.operators[name]
        note_ = f" ({plugins[0].note})" if plugins[0].note else ""
        text = f"no device plugin runs, and kind {kind.id} brings none{note_}: nodes would come and offer no {GPU}"
        level = problem if any(has_gpu(n) for n in snapshot.of("nodes")) or kind.makes_nodes else warning
        return [level("gpu-software", text, f"modelstacks:operators: [{name}], or {row.install_command}")]
    return []


def _claims_driver(snapshot: Snapshot, plan: Plan, catalog: Catalog) -> list[Finding]:
    """The API, the driver's class, and as many devices as the plan needs."""
    row = catalog.operators["dra-driver"]
    if not snapshot.can_read("deviceclasses"):
        text = "the cluster does not serve resource.k8s.io/v1, which gpuAllocation: dra needs (Kubernetes 1.34)"
        return [problem("apis", text, "leave modelstacks:cloud.gpuAllocation out, or upgrade the cluster")]
    if not any(c["metadata"]["name"] == "gpu.nvidia.com" for c in snapshot.of("deviceclasses")):
        text = "there is no DeviceClass gpu.nvidia.com: NVIDIA's DRA driver does not run"
        return [problem("gpu-software", text, f"modelstacks:operators: [dra-driver], or {row.install_command}")]
    slices = [
        s["spec"] for s in snapshot.of("resourceslices") if (s.get("spec") or {}).get("driver") == "gpu.nvidia.com"
    ]
    devices = sum(len(one.get("devices") or []) for one in slices)
    if slices and devices < plan.gpus:
        text = f"{plan.gpus} GPUs are needed, and ResourceSlices offer {devices} devices of gpu.nvidia.com"
        return [problem("nodes", text, "kubectl get resourceslices; add nodes, or ask for fewer replicas")]
    if not slices:
        text = "no ResourceSlice of gpu.nvidia.com: no node offers GPUs by claims"
        return [problem("gpu-software", text, "kubectl get pods -A -l dra-driver-nvidia-gpu-component=kubelet-plugin")]
    return []
