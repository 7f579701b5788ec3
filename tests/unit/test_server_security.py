"""What a server may reach, who reaches it, what is secret, and what it is made of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelstacks import images, project, registry, spec, stackfile
from modelstacks.catalog.flags import flags_of
from modelstacks.errors import BadInput
from modelstacks.plan import plan
from tests.unit.test_server_plans import AWS, CATALOG, GROUPS, PLACES, SIMULATED, manifests, one, pod_of, server_of

RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def containers(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every container of every pod template."""
    pods = [m["spec"]["template"]["spec"] for m in found if m["kind"] in ("Deployment", "Job")]
    return [c for pod in pods for c in [*pod.get("initContainers", []), *pod["containers"]]]


@pytest.mark.parametrize("place", PLACES)
def test_every_container_gives_up_what_it_does_not_need(place: str) -> None:
    """Restricted fields everywhere; a read-only root wherever no GPU hook writes to it."""
    found = manifests(weights=PLACES[place], cloud={**SIMULATED, "warmSpares": 1})
    for container in containers(found):
        security = container["securityContext"]
        assert security.items() >= RESTRICTED.items()
        gpu = "nvidia.com/gpu" in container["resources"].get("limits", {}) and container["name"] == "server"
        assert security.get("readOnlyRootFilesystem", False) == (not gpu), container["name"]
    for manifest in found:
        if manifest["kind"] in ("Deployment", "Job"):
            pod = manifest["spec"]["template"]["spec"]
            assert pod["automountServiceAccountToken"] is False
            assert pod["enableServiceLinks"] is False
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_a_read_only_root_is_there_for_the_asking() -> None:
    """Where the engine can live with it."""
    assert server_of(manifests(readOnlyRoot=True))["securityContext"]["readOnlyRootFilesystem"] is True
    with pytest.raises(BadInput, match="readOnlyRoot"):
        manifests(engine="tgi", readOnlyRoot=True)
    groups = one(manifests(**GROUPS, readOnlyRoot=True), "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    for template in (groups["leaderTemplate"], groups["workerTemplate"]):
        (server,) = template["spec"]["containers"]
        assert server["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("stack", ["kube-system", "kube-x", "default", "monitoring", "keda"])
def test_no_stack_takes_a_namespace_that_others_live_in(stack: str) -> None:
    """Its own name is the namespace where none is said: default-deny in there would cut the cluster's DNS off."""
    asked = spec.parse({"model": "llama-3.1-8b", "gpu": "l4", "acceptedLicense": "llama3.1"}, CATALOG, source="test")
    with pytest.raises(BadInput, match=f"'{stack}' belongs to"):
        plan(asked, CATALOG, stack=stack)


@pytest.mark.parametrize(
    ("more", "namespace", "address"),
    [
        ({"monitoring": {"namespace": "prom"}}, "prom", "http://prometheus-operated.prom.svc:9090"),
        ({"autoscale": {"max": 2, "prometheus": "http://p.seen:9090"}}, "seen", "http://p.seen:9090"),
        ({"autoscale": {"max": 2, "prometheus": "http://p.seen.svc:9090"}}, "seen", "http://p.seen.svc:9090"),
        ({"autoscale": {"max": 2, "prometheus": "http://1.2.3.4:9090"}}, "monitoring", "http://1.2.3.4:9090"),
    ],
)
def test_the_prometheus_that_is_asked_may_read(more: dict[str, Any], namespace: str, address: str) -> None:
    """Of two keys that name it, either is enough."""
    found = manifests(**{"autoscale": {"max": 2}, **more})
    (trigger, *_) = one(found, "ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["serverAddress"] == address
    policy = one(found, "NetworkPolicy", "test")["spec"]["ingress"]
    peers = [peer for rule in policy for peer in rule["from"] if "namespaceSelector" in peer]
    opened = [peer["namespaceSelector"]["matchLabels"] for peer in peers]
    assert {"kubernetes.io/metadata.name": namespace} in opened


def test_the_namespace_denies_what_nobody_allowed() -> None:
    """Default deny beside a policy for each kind of pod; a guest of another's namespace leaves that to its owner."""
    found = manifests()
    deny = one(found, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    shared = manifests(shared=["namespace"], namespace="team")
    assert "default-deny" not in {m["metadata"]["name"] for m in shared}, "others live there too"
    guest = manifests(namespaceOwner="other", namespace="team")
    assert [m["metadata"]["name"] for m in guest if m["kind"] == "NetworkPolicy"] == ["test"]


def test_only_the_fetching_pod_reaches_the_hub() -> None:
    """With weights prefetched, servers talk to DNS alone."""
    found = manifests(weights=PLACES["shared-volume"])
    assert one(found, "NetworkPolicy", "test")["spec"]["egress"] == [
        one(found, "NetworkPolicy", "test-weights")["spec"]["egress"][0]
    ]
    assert {"ports": [{"protocol": "TCP", "port": 443}]} in one(found, "NetworkPolicy", "test-weights")["spec"][
        "egress"
    ]
    assert "ingress" not in one(found, "NetworkPolicy", "test-weights")["spec"]


def test_the_key_comes_from_a_secret_and_is_changed_by_its_serial() -> None:
    """Never a value in a manifest; another serial is another Secret, which restarts the servers that read it."""
    (env,) = [v for v in server_of(manifests())["env"] if v["name"] == "VLLM_API_KEY"]
    assert env["valueFrom"]["secretKeyRef"] == {"name": "test-api-key-1", "key": "key"}
    (env,) = [v for v in server_of(manifests(apiKeySerial=2))["env"] if v["name"] == "VLLM_API_KEY"]
    assert env["valueFrom"]["secretKeyRef"]["name"] == "test-api-key-2"
    assert not [v for v in server_of(manifests(apiKey=False))["env"] if v["name"] == "VLLM_API_KEY"]
    (env,) = [v for v in server_of(manifests(engine="tgi", apiKeySecret="mine"))["env"] if v["name"] == "API_KEY"]
    assert env["valueFrom"]["secretKeyRef"]["name"] == "mine"
    with pytest.raises(BadInput, match="apiKeySecret"):
        manifests(apiKey=False, apiKeySecret="mine")


@pytest.mark.parametrize("more", [{}, {"weights": PLACES["image"]}, {"cloud": {**AWS, "warmSpares": 1}},
                                  {"model": "deepseek-r1", "gpu": "h100-sxm", "acceptedLicense": "MIT"}])  # fmt: skip
def test_a_mirror_holds_every_image(more: dict[str, Any]) -> None:
    """`registry` leaves none out, and paths keep apart what was apart."""
    own = images.used_by(manifests(**more))
    mirrored = images.used_by(manifests(**more, registry="mirror.example.com/llm"))
    assert own
    assert mirrored == [images.mirrored(image, "mirror.example.com/llm") for image in own]
    assert all(image.startswith("mirror.example.com/llm/") for image in mirrored)
    assert not any(image.endswith(":latest") for image in own)


def test_images_of_docker_hubs_own_library_keep_their_folder() -> None:
    """As docker itself writes them out."""
    assert images.mirrored("redis:7.4.2", "m.example.com") == "m.example.com/library/redis:7.4.2"
    assert images.mirrored("registry.k8s.io/pause:3", "m.example.com/a") == "m.example.com/a/pause:3"
    assert images.mirrored("m.example.com/a/llama:1", "m.example.com/a") == "m.example.com/a/llama:1", (
        "is there already"
    )
    with pytest.raises(BadInput, match="with a dot or a port"):
        manifests(registry="harbor")
    with pytest.raises(BadInput, match="registry does not reach"):
        manifests(registry="m.example.com", operators=["keda"])


def test_a_registry_is_asked_for_each_image(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, missing, behind a login, and silent; a login of docker's is used."""
    import base64
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            return

        def do_HEAD(self) -> None:
            wanted = base64.b64encode(b"user:word").decode()
            if "private" in self.path and self.headers.get("Authorization") != f"Basic {wanted}":
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="x"')
            else:
                self.send_response(404 if "absent" in self.path else 200)
                self.send_header("Docker-Content-Digest", "sha256:abc")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_port}"
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    names = [f"{host}/a/there:1", f"{host}/absent:1", f"{host}/private:1", "127.0.0.1:9/silent:1"]
    found = registry.look_up(names)
    assert [found[name].state for name in names[:3]] == ["there", "missing", "refused"]
    assert found[names[0]].digest == "sha256:abc"
    assert found[names[3]].state.startswith("does not answer")
    login = {"auths": {host: {"auth": base64.b64encode(b"user:word").decode()}}}
    (tmp_path / "config.json").write_text(json.dumps(login))
    assert registry.look_up(names[2:3])[names[2]].state == "there"
    server.shutdown()


@pytest.mark.parametrize("stack", stackfile.stack_names(project.root()))
def test_every_rendered_command_line_is_one_that_its_engine_takes(stack: str) -> None:
    """Pain 18: held against the parser's own flags, as generated data."""
    from modelstacks import documents

    folder = project.rendered_dir(project.root(), stack)
    for path in folder.glob("*.yaml"):
        manifest = documents.read_file(path)
        if manifest["kind"] != "Deployment":
            continue
        for container in manifest["spec"]["template"]["spec"]["containers"]:
            engine = "tgi" if "text-generation" in container["image"] else "vllm"
            known = flags_of(CATALOG.templates, engine, CATALOG.any_form(engine).version)
            assert known is not None
            words, found = known.read(container["args"])
            assert len(words) == (engine == "vllm")
            assert found


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["m", "--swap-space", "4"], "--swap-space is no flag of vllm 0.32.0"),
        (["m", "--max-model-length", "4"], "did you mean --max-model-len"),
        (["m", "--port"], "--port lacks its value"),
        (["m", "--enable-auto-tool-choice", "yes"], "takes no value"),
        (["m", "--kv-cache-dtype", "int3"], "allowed are"),
    ],
)
def test_what_a_parser_would_refuse_is_named(args: list[str], says: str) -> None:
    """With the nearest flag that there is."""
    known = flags_of(CATALOG.templates, "vllm", "0.32.0")
    assert known is not None
    with pytest.raises(ValueError, match=says.replace("?", r"\?")):
        known.read(args)


def test_pods_say_what_opencost_and_doctors_ask_for() -> None:
    """The label of the served model, and the last words of a server that ended."""
    found = manifests()
    labels = one(found, "Deployment", "test")["spec"]["template"]["metadata"]["labels"]
    server = server_of(found)
    served = server["args"][server["args"].index("--served-model-name") + 1]
    assert labels["llm-d.ai/model"] == served
    assert server["terminationMessagePolicy"] == "FallbackToLogsOnError"
    shm = next(v for v in pod_of(found)["volumes"] if v["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
