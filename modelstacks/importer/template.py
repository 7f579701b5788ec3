"""Writes a model template from an own model, with everything that the config cannot say marked for its reader."""

from __future__ import annotations

from typing import Any

from modelstacks import documents
from modelstacks.catalog import Model
from modelstacks.importer.reader import HubModel

_OPEN = """\
# Read from a config.json; what such a file cannot say is yours to add:
#   licence: id, name, whether it must be accepted, its terms; unknown is planned as if nothing must be accepted
#   engine_flags: tool-call and reasoning parsers, such as
#     vllm: [--enable-auto-tool-choice, --tool-call-parser, hermes]
#   engine_refusals: engines that cannot serve it, with the reason
#   checkpoints: further quantizations, each with repository, revision and size
#   profiles: the GPU types, counts and contexts it is known to be served with
"""


def template(model: Model, hub: HubModel) -> str:
    """The text of templates/models/<id>.yaml."""
    row = model.model_dump(mode="json", exclude={"id"}, exclude_none=True, exclude_defaults=True)
    # Plain values first, as in the files that are written by hand.
    order = ("name", "licence", "architecture", "checkpoints", "quantize_at_load", "profiles")
    data: dict[str, Any] = {key: row[key] for key in order if key in row}
    head = _OPEN
    if hub.model_class:
        head += f"# Model class in the config: {hub.model_class}\n"
    head += "".join(f"# Note: {note}\n" for note in hub.notes)
    return head + documents.write(data)
