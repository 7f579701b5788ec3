"""Reads the data folders into one catalogue; a file is read when it is first asked for."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from modelstacks import documents, project
from modelstacks.catalog.clouds import AllRegions, CloudKind, Regions
from modelstacks.catalog.fabrics import Fabric, Fabrics
from modelstacks.catalog.hardware import Gpu, Machine
from modelstacks.catalog.models import MissingModel, MissingModels, Model
from modelstacks.catalog.operators import Operator, Operators
from modelstacks.catalog.prices import apply_contract_prices
from modelstacks.catalog.row import load_row
from modelstacks.catalog.versions import EngineForm, TierForm, Versions
from modelstacks.errors import BadInput, Problem, listed


def _squeeze(name: str) -> str:
    """A name without what people write differently: case, spaces, dashes and dots."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


class _Gpus(Mapping[str, Gpu]):
    """GPU types by id, each read when it is first asked for: most questions name one."""

    def __init__(self, folder: Path, ids: tuple[str, ...]) -> None:
        self._folder, self._ids = folder, ids
        self._read: dict[str, Gpu] = {}

    def __getitem__(self, gpu_id: str) -> Gpu:
        if gpu_id not in self._read:
            if gpu_id not in self._ids:
                raise KeyError(gpu_id)
            self._read[gpu_id] = load_row(Gpu, self._folder / f"{gpu_id}.yaml", id=gpu_id)
        return self._read[gpu_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


class Catalog:
    """Models, GPUs, clouds and versions found under one data root. Treat it as a value: it never changes."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or project.data_root()
        self.templates = self.root / "templates"
        # A root of its own brings its own prices.yaml; the installed data takes the project's.
        self.contract_prices = (root or project.root()) / "prices.yaml"
        # Beside the installed models those that the project imported.
        imported = [] if root is not None else [project.root() / "templates" / "models"]
        self._model_folders = list(dict.fromkeys([self.templates / "models", *imported]))
        self._models: dict[str, Model] = {}
        self._older: dict[tuple[str, str, str], EngineForm | None] = {}

    def with_model(self, model: Model) -> Catalog:
        """The same catalogue with one more model, known for as long as the process runs."""
        other = copy.copy(self)
        other.__dict__.pop("model_ids", None)
        other._models = {**self._models, model.id: model}
        other.__dict__["model_ids"] = tuple(sorted({*self.model_ids, model.id}))
        return other

    @cached_property
    def model_ids(self) -> tuple[str, ...]:
        """Every model id, sorted."""
        return tuple(sorted({path.stem for folder in self._model_folders for path in folder.glob("*.yaml")}))

    def model(self, model_id: str) -> Model:
        """The template of one model. Raises BadInput with the nearest names for an unknown id."""
        if model_id not in self._models:
            if model_id not in self.model_ids:
                raise BadInput([self.unknown_model(model_id)], source="model", next_step="modelstacks models")
            named = [folder / f"{model_id}.yaml" for folder in self._model_folders]
            path = next(path for path in named if path.is_file())
            model = load_row(Model, path, id=model_id)
            known = set(self.gpu_ids)
            for index, profile in enumerate(model.profiles):
                if profile.gpu not in known:
                    line = documents.line_of(documents.read_text(path), ["profiles", index, "gpu"])
                    near = difflib.get_close_matches(profile.gpu, known, n=1)
                    text = f"{profile.gpu!r} is no file of hardware/"
                    where = f"line {line}, profiles.{index}.gpu"
                    raise BadInput(
                        [Problem(where, text, profile.gpu, None, near[0] if near else None)], source=str(path)
                    )
            nameless = [name for name, checkpoint in model.checkpoints.items() if checkpoint.repo is None]
            if nameless:
                raise BadInput([Problem(f"checkpoints.{nameless[0]}.repo", "is missing")], source=str(path))
            self._models[model_id] = model
        return self._models[model_id]

    def unknown_model(self, model_id: str) -> Problem:
        """Why a model id is refused: it never existed, or the nearest one that does."""
        missing = {_squeeze(name): row for name, row in self._missing_models.items()}.get(_squeeze(model_id))
        if missing is not None:
            return Problem("model", missing.answer, model_id, suggestion=" or ".join(missing.instead))
        word = re.sub(r"[\s_]+", "-", model_id.strip().lower())
        near = difflib.get_close_matches(word, self.model_ids, n=1, cutoff=0.5)
        # Sizes of one family are alike: 7b and 72b are both near 70b.
        near += [name for name in difflib.get_close_matches(word, self.model_ids, n=2, cutoff=0.85) if name not in near]
        return Problem(
            "model", f"{model_id!r} is not in the catalogue", model_id,
            allowed=listed(self.model_ids), suggestion=" or ".join(near) or None,
        )  # fmt: skip

    @cached_property
    def _missing_models(self) -> dict[str, MissingModel]:
        path = self.templates / "missing-models.yaml"
        return load_row(MissingModels, path, in_catalogue=self.model_ids).models

    @cached_property
    def gpus(self) -> Mapping[str, Gpu]:
        """Every GPU type by id, in the order of ids."""
        rows = _Gpus(self.root / "hardware", self.gpu_ids)
        # Contract prices name machines of any type, so then all of them are read at once.
        return apply_contract_prices(dict(rows), self.contract_prices) if self.contract_prices.is_file() else rows

    @cached_property
    def gpu_ids(self) -> tuple[str, ...]:
        """Every GPU id, sorted; reads no file."""
        return tuple(sorted(path.stem for path in (self.root / "hardware").glob("*.yaml")))

    @cached_property
    def machines(self) -> tuple[Machine, ...]:
        """Every machine type of every GPU."""
        return tuple(machine for gpu in self.gpus.values() for machine in gpu.machines)

    @cached_property
    def versions(self) -> Versions:
        """Engine, image and operator versions."""
        return load_row(Versions, self.templates / "versions.yaml")

    @cached_property
    def clouds(self) -> dict[str, CloudKind]:
        """Every cloud kind by id."""
        paths = sorted((self.templates / "clouds").glob("*.yaml"))
        return {path.stem: load_row(CloudKind, path, id=path.stem) for path in paths}

    def regions_of(self, cloud: str) -> Regions:
        """The regions and zones of one cloud."""
        return self._regions.clouds[cloud]

    @cached_property
    def _regions(self) -> AllRegions:
        return load_row(AllRegions, self.templates / "regions.yaml")

    @cached_property
    def fabrics(self) -> dict[str, Fabric]:
        """Every network between nodes by id."""
        return load_row(Fabrics, self.templates / "fabrics.yaml").fabrics

    @cached_property
    def operators(self) -> dict[str, Operator]:
        """Every operator that a stack may ask for, by id."""
        return load_row(Operators, self.templates / "operators.yaml").operators

    def any_form(self, engine: str) -> EngineForm:
        """A form of `engine` whose figures stand in where a tier has none of its own."""
        return next(iter(self.versions.engines[engine].values()))

    @cached_property
    def launchers(self) -> tuple[str, ...]:
        """Every launcher that some tier has, each once."""
        return tuple(dict.fromkeys(name for forms in self.versions.tiers.values() for name in forms))

    def tier_form(self, tier: str, launcher: str | None = None) -> TierForm:
        """How `tier` is launched: by `launcher` where it has that one, else by its default."""
        forms = self.versions.tiers[tier]
        return forms.get(launcher or "") or next(iter(forms.values()))

    def engine_form(
        self, engine: str, tier: str, version: str | None = None, launcher: str | None = None
    ) -> EngineForm | None:
        """The form of `engine` that runs in `tier`, as of `version`; None when there is none."""
        name = self.tier_form(tier, launcher).form
        form = self.versions.engines[engine].get(name)
        if form is None or version is None or version == form.version:
            return form
        if (engine, name, version) not in self._older:
            self._older[engine, name, version] = form.at(version)
        return self._older[engine, name, version]
