"""A kubelet for one container of a rendered pod: its probes, hooks and grace to the letter, its process on loopback.

What differs from a real one: no image and no cgroup, the process is the imitated server with the container's own
arguments, and time may run faster (`faster` times), for probes, hooks and server alike.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from modelstacks.local import ports


class Kubelet:
    """One pod: `ready` is what its Service would see, `restarts` and `log` what `kubectl describe` would show."""

    def __init__(
        self,
        pod_spec: dict[str, Any],
        *,
        engine: str = "vllm",
        faster: float = 1.0,
        secrets: dict[str, str] | None = None,
        server: tuple[str, ...] = (),
    ) -> None:
        (self.container,) = (c for c in pod_spec["containers"] if c["name"] == "server")
        self.grace_s = pod_spec["terminationGracePeriodSeconds"] / faster
        self.port = ports.a_free_one()
        self.ready = False
        self.started = False
        self.restarts = 0
        self.log: list[str] = []
        self._faster, self._engine, self._server = faster, engine, server
        self._secrets = secrets or {}
        self._ending = threading.Event()
        self.exit_code: int | None = None
        self._process = self._run()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://{ports.HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The process of the container as it is now."""
        return self._process.pid

    def _run(self) -> subprocess.Popen[bytes]:
        env = {"PATH": os.environ["PATH"], "NO_PROXY": "*", "HOME": os.environ.get("HOME", "/tmp")}
        for variable in self.container["env"]:
            if "value" in variable:
                # Its paths are those of the image.
                if variable["name"] not in ("HOME", "HF_HOME", "VLLM_CACHE_ROOT"):
                    env[variable["name"]] = variable["value"]
                continue
            ref = variable.get("valueFrom", {}).get("secretKeyRef")
            if ref is not None and ref["name"] in self._secrets:
                env[variable["name"]] = self._secrets[ref["name"]]
            elif ref is not None and not ref.get("optional"):
                raise KeyError(f"CreateContainerConfigError: secret {ref['name']} not found")
        command = [
            sys.executable, "-m", "modelstacks.local.modelserver", "--engine", self._engine, "--listen", str(self.port),
            "--faster", str(self._faster), *self._server, "--", *self.container["args"],
        ]  # fmt: skip
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _ask(self, probe: dict[str, Any]) -> bool:
        path = probe["httpGet"]["path"]
        # A machine under load needs real time for an answer, however fast the clock runs.
        limit_s = max(2.0, probe["timeoutSeconds"] / self._faster)
        try:
            with urllib.request.urlopen(f"{self.address}{path}", timeout=limit_s) as answer:
                return bool(200 <= answer.status < 400)
        except (OSError, urllib.error.HTTPError):
            return False

    def _live(self) -> None:
        """Start-up first, then readiness and liveness side by side, as the kubelet runs them."""
        while not self._ending.is_set():
            if self._start_up():
                self._serve()
            self.ready = self.started = False
            if self._ending.is_set():
                return
            self._kill()
            self.restarts += 1
            self._process = self._run()

    def _start_up(self) -> bool:
        probe = self.container.get("startupProbe")
        failures = 0
        while probe is not None and not self._ending.is_set():
            if self._process.poll() is not None:
                self.log.append(f"ended with code {self._process.returncode}")
                return False
            if self._ask(probe):
                break
            failures += 1
            if failures >= probe["failureThreshold"]:
                self.log.append("Startup probe failed: killed")
                return False
            self._ending.wait(probe["periodSeconds"] / self._faster)
        self.started = not self._ending.is_set()
        return self.started

    def _serve(self) -> None:
        probes = {name: self.container[f"{name}Probe"] for name in ("readiness", "liveness")}
        due = dict.fromkeys(probes, 0.0)
        failed = dict.fromkeys(probes, 0)
        while not self._ending.is_set():
            if self._process.poll() is not None:
                self.log.append(f"ended with code {self._process.returncode}")
                return
            now = time.monotonic()
            for name, probe in probes.items():
                if now < due[name]:
                    continue
                due[name] = now + probe["periodSeconds"] / self._faster
                failed[name] = 0 if self._ask(probe) else failed[name] + 1
                if name == "readiness":
                    self.ready = failed[name] == 0 or (self.ready and failed[name] < probe["failureThreshold"])
                elif failed[name] >= probe["failureThreshold"]:
                    self.log.append("Liveness probe failed: killed")
                    return
            self._ending.wait(0.01)

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def delete(self) -> float:
        """What deletion does: out of the Service, preStop, SIGTERM, and SIGKILL when the grace is over; its seconds."""
        began = time.monotonic()
        self._ending.set()
        self._thread.join()
        self.ready = False
        deadline = began + self.grace_s
        hook = (self.container.get("lifecycle") or {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        time.sleep(min(hook / self._faster, max(0.0, deadline - time.monotonic())))
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.log.append("grace is over: killed")
            self._kill()
        self.exit_code = self._process.returncode
        return time.monotonic() - began

    def stop(self) -> None:
        """End everything at once, at the end of a test."""
        self._ending.set()
        self._thread.join()
        if self._process.poll() is None:
            self._kill()
