"""Reaching the cluster that a stack names: its context, its credentials, and what this user may do there."""

from __future__ import annotations

import base64
import datetime
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modelstacks.cluster.connection import ApiError, Cluster, Kind, KindNotFoundError, Manifest, group_of
from modelstacks.errors import ClusterError, listed

_AT_ONCE = 8
_PLUGIN_S = 20
# What `pulumi up` and later `pulumi destroy` do to every object.
VERBS = ("get", "create", "patch", "delete")


@dataclass(frozen=True, slots=True)
class Denied:
    """Something that this user may not do."""

    verb: str
    resource: str
    group: str
    namespace: str | None

    def __str__(self) -> str:
        name = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {name}" + (f" in namespace {self.namespace}" if self.namespace else " cluster-wide")


def has_kubeconfig(kubeconfig: str | None) -> bool:
    """Some kubeconfig is there: the given one, KUBECONFIG, the default file, or a pod's own account."""
    if kubeconfig or os.environ.get("KUBECONFIG") or os.environ.get("KUBERNETES_SERVICE_HOST"):
        return True
    return (Path.home() / ".kube" / "config").is_file()


def connect(kubeconfig: str | None, context: str | None) -> Cluster:
    """The cluster, after it has answered. Raises ClusterError that says which step failed and what mends it."""
    entry = _entry(kubeconfig, context)
    _check_credential_plugin(entry)
    # The client writes a failing credential program to the root logger; here it is said in the answer.
    logging.getLogger().addHandler(logging.NullHandler())
    cluster = Cluster.connect(kubeconfig, context, None)
    try:
        cluster.request("GET", "/version")
        # The version is public; this is not, so credentials are tried.
        cluster.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=_review())
    except ApiError as error:
        if error.status == 401 or "system:anonymous" in error.message:
            why = _expiry(entry) or _complaint(entry)
            raise ClusterError(
                f"{cluster.host} rejects the credentials of {_who(entry)}{why}", next_step=_sign_in(entry)
            ) from None
        if error.status not in (403, 404):
            raise
    return cluster


def server_version(cluster: Cluster) -> str:
    """Kubernetes' version as the API server tells it, such as v1.34.4."""
    return str(cluster.request("GET", "/version").get("gitVersion", "unknown"))


def _exists(cluster: Cluster, namespace: str) -> bool:
    try:
        return cluster.get(Kind("v1", "Namespace"), None, namespace) is not None
    except ApiError:
        return False


def denied(cluster: Cluster, manifests: Collection[Manifest]) -> list[Denied]:
    """Every verb on the manifests' kinds that this user may not use. A kind that is not served is left out."""
    asked: dict[tuple[str, str, str | None], str] = {}
    for manifest in manifests:
        plural = served_plural(cluster, manifest["apiVersion"], manifest["kind"])
        if plural is not None:
            key = group_of(manifest["apiVersion"]), plural, manifest["metadata"].get("namespace")
            asked.setdefault(key, manifest["metadata"]["name"])
    # Rights may be on one name alone, but nothing is made by name.
    there = {
        m["metadata"]["name"] for m in manifests if m["kind"] == "Namespace" and _exists(cluster, m["metadata"]["name"])
    }
    questions = [
        (Denied(verb, plural, group, space), None if verb == "create" else name)
        for (group, plural, space), name in asked.items()
        for verb in VERBS
        if not (verb == "create" and plural == "namespaces" and name in there)
    ]
    with ThreadPoolExecutor(_AT_ONCE) as at_once:
        allowed = at_once.map(lambda q: may(cluster, q[0], q[1]), questions)
        return [question for (question, _), granted in zip(questions, allowed, strict=True) if not granted]


def may(cluster: Cluster, what: Denied, name: str | None = None) -> bool:
    """One question of SelfSubjectAccessReview; a cluster that does not answer it is taken to allow everything."""
    attributes = {"verb": what.verb, "resource": what.resource, "group": what.group}
    attributes |= ({"namespace": what.namespace} if what.namespace else {}) | ({"name": name} if name else {})
    if what.resource == "namespaces" and not what.group and name:
        # Rights inside a namespace reach the namespace itself.
        attributes["namespace"] = name
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    try:
        answer = cluster.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=body)
    except ApiError:
        return True
    return bool(answer.get("status", {}).get("allowed"))


def served_plural(cluster: Cluster, api_version: str, kind: str) -> str | None:
    """The resource name of a kind in exactly this version; None where the cluster does not serve it."""
    try:
        return cluster.resource(Kind(api_version, kind))[0]
    except KindNotFoundError:
        return None


def missing_kinds(cluster: Cluster, manifests: Iterable[Manifest]) -> list[tuple[str, str]]:
    """apiVersion and kind of those manifests that the cluster does not serve."""
    kinds = dict.fromkeys((m["apiVersion"], m["kind"]) for m in manifests)
    return [(version, kind) for version, kind in kinds if served_plural(cluster, version, kind) is None]


def served_versions(cluster: Cluster, group: str) -> list[str]:
    """Every version of an API group that the cluster serves; empty where it has none of it."""
    try:
        answer = cluster.request("GET", f"/apis/{group}")
    except ApiError as error:
        if error.status != 404:
            raise
        return []
    return [entry["version"] for entry in answer.get("versions", [])]


def _review() -> dict[str, str]:
    return {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}


