"""Ten thousand damaged stack files, templates and configs: each is an answer or an error in words, never a traceback.

The damage is random and repeatable: a case is its number. MODELSTACKS_FUZZ_FROM begins at another one.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelstacks import documents, project, review, stackfile
from modelstacks.catalog import Catalog
from modelstacks.catalog.clouds import CloudKind
from modelstacks.catalog.hardware import Gpu
from modelstacks.catalog.models import Model
from modelstacks.catalog.row import load_row
from modelstacks.catalog.versions import Versions
from modelstacks.errors import BadInput, ModelstacksError
from modelstacks.plan import plan
from modelstacks.spec import KEYS

CATALOG = Catalog()
ROOT = project.root()
FROM = int(os.environ.get("MODELSTACKS_FUZZ_FROM", "0"))
# Stack files, config of a running program, data files and templates; together ten thousand.
STACK_FILES, CONFIGS, DATA_FILES, TEMPLATES = 5500, 1500, 2500, 500
_PIECES = 25

_ODD: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, float("nan"), float("inf"), "", " ", "null", "0x10", "1e3", "ü" * 300, "a\tb",
    "\x00", "\ud800", [], {}, [[]], {"a": {"b": {}}}, ["x"] * 50, "{{ x }}", "${HOME}", "../../etc/passwd",
    "-1", "2026-11-28",
    {"kind": "kwok"}, {"kind": None}, [{"kind": "kwok"}], {"min": 0}, {"claim": 1},
    {"storageClass": "a", "shared": "yes"},
]  # fmt: skip


def values_of(stack: str) -> dict[str, Any]:
    data = yaml.safe_load(stackfile.stack_file(ROOT, stack).read_text())
    config: dict[str, Any] = data["config"]
    return config


STACKS = stackfile.stack_names(ROOT)
RICH: dict[str, Any] = {
    "modelstacks:weights": {"storageClass": "efs", "shared": True, "accessMode": "ReadWriteMany"},
    "modelstacks:autoscale": {"min": 1, "max": 3},
    "modelstacks:monitoring": {"namespace": "m", "labels": {"release": "x"}},
    "modelstacks:cloud": {"kind": "karpenter-aws", "zones": ["us-east-1a"], "capacity": ["spot", "on-demand"]},
    "modelstacks:prefer": {"gpus": ["l4"], "maxGpus": 2},
    "modelstacks:registry": "m.example.com/a",
    "modelstacks:rollout": "surge",
}


def damaged(value: Any, dice: random.Random) -> Any:
    """The value with one thing wrong, somewhere in it."""
    if isinstance(value, dict) and value and dice.random() < 0.8:
        found = dict(value)
        key = dice.choice(list(found))
        action = dice.randrange(5)
        if action == 0:
            del found[key]
        elif action == 1:
            found[str(key)[:-1] + dice.choice("xZ_-0")] = found.pop(key)
        elif action == 2:
            found[dice.choice(["extra", 1, None, key * 2 if isinstance(key, str) else 7])] = dice.choice(_ODD)
        else:
            found[key] = damaged(found[key], dice)
        return found
    if isinstance(value, list) and value and dice.random() < 0.6:
        kept = list(value)
        index = dice.randrange(len(kept))
        kept[index] = damaged(kept[index], dice)
        return kept * dice.choice([1, 1, 1, 2])
    return dice.choice(_ODD)


def mangled(text: str, dice: random.Random) -> str:
    """The text with characters lost, doubled, swapped or put in."""
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(text) + 1)
        piece = dice.choice(
            ["", ":", "- ", "\n", "{", "]", "'", '"', "\t", "&a", "*a", "#", "!!python/object:os.system", "ü"]
        )
        text = dice.choice([text[:at] + piece + text[at:], text[:at] + text[at + dice.randint(1, 30) :], text[:at]])
        if not text:
            break
    return text


def stack_text(number: int) -> str:
    """One damaged stack file."""
    dice = random.Random(f"stack {number}")
    config = values_of(dice.choice(STACKS))
    for key in dice.sample(sorted(RICH), dice.randint(0, 2)):
        config[key] = RICH[key]
    for _ in range(dice.randint(1, 3)):
        config = damaged(config, dice)
        if not isinstance(config, dict):
            break
        if dice.random() < 0.3:
            config[f"modelstacks:{dice.choice(KEYS)}"] = dice.choice(_ODD)
    data: Any = {"config": config} if dice.random() < 0.97 else dice.choice(_ODD)
    try:
        text = yaml.safe_dump(data, allow_unicode=True)
    except (yaml.YAMLError, UnicodeEncodeError):
        text = repr(data)
    return mangled(text, dice) if dice.random() < 0.4 else text


def piece(total: int, index: int) -> range:
    """The numbers of one test: so many that a worker is not held up by all of them."""
    size = -(-total // _PIECES)
    return range(FROM + index * size, FROM + min(total, (index + 1) * size))


def check(error: ModelstacksError, number: int, named: str = "") -> None:
    """An error says something, where, and no stack trace."""
    said = str(error)
    assert said.strip(), number
    assert named in said, number
    assert "Traceback" not in said, number
    assert not isinstance(error, BadInput) or error.problems, number


@pytest.mark.parametrize("index", range(_PIECES))
def test_damaged_stack_files(index: int, tmp_path: Path) -> None:
    """Parsed, planned and rendered, or refused with a problem that has a place; rendered/ is whole or as it was."""
    rendered = 0
    path = tmp_path / "Pulumi.test.yaml"
    folder = tmp_path / "rendered"
    for number in piece(STACK_FILES, index):
        text = stack_text(number)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        before = sorted(folder.iterdir()) if folder.is_dir() else []
        try:
            asked = stackfile.parse_file(path, CATALOG)
            decided = plan(asked, CATALOG, stack="test", thorough=False)
            if decided.runs:
                fresh = review.files(decided, CATALOG, "test")
                if number % 50 == 0:
                    review.store(fresh, folder)
                rendered += 1
            else:
                assert all(refusal.message for refusal in decided.refusals)
        except ModelstacksError as error:
            check(error, number)
            assert (sorted(folder.iterdir()) if folder.is_dir() else []) == before
        except Exception as error:
            pytest.fail(f"case {number}: {type(error).__name__}: {error}\n{text[:800]}")
        assert not list(tmp_path.rglob("*.part"))
    assert rendered, "some damage is harmless, or nothing was tried"


@pytest.mark.parametrize("index", range(_PIECES))
def test_damaged_config_of_a_running_program(index: int) -> None:
    """What the engine hands over as text, JSON in it included."""
    import json

    from modelstacks import spec

    for number in piece(CONFIGS, index):
        dice = random.Random(f"config {number}")
        config = {
            key: json.dumps(value) if isinstance(value, dict | list | bool) else str(value)
            for key, value in (values_of(dice.choice(STACKS)) | dict(dice.sample(sorted(RICH.items()), 2))).items()
        }
        key = dice.choice(list(config))
        config[key] = mangled(config[key], dice)
        try:
            values = stackfile.config_values(config)
            for name in stackfile.PROGRAM_KEYS:
                values.pop(name, None)
            plan(spec.parse(values, CATALOG, source="test"), CATALOG, stack="test", thorough=False)
        except ModelstacksError as error:
            check(error, number)
        except Exception as error:
            pytest.fail(f"case {number}: {type(error).__name__}: {error}\n{key}: {config[key]!r}")


_ROWS: list[tuple[type[Any], Path, bool]] = [
    *((Model, path, True) for path in sorted((CATALOG.templates / "models").glob("*.yaml"))),
    *((Gpu, path, True) for path in sorted((CATALOG.root / "hardware").glob("*.yaml"))),
    *((CloudKind, path, True) for path in sorted((CATALOG.templates / "clouds").glob("*.yaml"))),
    (Versions, CATALOG.templates / "versions.yaml", False),
]


@pytest.mark.parametrize("index", range(_PIECES))
def test_damaged_data_files(index: int, tmp_path: Path) -> None:
    """Models, GPUs, clouds and versions: the file and the place are named."""
    for number in piece(DATA_FILES, index):
        dice = random.Random(f"data {number}")
        row, source, named = dice.choice(_ROWS)
        path = tmp_path / source.name
        text = source.read_text()
        if dice.random() < 0.5:
            try:
                text = yaml.safe_dump(damaged(yaml.safe_load(text), dice), allow_unicode=True)
            except (yaml.YAMLError, UnicodeEncodeError):
                text = "\ud800"
        else:
            text = mangled(text, dice)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            load_row(row, path, **({"id": path.stem} if named else {}))
        except BadInput as error:
            check(error, number, path.name)
        except Exception as error:
            pytest.fail(f"case {number}: {type(error).__name__}: {error}\n{source.name}\n{text[:500]}")


@pytest.mark.parametrize("index", range(_PIECES))
def test_damaged_templates(index: int, tmp_path: Path) -> None:
    """A template that no longer parses, names something unknown or gives no object names itself."""
    root = tmp_path / "data"
    shutil.copytree(CATALOG.templates, root / "templates")
    shutil.copytree(CATALOG.root / "hardware", root / "hardware")
    shutil.copytree(CATALOG.root / "ray", root / "ray")
    sources = sorted((root / "templates").rglob("*.j2"))
    decided = [
        plan(stackfile.parse_file(stackfile.stack_file(ROOT, stack), CATALOG), CATALOG, stack=stack, thorough=False)
        for stack in ("quickstart", "deepseek-r1", "gemma-2-27b")
    ]
    from modelstacks import render
    from modelstacks.render import templates

    for number in piece(TEMPLATES, index):
        dice = random.Random(f"template {number}")
        path = dice.choice(sources)
        text = path.read_text()
        path.write_text(mangled(text, dice))
        templates.environment.cache_clear()
        try:
            found = render.render(dice.choice(decided), Catalog(root))
            assert all(documents.write(manifest) for manifest in found)
        except ModelstacksError as error:
            check(error, number)
        except Exception as error:
            pytest.fail(f"case {number}: {type(error).__name__}: {error}\n{path.name}\n{path.read_text()[:500]}")
        finally:
            path.write_text(text)
    templates.environment.cache_clear()
