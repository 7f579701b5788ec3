"""What templates may name of monitoring: alerts with the plan's numbers, and a dashboard of the engine's metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from modelstacks.catalog.versions import EngineForm, Metrics
from modelstacks.plan import Plan
from modelstacks.plan.rollout import rollout

# Grafana's sidecar collects ConfigMaps with this label (kube-prometheus-stack).
_DASHBOARD_LABEL = {"grafana_dashboard": "1"}
_COLUMNS = 3
_WIDTH, _HEIGHT = 24 // _COLUMNS, 8
_TRUE = ',condition="true"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph: queries by legend, and the unit as Grafana calls it. `limit` is a line of the plan's."""

    title: str
    unit: str
    queries: dict[str, str]
    limit: float | None = None


def values(plan: Plan, form: EngineForm, labels: dict[str, str]) -> dict[str, Any]:
    """The part of the template context that speaks of monitoring; nothing where the stack asks for none."""
    asked = plan.spec.monitoring
    if asked is None:
        return {}
    dashboard = _dashboard(plan, panels(plan, form.metrics))
    return {
        # What a Prometheus selects by is the user's to say; whose they are is not.
        "monitor_labels": labels | asked.labels | {"app.kubernetes.io/instance": plan.name},
        "rule_group": f"{plan.namespace}.{plan.name}",
        "alerts": alerts(plan, form.metrics),
        "dashboard_name": f"{plan.name}-dashboard",
        "dashboard_labels": labels | _DASHBOARD_LABEL,
        "dashboard_file": f"{plan.name}.json",
        "dashboard_json": json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n",
    }


def own(plan: Plan, more: str = "", pods: str | None = None) -> str:
    """The label selector of the stack's server pods, or of some of them: not of a stack whose name begins alike."""
    return f'{{namespace="{plan.namespace}",pod=~"{plan.name}{pods or plan.tier_form.pods}"{more}}}'


def in_all(plan: Plan, metrics: Metrics, gauge: str) -> str:
    """The sum of a gauge over the servers: nothing where none is scraped, 0 where an idle engine leaves it out."""
    mine = own(plan)
    total = f"sum({gauge}{mine})"
    return f"({total} or 0 * sum(up{mine} == 1))" if metrics.silent_when_idle else total


def asked_for(plan: Plan) -> str:
    """How many pods should be Ready because the engine answers: what an autoscaler says, or the plan's own number."""
    if plan.tier_form.kind == "Deployment":
        return f'sum(kube_deployment_spec_replicas{{namespace="{plan.namespace}",deployment="{plan.name}"}})'
    return str(plan.spec.replicas * plan.answering_pods)


def _ready(plan: Plan) -> str:
    """How many of those pods are: 0, not nothing, where kube-state-metrics knows of none."""
    mine = own(plan, _TRUE, plan.tier_form.answering_pods)
    return f'(sum(kube_pod_status_ready{mine}) or 0 * sum(kube_pod_status_ready{{condition="true"}}))'


def alerts(plan: Plan, metrics: Metrics) -> list[dict[str, Any]]:
    """Alerts with their queries; times and limits follow the plan."""
    mine, name = own(plan), plan.stack or plan.name
    running, waiting = in_all(plan, metrics, metrics.running), in_all(plan, metrics, metrics.waiting)
    ready = _ready(plan)
    hour = plan.cost.usd_per_hour
    money = f", ${hour:,.2f} an hour" if hour is not None else ""
    budget_s = plan.timeouts.ready_s
    change_s = budget_s + max(0, rollout(plan).steps - 1) * plan.timeouts.startup_s
    ends, ends_s = _ends(plan)
    found = [
        (
            "ModelServerDown", f"{ready} == 0 or absent(up{mine} == 1)", "5m", "critical", "no replica answers",
            f"For 5 minutes no server of {name} was ready, or none could be scraped. A change that is under way may be "
            f"the reason (`modelstacks status {name}`).",
        ),
        (
            "ModelServersMissing", f"{ready} < {asked_for(plan)}", f"{change_s}s", "warning",
            "fewer servers are ready than asked for",
            f"For {round(change_s / 60)} minutes, longer than a change takes, {name} has had fewer ready servers than "
            f"asked for: no GPU to be had, a quota, or a pod that does not start (`modelstacks doctor {name}`).",
        ),
        (
            "ModelServerQueueGrows",
            f"min_over_time({waiting}[10m:1m]) > 0 and deriv({waiting}[10m:1m]) > 0", "5m", "warning",
            "requests queue up",
            f"Requests have been waiting for 10 minutes and become more: {name} needs more replicas, or less to do.",
        ),
        (
            "ModelServerRestarts", ends, "1m", "warning", "a server restarts again and again",
            f"A server of {name} ended more than once in {round(ends_s / 60)} minutes; each time it loads for "
            f"{round(plan.timeouts.again_s / 60)} minutes.",
        ),
        (
            "ModelServerLoadsTooLong",
            f"(time() - max by (pod) (kube_pod_start_time{mine}) > {budget_s}) and on (pod) "
            f"(max by (pod) (max_over_time(kube_pod_status_ready{own(plan, _TRUE)}[{budget_s}s])) == 0) "
            f"unless on (pod) kube_pod_deletion_timestamp{mine}",
            "1m", "warning", "a server has not been ready for as long as a load may take",
            f"The plan gives a pod of {name} {round(budget_s / 60)} minutes to be ready: it is slower than planned, or "
            "stuck.",
        ),
        (
            "ModelServerIdle", f"max_over_time(({running} + {waiting})[1h:1m]) == 0", "1h", "info",
            "GPUs are paid for and idle",
            f"{name} has had no request for two hours; GPUs of the plan: {plan.gpus}{money}.",
        ),
    ]  # fmt: skip
    scale = plan.spec.autoscale
    if (scale is not None and scale.min == 0) or not plan.spec.replicas:
        # None at all is what was asked for.
        found = [one for one in found if one[0] != "ModelServerDown"]
    if metrics.kv_cache is not None:
        found.append(
            (
                "ModelServerCacheFull", f"avg_over_time(max({metrics.kv_cache}{mine})[10m:1m]) > 0.95", "5m", "warning",
                "the KV cache is full",
                f"New requests of {name} wait for room, and running ones may be put back: longer prompts or more of "
                f"them than the {plan.memory.kv_cache_tokens:,} tokens that the plan counts on.",
            )
        )  # fmt: skip
    model = plan.choice.model.id
    return [
        {
            "name": alert, "expr": expr, "for": patience, "labels": {"severity": severity, "model": model},
            "summary": f"{name}: {summary}", "description": description,
        }
        for alert, expr, patience, severity, summary, description in found
    ]  # fmt: skip


