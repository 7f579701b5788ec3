"""The catalogue: models, GPU types, versions and clouds as frozen values, read from templates/ and hardware/."""

from modelstacks.catalog.hardware import Gpu, Machine, Price
from modelstacks.catalog.models import Architecture, Checkpoint, Licence, Model, Profile
from modelstacks.catalog.store import Catalog
from modelstacks.catalog.versions import CloudKind, EngineForm, TierForm, Versions

__all__ = [
    "Architecture",
    "Catalog",
    "Checkpoint",
    "CloudKind",
    "EngineForm",
    "Gpu",
    "Licence",
    "Machine",
    "Model",
    "Price",
    "Profile",
    "TierForm",
    "Versions",
]