def _entry(kubeconfig: str | None, context: str | None) -> dict[str, Any]:
    """The named user of the kubeconfig, with `name`; empty where there is no file. Raises ClusterError."""
    source = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    texts = [source] if "\n" in source else [_text(part, kubeconfig) for part in source.split(os.pathsep) if part]
    contexts: dict[str, Any] = {}
    users: dict[str, Any] = {}
    current = context
    for text in texts:
        try:
            data = yaml.safe_load(text) if text else None
        except yaml.YAMLError as error:
            raise ClusterError(
                f"the kubeconfig is no YAML: {str(error).splitlines()[0]}", next_step="write it afresh"
            ) from None
        if data is None:
            continue
        if not isinstance(data, dict):
            raise ClusterError(
                "the kubeconfig is no mapping of clusters, users and contexts", next_step="write it afresh"
            )
        current = current or data.get("current-context") or None
        for into, key in ((contexts, "contexts"), (users, "users")):
            for item in data.get(key) or []:
                if isinstance(item, dict) and isinstance(item.get("name"), str):
                    into.setdefault(item["name"], item.get(key[:-1]) or {})
    if not contexts:
        if not texts or not any(texts):
            where = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
            if not os.environ.get("KUBERNETES_SERVICE_HOST"):
                raise ClusterError(
                    f"there is no kubeconfig: {where} does not exist or is empty",
                    next_step="set KUBECONFIG or modelstacks:kubeconfig; `modelstacks local env` has that of `make up`",
                )
            return {}
        raise ClusterError("the kubeconfig has no contexts", next_step="write it afresh with your cloud's command")
    if current is None or current not in contexts:
        what = "names no current context" if current is None else f"has no context {current!r}"
        raise ClusterError(
            f"the kubeconfig {what}; it has {listed(sorted(contexts))}",
            next_step="name one of them in modelstacks:kubeContext or modelstacks:clusters, or "
            "`kubectl config use-context NAME`",
        )
    name = contexts[current].get("user", "")
    if name and name not in users:
        raise ClusterError(
            f"context {current} of the kubeconfig names user {name!r}, which it does not have",
            next_step="write the kubeconfig afresh with your cloud's command",
        )
    return {"name": name, "context": current, **(users.get(name) or {})}


def _text(part: str, kubeconfig: str | None) -> str:
    path = Path(part).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if kubeconfig and kubeconfig == part:
            raise ClusterError(
                f"the kubeconfig {part} does not exist", next_step="correct modelstacks:kubeconfig"
            ) from None
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"the kubeconfig {part} cannot be read: {error}", next_step="check the file") from None


def _check_credential_plugin(entry: dict[str, Any]) -> None:
    """A missing credential program is otherwise swallowed by the client, which goes on as nobody."""
    command = (entry.get("exec") or {}).get("command")
    # One with a folder in it is relative to the kubeconfig, not to PATH.
    if command and os.sep not in command and shutil.which(command) is None:
        raise ClusterError(
            f"the kubeconfig signs in with {command}, which is not on PATH",
            next_step=f"install {command}, or write the kubeconfig afresh",
        )


def _who(entry: dict[str, Any]) -> str:
    return f"{entry['name']} (context {entry['context']})" if entry else "this pod's account"


def _expiry(entry: dict[str, Any]) -> str:
    """When a token says that it ended."""
    token = entry.get("token")
    parts = token.split(".") if isinstance(token, str) else []
    if len(parts) != 3:
        return ""
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        ended = datetime.datetime.fromtimestamp(int(claims["exp"]), datetime.UTC)
    except (ValueError, KeyError, TypeError, OverflowError):
        return ""
    past = ended < datetime.datetime.now(datetime.UTC)
    return f": its token expired on {ended:%Y-%m-%d %H:%M} UTC" if past else ""


def _complaint(entry: dict[str, Any]) -> str:
    """What a credential program says when it fails, which the client keeps to itself; else the usual reason."""
    plugin = entry.get("exec") or {}
    if not plugin.get("command"):
        kind = "client certificate" if "client-certificate" in str(entry.keys()) else "token"
        return f": its {kind} is not accepted, or no longer"
    env = os.environ | {str(e.get("name")): str(e.get("value")) for e in plugin.get("env") or []}
    command = [str(plugin["command"]), *map(str, plugin.get("args") or [])]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_PLUGIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f": {plugin['command']} does not run: {error}"
    if done.returncode == 0:
        return f": {plugin['command']} gave a token that is not accepted"
    said = (done.stderr or done.stdout).strip().splitlines()
    return f": {plugin['command']} ended with code {done.returncode}" + (f": {said[-1]}" if said else "")


_SIGN_IN = {
    "aws": "aws sso login, then: aws eks update-kubeconfig --name CLUSTER",
    "aws-iam-authenticator": "aws sso login, then: aws eks update-kubeconfig --name CLUSTER",
    "gke-gcloud-auth-plugin": "gcloud auth login, then: gcloud container clusters get-credentials CLUSTER",
    "kubelogin": "az login, then: az aks get-credentials --name CLUSTER",
}


def _sign_in(entry: dict[str, Any]) -> str:
    command = Path((entry.get("exec") or {}).get("command") or "").name
    return _SIGN_IN.get(command, "sign in to the cluster again and write the kubeconfig afresh")