def panels(plan: Plan, metrics: Metrics) -> list[Panel]:
    """The graphs of an engine: those whose metrics it has."""
    mine = own(plan)
    rate = plan.throughput.output_tokens_per_s * plan.spec.replicas if plan.throughput is not None else None
    found = [
        Panel("Output tokens a second", "short", {"tokens": f"sum(rate({metrics.output_tokens}{mine}[5m]))"}, rate),
        Panel("Prompt tokens a second", "short", {"tokens": f"sum(rate({metrics.prompt_tokens}{mine}[5m]))"}),
        Panel(
            "Requests", "short",
            {
                "running": in_all(plan, metrics, metrics.running),
                "waiting": in_all(plan, metrics, metrics.waiting),
            },
            plan.choice.load.max_num_seqs * plan.spec.replicas,
        ),
    ]  # fmt: skip
    if metrics.kv_cache is not None:
        found.append(Panel("KV cache in use", "percentunit", {"{{pod}}": f"{metrics.kv_cache}{mine}"}, 1.0))
    for title, name in (
        ("Time to the first token", metrics.first_token),
        ("Time between tokens", metrics.next_token),
        ("Time of a request", metrics.request),
    ):
        if name is not None:
            found.append(Panel(title, "s", {f"p{q}": _quantile(q, name, mine) for q in (50, 95)}))
    if metrics.preemptions is not None:
        found.append(Panel("Requests put back", "short", {"preempted": f"sum(rate({metrics.preemptions}{mine}[5m]))"}))
    most = plan.spec.replicas_at_most * plan.answering_pods
    found.append(Panel("Pods that answer", "short", {"ready": _ready(plan)}, most))
    return found


def _ends(plan: Plan) -> tuple[str, int]:
    """Servers that ended more than once, and in how many seconds.

    `increase` extrapolates, so that one restart may count for a little more than one.
    """
    if plan.tier_form.kind != "LeaderWorkerSet":
        server = own(plan, ',container=~"server|ray-worker"')
        return f"max by (pod) (increase(kube_pod_container_status_restarts_total{server}[30m])) > 1.5", 1800
    # A group is made anew, under the same names, when one of its containers ends.
    window_s = max(7200, 3 * plan.timeouts.ready_s)
    mine = own(plan)
    return f"changes(max by (pod) (kube_pod_start_time{mine})[{window_s}s:1m]) > 1", window_s


def _quantile(percent: int, name: str, mine: str) -> str:
    return f"histogram_quantile({percent / 100:g}, sum by (le) (rate({name}_bucket{mine}[5m])))"


def _dashboard(plan: Plan, graphs: list[Panel]) -> dict[str, Any]:
    """Grafana's JSON, schema 39 (Grafana 10 and newer)."""
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "title": f"{plan.stack or plan.name}: {plan.choice.model.name}",
        "uid": plan.name[:40],
        "tags": ["modelstacks", plan.choice.engine],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "panels": [
            {
                "id": index + 1,
                "type": "timeseries",
                "title": panel.title,
                "datasource": source,
                "gridPos": {
                    "x": index % _COLUMNS * _WIDTH, "y": index // _COLUMNS * _HEIGHT, "w": _WIDTH, "h": _HEIGHT,
                },
                "fieldConfig": {
                    "defaults": {"unit": panel.unit, "min": 0, **_line(panel.limit)},
                    "overrides": [],
                },
                "targets": [
                    {"refId": chr(ord("A") + number), "expr": query, "legendFormat": legend, "datasource": source}
                    for number, (legend, query) in enumerate(panel.queries.items())
                ],
            }
            for index, panel in enumerate(graphs)
        ],
    }  # fmt: skip


def _line(limit: float | None) -> dict[str, Any]:
    """The plan's number as a dashed line."""
    if limit is None:
        return {}
    steps = [{"color": "green", "value": None}, {"color": "orange", "value": round(limit, 1)}]
    return {
        "thresholds": {"mode": "absolute", "steps": steps},
        "custom": {"thresholdsStyle": {"mode": "dashed"}},
    }
