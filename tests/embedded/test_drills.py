"""Drills on a real control plane: what breaks is named, the next `pulumi up` converges, and the plan's promise holds.

Machines and kubelets are simulated, with load times, slow leave-taking and crashes as KWOK stages; the rest is real.
Each drill runs at random moments: MODELSTACKS_DRILLS times (default once), from MODELSTACKS_DRILL_SEED on.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from modelstacks import documents
from modelstacks.cluster.connection import Cluster, Kind
from modelstacks.errors import ClusterError
from tests.embedded.conftest import ROOT, Checkout
from tests.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.embedded

STACK = "quickstart"
STAGES = ROOT / "tests" / "data" / "stages"
# Other moments in every run; a failure prints the seed that repeats them.
SEED = int(os.environ.get("MODELSTACKS_DRILL_SEED", str(random.randrange(10**6))))
ROUNDS = range(int(os.environ.get("MODELSTACKS_DRILLS", "1")))
OWN = ("-l", f"karpenter.sh/nodepool={STACK}")


@dataclass
class Watch:
    """Reads the stack's pods again and again: how few were ready, and whether two held one replica's GPUs."""

    cluster: Cluster
    lowest: int = 10**6
    most_gpus: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        assert self._thread is not None
        self._thread.join()

    def _read(self) -> None:
        query = {"labelSelector": f"app.kubernetes.io/instance={STACK}"}
        while not self._ended.wait(0.25):
            try:
                pods = self.cluster.items(Kind("v1", "Pod"), STACK, **query)
            except ClusterError:
                continue
            # One that is told to go answers until it is gone, and its endpoint is out of the Service.
            serving = [p for p in pods if is_ready(p) and not p["metadata"].get("deletionTimestamp")]
            placed = [p for p in pods if p["spec"].get("nodeName")]
            self.lowest = min(self.lowest, len(serving))
            self.most_gpus = max(self.most_gpus, len(placed))


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


class Drill:
    """The stack under test in its checkout, and what is done to it."""

    def __init__(self, checkout: Checkout, logs: Path) -> None:
        self.checkout, self.logs = checkout, logs
        self.cluster = Cluster.connect(checkout.exports["KUBECONFIG"], None, STACK)

    def stage(self, name: str, **values: str) -> None:
        """Let the stack's pods live by a file of tests/data/stages from now on."""
        text = (STAGES / f"{name}.yaml").read_text()
        for key, value in {"STACK": STACK, **values}.items():
            text = text.replace(key, value)
        self.checkout.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=text)

    def as_usual(self) -> None:
        """Simulated pods live as they always do."""
        self.checkout.kubectl("delete", "stages.kwok.x-k8s.io", "-l", "modelstacks.dev/drill", "--ignore-not-found")

    def set(self, **values: Any) -> None:
        """Write keys into the stack file."""
        path = self.checkout.stack_file(STACK)
        data = documents.read_file(path)
        for key, value in values.items():
            if value is None:
                data["config"].pop(f"modelstacks:{key}", None)
            else:
                data["config"][f"modelstacks:{key}"] = value
        path.write_text(documents.write(data))

    def up(self, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.checkout.run(
            "pulumi", "up", "--yes", "--non-interactive", "--skip-preview", "-s", STACK, check=check
        )

    def begin_up(self, log: Path) -> subprocess.Popen[bytes]:
        """`pulumi up` in a session of its own, so that all of it can be killed."""
        environment = {**os.environ, **self.checkout.exports, "MODELSTACKS_STATE_DIR": str(self.checkout.state)}
        with log.open("wb") as written:
            return subprocess.Popen(
                ["pulumi", "up", "--yes", "--non-interactive", "--skip-preview", "-s", STACK],
                cwd=self.checkout.folder, env=environment, stdout=written, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def hear(self, *texts: str) -> str:
        """What `pulumi up` says until all of `texts` were said; it is then interrupted as by Ctrl-C."""
        log = self.logs / "drill.log"
        up = self.begin_up(log)
        deadline = time.monotonic() + PATIENCE_S
        try:
            while not all(text in log.read_text() for text in texts):
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                assert up.poll() is None, f"ended: {log.read_text()[-3000:]}"
                time.sleep(0.5)
        finally:
            up.terminate()
            up.wait(timeout=60)
        return log.read_text()

    def pods(self) -> list[dict[str, Any]]:
        return self.cluster.items(Kind("v1", "Pod"), STACK, labelSelector=f"app.kubernetes.io/instance={STACK}")

    def serves(self, replicas: int) -> bool:
        """Exactly so many servers, all ready, and none on its way out."""
        found = self.pods()
        return len(found) == replicas and all(is_ready(p) and not p["metadata"].get("deletionTimestamp") for p in found)

    def problems(self) -> str:
        """What `modelstacks doctor` finds, each with its mend."""
        done = self.checkout.modelstacks("doctor", STACK, "--local", "--json", check=False)
        assert done.returncode in (0, 1), done.stderr
        found = [f for f in json.loads(done.stdout)["findings"] if f["level"] == "problem"]
        assert all(f["mend"] for f in found)
        return "\n".join(f"{f['check']}: {f['message']} | {f['mend']}" for f in found)

    def release(self) -> None:
        """What the next `make up` does about a lock that a killed `pulumi` left."""
        self.checkout.run("pulumi", "cancel", "--yes", "-s", STACK, check=False)

    def converges(self, replicas: int, *, twice: bool = False) -> None:
        """The next `up` brings what was asked for, and nothing is left over; `twice`, another one changes nothing."""
        self.release()
        self.up()
        eventually("all serve", lambda: self.serves(replicas))
        if twice:
            self.checkout.run("pulumi", "preview", "--expect-no-changes", "--non-interactive", "-s", STACK)
        state = json.loads(self.checkout.run("pulumi", "stack", "export", "-s", STACK).stdout)["deployment"]
        assert not state.get("pending_operations"), "no operation is left open"
        assert not [r["urn"] for r in state["resources"] if r.get("delete")], "nothing waits to be deleted"
        known = {
            r["outputs"]["metadata"]["name"] for r in state["resources"] if r["type"].startswith("kubernetes:apps/")
        }
        there = {d["metadata"]["name"] for d in self.checkout.objects("deployments,statefulsets", "-n", STACK)}
        assert there == known, "nothing is orphaned"
        nodes = len({p["spec"]["nodeName"] for p in self.pods()})
        eventually(
            "no machine is left over", lambda: len(self.checkout.objects("nodeclaims.karpenter.sh", *OWN)) == nodes
        )


@pytest.fixture
def drill(checkout: Checkout, tmp_path: Path) -> Iterator[Drill]:
    """Two replicas that serve, on nodes of their own."""
    checkout.copy_stack(STACK)
    checkout.edit(STACK, "replicas: 1", "replicas: 2")
    checkout.modelstacks("local", "up", STACK)
    checkout.source_env()
    made = Drill(checkout, tmp_path)
    eventually("two serve", lambda: made.serves(2))
    yield made
    made.as_usual()
    made.release()
    # What a drill that failed left behind must not hold the next one up.
    broken = [p["metadata"]["name"] for p in made.pods() if not is_ready(p)]
    if broken:
        checkout.kubectl("delete", "pods", "-n", STACK, "--force", *broken)


@pytest.fixture(scope="module", autouse=True)
def _leaves_nothing(checkout: Checkout) -> Iterator[None]:
    """After the last drill the stack goes, and its machines with it."""
    yield
    checkout.copy_stack(STACK)
    checkout.run("pulumi", "destroy", "--yes", "--non-interactive", "-s", STACK)
    eventually("no claim is left", lambda: not checkout.objects("nodeclaims.karpenter.sh", *OWN))


def moment(round_: int, name: str, most_s: float) -> float:
    """A random moment of a drill, the same for the same seed."""
    print(f"MODELSTACKS_DRILL_SEED={SEED}")
    return random.Random(f"{name} {SEED} {round_}").uniform(0.3, most_s)


def test_a_roll_out_in_place_keeps_all_but_one(drill: Drill) -> None:
    """Pains 19 and 21: no GPU more than planned, one serves, each new pod comes when an old one's GPUs are free."""
    drill.stage("load", LOAD_S="3")
    drill.stage("leave", LEAVE_S="2")
    drill.set(drainSeconds=120)
    before = {p["metadata"]["uid"] for p in drill.pods()}
    said = drill.checkout.run("pulumi", "preview", "--non-interactive", "-s", STACK).stdout
    assert "restarts 2 pods, needs 0 spare GPUs, about" in said
    with Watch(drill.cluster) as seen:
        drill.up()
        eventually(
            "both are new", lambda: drill.serves(2) and not before & {p["metadata"]["uid"] for p in drill.pods()}
        )
    assert seen.lowest >= 1
    assert seen.most_gpus <= 2, "never more pods with GPUs than replicas"
    assert not drill.problems()


def test_a_spare_that_is_given_back_takes_no_server_along(drill: Drill) -> None:
    """The spare's pod counts in the quota until the very end, so the quota shrinks after the servers have changed."""
    drill.set(cloud={"kind": "kwok", "warmSpares": 1})
    drill.up()
    drill.stage("load", LOAD_S="2")
    drill.set(cloud={"kind": "kwok"})
    with Watch(drill.cluster) as seen:
        drill.converges(2, twice=True)
    assert seen.lowest >= 1
    (quota,) = drill.checkout.objects("resourcequotas", "-n", STACK)
    assert quota["spec"]["hard"]["requests.nvidia.com/gpu"] == "2"


@pytest.mark.thorough
def test_a_roll_out_by_surge_keeps_all(drill: Drill) -> None:
    """With room for one more, the next is ready before an old one goes."""
    drill.set(cloud={"kind": "kwok", "limitGpus": 3})
    drill.up()
    drill.stage("load", LOAD_S="3")
    drill.stage("leave", LEAVE_S="2")
    drill.set(drainSeconds=120)
    before = {p["metadata"]["uid"] for p in drill.pods()}
    with Watch(drill.cluster) as seen:
        drill.up()
        eventually(
            "both are new", lambda: drill.serves(2) and not before & {p["metadata"]["uid"] for p in drill.pods()}
        )
    assert seen.lowest >= 2
    assert seen.most_gpus <= 3


def test_one_replica_is_made_anew_when_the_old_one_is_gone(drill: Drill) -> None:
    """Recreate: at no moment do two pods hold a GPU, and what nothing serves meanwhile was said."""
    drill.set(replicas=1)
    drill.up()
    eventually("one serves", lambda: drill.serves(1))
    drill.stage("load", LOAD_S="2")
    drill.stage("leave", LEAVE_S="3")
    drill.set(drainSeconds=120)
    said = drill.checkout.run("pulumi", "preview", "--non-interactive", "-s", STACK).stdout
    assert "restarts 1 pod, needs 0 spare GPUs" in said
    assert "nothing serves for" in said
    with Watch(drill.cluster) as seen:
        drill.up()
        eventually("it serves", lambda: drill.serves(1))
    assert seen.most_gpus == 1


@pytest.mark.parametrize("round_", ROUNDS)
def test_an_up_that_is_killed(drill: Drill, round_: int) -> None:
    """kill -9 of the engine, its program and its plugins, somewhere in a roll-out."""
    drill.stage("load", LOAD_S="2")
    drill.set(drainSeconds=90, replicas=3)
    with Watch(drill.cluster) as seen:
        up = drill.begin_up(drill.logs / "killed.log")
        time.sleep(moment(round_, "killed", 14))
        os.killpg(up.pid, signal.SIGKILL)
        up.wait()
        drill.converges(3, twice=True)
    assert seen.lowest >= 1


# What the watcher had open when its server went.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("round_", ROUNDS)
def test_an_api_server_that_restarts(drill: Drill, round_: int) -> None:
    """Killed in the middle of an up, back two seconds later: the up waits it out or says so, and nothing is lost."""
    drill.stage("load", LOAD_S="2")
    drill.set(drainSeconds=90)
    with Watch(drill.cluster) as seen:
        up = drill.begin_up(drill.logs / "restarted.log")
        time.sleep(moment(round_, "restarted", 10))
        status = json.loads(drill.checkout.modelstacks("local", "status", "--json").stdout)
        (pid,) = [c["pid"] for c in status["components"] if c["name"] == "kube-apiserver"]
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
        folder = Path(f"/proc/{pid}/cwd").readlink()
        os.kill(pid, signal.SIGKILL)
        time.sleep(2)
        # Nobody's child: it outlives this test as it did the one before.
        again = 'cd "$0" && setsid "$@" > /dev/null 2>&1 < /dev/null &'
        subprocess.run(["bash", "-c", again, str(folder), *command], check=True)
        code = up.wait(timeout=240)
        said = (drill.logs / "restarted.log").read_text()
        assert "Traceback" not in said
        assert code == 0 or "does not answer" in said or "connection" in said.lower(), said[-2000:]
        eventually("it answers", lambda: drill.checkout.run("kubectl", "get", "ns", check=False).returncode == 0)
        drill.converges(2, twice=True)
    assert seen.lowest >= 1


@pytest.mark.parametrize("round_", ROUNDS)
def test_a_node_that_is_lost(drill: Drill, round_: int) -> None:
    """Its machine is gone without a word: the other replica serves on, and another machine comes."""
    drill.stage("load", LOAD_S="2")
    victim = drill.pods()[0]
    node = victim["spec"]["nodeName"]
    with Watch(drill.cluster) as seen:
        time.sleep(moment(round_, "lost", 3))
        drill.checkout.kubectl("patch", "node", node, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        drill.checkout.kubectl("delete", "node", node, "--wait=false")
        drill.checkout.kubectl("delete", "pod", victim["metadata"]["name"], "-n", STACK, "--force", "--wait=false")
        eventually("two serve again", lambda: drill.serves(2))
        drill.converges(2)
    assert seen.lowest >= 1
    assert node not in {p["spec"]["nodeName"] for p in drill.pods()}


@pytest.mark.parametrize("round_", ROUNDS)
def test_a_spot_machine_that_is_taken_back(drill: Drill, round_: int) -> None:
    """Karpenter drains it: the pod has its grace, the other serves on, the budget holds."""
    drill.stage("load", LOAD_S="2")
    drill.stage("leave", LEAVE_S="4")
    claims = drill.checkout.objects("nodeclaims.karpenter.sh", *OWN)
    node = claims[0]["status"]["nodeName"]
    (victim,) = [p for p in drill.pods() if p["spec"]["nodeName"] == node]
    with Watch(drill.cluster) as seen:
        time.sleep(moment(round_, "spot", 3))
        drill.checkout.kubectl("delete", "nodeclaims.karpenter.sh", claims[0]["metadata"]["name"], "--wait=false")
        began = time.monotonic()
        key = (victim["metadata"]["namespace"], victim["metadata"]["name"])
        eventually("its pod has gone", lambda: drill.cluster.get(Kind("v1", "Pod"), *key) is None)
        assert time.monotonic() - began >= 2, "it had time to finish its requests"
        eventually("two serve again", lambda: drill.serves(2))
        drill.converges(2)
    assert seen.lowest >= 1


@pytest.mark.parametrize(
    ("stage", "values", "says"),
    [
        ("pull", {"WORDS": '"Failed to pull image: manifest unknown: not found"'},
         ("cannot be pulled", "manifest unknown")),
        ("end", {"CODE": "1", "REASON": "Error", "WORDS": '"torch.OutOfMemoryError: CUDA out of memory. Tried"'},
         ("GPU memory ran out", "CUDA out of memory")),
        pytest.param("end", {"CODE": "137", "REASON": "OOMKilled", "WORDS": '""'}, ("OOMKilled", "the node's memory"),
                     marks=pytest.mark.thorough),
        ("end", {"CODE": "1", "REASON": "Error", "WORDS": '"GatedRepoError: 401 Client Error. Access is restricted"'},
         ("ended with code 1", "401 Client Error")),
    ],
    ids=["image-missing", "gpu-memory", "node-memory", "hub-token"],
)  # fmt: skip
def test_a_change_that_does_not_start(drill: Drill, stage: str, values: dict[str, str], says: tuple[str, ...]) -> None:
    """The first new pod fails: the up says why, the old one serves on, and taking the change back heals all."""
    drill.stage(stage, **values)
    drill.set(drainSeconds=90)
    with Watch(drill.cluster) as seen:
        drill.hear(*says)
        found = drill.problems()
        assert all(text in found for text in says), found
        assert seen.lowest >= 1
        drill.as_usual()
        drill.set(drainSeconds=None)
        # Simulated kubelets do not try again by themselves.
        broken = [p["metadata"]["name"] for p in drill.pods() if not is_ready(p)]
        drill.checkout.kubectl("delete", "pods", "-n", STACK, "--force", *broken)
        drill.converges(2)
    assert seen.lowest >= 1
    assert not drill.problems()


def test_a_quota_that_is_used_up(drill: Drill) -> None:
    """Somebody else's quota: the third replica is refused in words, the two serve on."""
    quota = {
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team", "namespace": STACK},
        "spec": {"hard": {"pods": "2"}},
    }  # fmt: skip
    drill.checkout.kubectl("apply", "-f", "-", text=documents.write(quota))
    drill.set(replicas=3)
    with Watch(drill.cluster) as seen:
        drill.hear("exceeded quota: team")
        assert "exceeded quota: team" in drill.problems()
        drill.checkout.kubectl("delete", "resourcequota", "team", "-n", STACK)
        drill.converges(3)
    assert seen.lowest >= 2


@pytest.mark.parametrize("round_", ROUNDS)
def test_two_ups_at_once(drill: Drill, round_: int) -> None:
    """One holds the lock, the other says who; together they did what one would."""
    drill.stage("load", LOAD_S="2")
    drill.set(drainSeconds=90)
    logs = [drill.logs / f"both-{index}.log" for index in range(2)]
    with Watch(drill.cluster) as seen:
        first = drill.begin_up(logs[0])
        time.sleep(moment(round_, "both", 2))
        second = drill.begin_up(logs[1])
        codes = sorted((first.wait(timeout=240), second.wait(timeout=240)))
        said = [log.read_text() for log in logs]
        assert codes[0] == 0, said
        if codes[1]:
            assert any("lock" in text for text in said), said
        drill.converges(2, twice=True)
    assert seen.lowest >= 1


STORAGE = """
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: shared}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: Immediate
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: shared-NUMBER}
spec:
  capacity: {storage: 500Gi}
  accessModes: [ReadWriteMany]
  storageClassName: shared
  persistentVolumeReclaimPolicy: Delete
  nfs: {server: nfs.example.com, path: /}
"""


def test_weights_are_fetched_before_a_server_is_made(drill: Drill) -> None:
    """A wrong token ends the Job at once: no server and no machine is made for it, and the next up heals it."""
    number = iter(range(100))

    def volume() -> None:
        drill.checkout.kubectl("apply", "-f", "-", text=STORAGE.replace("NUMBER", f"{os.getpid()}-{next(number)}"))

    drill.checkout.run("pulumi", "destroy", "--yes", "--non-interactive", "-s", STACK)
    volume()
    drill.set(weights={"storageClass": "shared", "shared": True}, replicas=1)
    drill.stage("job", STACK=f"{STACK}-weights", CODE="3", WORDS='"weights: the hub refuses the token (HTTP 401)"')
    done = drill.up(check=False)
    assert done.returncode != 0
    assert "HTTP 401" in done.stdout + drill.problems()
    assert not drill.checkout.objects("deployments", "-n", STACK)
    assert not drill.checkout.objects("nodeclaims.karpenter.sh", *OWN), "nothing was bought"
    drill.as_usual()
    drill.converges(1)
    (job,) = drill.checkout.objects("jobs", "-n", STACK)
    assert job["status"]["succeeded"] == 1
    pod = drill.pods()[0]["spec"]["containers"][0]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in pod["env"]
    drill.checkout.run("pulumi", "destroy", "--yes", "--non-interactive", "-s", STACK)
    drill.checkout.kubectl("delete", "pv", "--all", "--wait=false")
    drill.checkout.kubectl("delete", "storageclass", "shared")


def secrets_of(folder: Path, words: list[str]) -> Callable[[], list[str]]:
    """Files of a folder that hold one of the words."""

    def look() -> list[str]:
        found = []
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 50_000_000:
                text = path.read_bytes()
                found += [f"{path.name}: {word[:6]}…" for word in words if word.encode() in text]
        return found

    return look


def test_secrets_are_nowhere_in_plain_text(drill: Drill) -> None:
    """Not in state, logs or command lines; a rotated key is another one, and the old one is gone."""
    token = "hf_" + "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=30))
    environment = {**os.environ, **drill.checkout.exports}
    subprocess.run(
        ["pulumi", "config", "set", "--secret", "modelstacks:hubToken", "-s", STACK], input=token, text=True,
        env=environment, cwd=drill.checkout.folder, check=True, capture_output=True,
    )  # fmt: skip
    log = drill.logs / "secret.log"
    up = drill.begin_up(log)
    lines: set[str] = set()
    while up.poll() is None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lines.add(path.read_bytes().decode(errors="replace"))
            except OSError:
                continue
        time.sleep(0.2)
    assert up.returncode == 0, log.read_text()

    def key(serial: int) -> str:
        encoded = drill.checkout.kubectl(
            "get", "secret", f"{STACK}-api-key-{serial}", "-n", STACK, "-o", "jsonpath={.data.key}"
        )
        import base64

        return base64.b64decode(encoded).decode()

    first = key(1)
    held = drill.checkout.kubectl("get", "secret", "hub-token", "-n", STACK, "-o", "jsonpath={.data.token}")
    assert held
    backend = Path(urlsplit(drill.checkout.exports["PULUMI_BACKEND_URL"]).path)
    assert list(backend.rglob(f"{STACK}.json"))
    assert not secrets_of(backend, [token, first])()
    assert not secrets_of(drill.checkout.folder / "stacks", [token, first])()
    assert token not in log.read_text()
    assert first not in log.read_text()
    assert not any(token in line or first in line for line in lines)
    drill.checkout.modelstacks("rotate-key", STACK, "--yes")
    assert key(2) != first
    names = [s["metadata"]["name"] for s in drill.checkout.objects("secrets", "-n", STACK)]
    assert f"{STACK}-api-key-1" not in names
    (env,) = [v for v in drill.pods()[0]["spec"]["containers"][0]["env"] if v["name"] == "VLLM_API_KEY"]
    assert env["valueFrom"]["secretKeyRef"]["name"] == f"{STACK}-api-key-2"
