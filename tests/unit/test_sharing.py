"""What two stacks use has one owner, who knows of it and leaves room for the other."""

from pathlib import Path

import pytest

from modelstacks import sharing, stackfile
from modelstacks.catalog import Catalog
from modelstacks.errors import BadInput
from modelstacks.plan import plan

CATALOG = Catalog()
OWNER = """\
config:
  modelstacks:model: mistral-nemo-12b
  modelstacks:gpu: l4
  modelstacks:quantization: fp8
  modelstacks:namespace: team
  modelstacks:shared: [namespace, pool]
  modelstacks:cloud: {kind: karpenter-aws, limitGpus: 2}
"""
GUEST = """\
config:
  modelstacks:model: llama-3.1-8b
  modelstacks:gpu: l4
  modelstacks:acceptedLicense: llama3.1
  modelstacks:namespace: team
  modelstacks:namespaceOwner: owner
  modelstacks:cloud: {kind: karpenter-aws, poolOwner: owner}
"""


def checked(root: Path, stack: str, owner: str = OWNER, guest: str = GUEST) -> None:
    """The check of one of two stacks of a project."""
    (root / "stacks").mkdir(exist_ok=True)
    for name, text in (("owner", owner), ("guest", guest)):
        (root / "stacks" / f"Pulumi.{name}.yaml").write_text(text)
    asked = stackfile.parse_file(stackfile.stack_file(root, stack), CATALOG)
    sharing.check(plan(asked, CATALOG, stack=stack), root, CATALOG)


@pytest.mark.parametrize("stack", ["owner", "guest"])
def test_an_owner_that_knows_and_has_room_is_fine(stack: str, tmp_path: Path) -> None:
    """Both stacks pass, whichever is asked."""
    checked(tmp_path, stack)


@pytest.mark.parametrize(
    ("stack", "owner", "guest", "says"),
    [
        ("guest", OWNER.replace("[namespace, pool]", "[pool]"), GUEST, "does not share its namespace: destroying it"),
        ("guest", OWNER.replace("[namespace, pool]", "[namespace]"), GUEST, "does not share its pool"),
        ("guest", OWNER.replace("namespace: team", "namespace: llm"), GUEST, "owns namespace llm"),
        ("guest", OWNER.replace("limitGpus: 2", "limitGpus: 1"), GUEST, "may hold 1 × g6.xlarge, its stacks need 2"),
        ("owner", OWNER.replace("limitGpus: 2", "limitGpus: 1"), GUEST, r"\(owner 1, guest 1\)"),
        ("guest", OWNER.replace("karpenter-aws", "eks"), GUEST, "owner has kind eks, and this stack karpenter-aws"),
        ("guest", OWNER, GUEST.replace("gpu: l4", "gpu: l40s"), "the pool of owner has g6.xlarge"),
        ("guest", OWNER, GUEST.replace("poolOwner: owner", "poolOwner: ownr"), "did you mean owner"),
        ("guest", OWNER, GUEST.replace("namespaceOwner: owner", "namespaceOwner: nobody"), "is no stack of this"),
    ],
)
def test_what_would_harm_the_other_is_refused(stack: str, owner: str, guest: str, says: str, tmp_path: Path) -> None:
    """Before anything is made, with the line to change."""
    with pytest.raises(BadInput, match=says):
        checked(tmp_path, stack, owner, guest)


def test_an_owner_does_not_tighten_what_its_guest_needs(tmp_path: Path) -> None:
    """Its `up` would pass, and the guest's pods would be refused at their next restart."""
    model = "model: llama-3.1-8b\n  modelstacks:gpu: l4\n"
    tgi = GUEST.replace(model, model + "  modelstacks:engine: tgi\n")
    with pytest.raises(BadInput, match="would be restricted, and the pods of guest, a guest, need baseline"):
        checked(tmp_path, "owner", OWNER, tgi)


@pytest.mark.parametrize("stack", ["owner", "owner-weights"])
def test_no_stack_has_the_name_of_an_object_of_its_neighbour(stack: str, tmp_path: Path) -> None:
    """Both would render a policy of that name into the one namespace."""
    (tmp_path / "stacks").mkdir()
    for name, text in (("owner", OWNER), ("owner-weights", GUEST)):
        (tmp_path / "stacks" / f"Pulumi.{name}.yaml").write_text(text)
    asked = stackfile.parse_file(stackfile.stack_file(tmp_path, stack), CATALOG)
    with pytest.raises(BadInput, match="one is the name of an object of the other"):
        sharing.check(plan(asked, CATALOG, stack=stack), tmp_path, CATALOG)


def test_two_stacks_of_one_namespace_need_an_owner(tmp_path: Path) -> None:
    """Without namespaceOwner the second would label and delete what the first made."""
    (tmp_path / "stacks").mkdir()
    specs = {}
    for name, text in (("owner", OWNER), ("guest", GUEST)):
        path = tmp_path / "stacks" / f"Pulumi.{name}.yaml"
        path.write_text(text)
        specs[name] = stackfile.parse_file(path, CATALOG)
    stackfile.check_namespaces(specs)
    alone = GUEST.replace("  modelstacks:namespaceOwner: owner\n", "")
    path.write_text(alone)
    specs["guest"] = stackfile.parse_file(path, CATALOG)
    with pytest.raises(BadInput, match="name its owner in modelstacks:namespaceOwner"):
        stackfile.check_namespaces(specs)
