"""Waits until an object is ready or gone, tells how it goes, and says what is missing when time is up."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from modelstacks.cluster.connection import ApiError, Kind, Manifest, UnreachableError, identifier
from modelstacks.errors import ClusterError
from modelstacks.local.plugins.kubernetes_blockers import blockers
from modelstacks.local.plugins.kubernetes_ready import Lookup, Verdict, annotation, verdict

DEFAULT_TIMEOUT_S: Final = 600.0  # what the official provider grants each kind that it awaits
TIMEOUT_SECONDS: Final = "pulumi.com/timeoutSeconds"
_FIRST_POLLS_S: Final = (0.1, 0.2, 0.5)  # most objects are ready at once; later polls are a second apart
_STATUS_LINE_EVERY_S: Final = 3.0


def timeout_s(obj: Manifest, requested_s: float) -> float:
    """Seconds to wait: the resource option `custom_timeouts`, else the annotation, else ten minutes."""
    return requested_s or float(annotation(obj, TIMEOUT_SECONDS) or DEFAULT_TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class Wait:
    """How to wait for one object: where, for how long, until who cancels, and whom to tell."""

    cluster: Lookup
    limit_s: float
    cancelled: threading.Event
    report: Callable[[str], None]

    def until_ready(self, obj: Manifest) -> Manifest:
        """Polls until `obj` is ready and returns it as it then is.

        Raises ClusterError when it fails, vanishes or is not ready in time, saying what is missing.
        """
        live, label = obj, _label(obj)

        def state() -> str | None:
            nonlocal live
            try:
                found = verdict(live, self.cluster)
                if not found.ready and not found.failed:
                    live = self._live(live)
                    found = verdict(live, self.cluster)
            except (ApiError, UnreachableError) as error:
                found = Verdict(False, str(error))  # a restart of the API server is waited out like the rest
            if found.failed:
                raise _not_ready(f"{label} failed: {found.message}", blockers(live, self.cluster))
            return None if found.ready else found.message

        late = self._poll(state, lambda text: "; ".join([text, *blockers(live, self.cluster)[:1]]))
        if late is not None:
            head = f"{label} is not ready after {self.limit_s:.0f} s: {late}"
            raise _not_ready(head, blockers(live, self.cluster))
        return live

    def until_gone(self, obj: Manifest) -> None:
        """Polls until `obj` no longer exists. Raises ClusterError, naming the finalizers that hold it."""
        kind, metadata = Kind.of(obj), obj["metadata"]

        def state() -> str | None:
            live = self.cluster.get(kind, metadata.get("namespace"), metadata["name"])
            if live is None or live["metadata"]["uid"] != metadata["uid"]:
                return None
            holders = [*live["metadata"].get("finalizers", []), *live.get("spec", {}).get("finalizers", [])]
            notes = [
                condition["message"]
                for condition in live.get("status", {}).get("conditions", [])
                if condition["type"].startswith("Namespace") and condition["status"] == "True"
            ]
            return "; ".join([f"finalizers {', '.join(holders)}" if holders else "no finalizer left", *notes])

        late = self._poll(state, lambda text: f"is being deleted: {text}")
        if late is not None:
            raise ClusterError(
                f"{_label(obj)} is still there after {self.limit_s:.0f} s: {late}",
                next_step="see that the controllers behind its finalizers still run, then repeat",
            )

    def _live(self, obj: Manifest) -> Manifest:
        metadata = obj["metadata"]
        live = self.cluster.get(Kind.of(obj), metadata.get("namespace"), metadata["name"])
        if live is None:
            raise ClusterError(f"{_label(obj)} was deleted meanwhile", next_step="run `pulumi up` again")
        return live

    def _poll(self, state: Callable[[], str | None], line: Callable[[str], str]) -> str | None:
        """Asks for the `state` until it is None; the last state where time ran out."""
        started = reported = time.monotonic()
        for pause_s in itertools.chain(_FIRST_POLLS_S, itertools.repeat(1.0)):
            text = state()
            now = time.monotonic()
            if text is None and reported > started:
                self.report(f"done after {now - started:.0f} s")  # or the last status line would stay
            if text is None or now - started >= self.limit_s:
                return text
            if now - reported >= _STATUS_LINE_EVERY_S:
                reported = now
                self.report(line(text))
            if self.cancelled.wait(min(pause_s, self.limit_s)):
                raise ClusterError(f"cancelled while waiting: {text}", next_step="run the command again")
        return None


def _label(obj: Manifest) -> str:
    return f"{obj['kind']} {identifier(obj)}"


def _not_ready(head: str, details: list[str]) -> ClusterError:
    step = "remove what blocks it and run `pulumi up` again: the object stays and is waited for again"
    return ClusterError("\n  - ".join([head, *details]), next_step=step)
