"""The catalogue: models, GPU types, versions and clouds as frozen values, read from templates/ and hardware/."""

from modelstacks.catalog.clouds import CloudKind
from modelstacks.catalog.fabrics import Fabric
from modelstacks.catalog.hardware import Gpu, Machine, Price
from modelstacks.catalog.models import Architecture, Checkpoint, Licence, Model, Profile
from modelstacks.catalog.operators import Operator
from modelstacks.catalog.store import Catalog
from modelstacks.catalog.versions import EngineForm, TierForm, Versions

__all__ = [
    "Architecture",
    "Catalog",
    "Checkpoint",
    "CloudKind",
    "EngineForm",
    "Fabric",
    "Gpu",
    "Licence",
    "Machine",
    "Model",
    "Operator",
    "Price",
    "Profile",
    "TierForm",
    "Versions",
]
