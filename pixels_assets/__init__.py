"""A DICOM data platform as a Dagster asset graph over Delta Lake.

Holds the public Python names. Must not import Dagster, Delta or a codec: worker processes import this package for its pure layers.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixels_assets.api import Catalog

__all__ = ["Catalog", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Catalog":
        from pixels_assets.api import Catalog

        return Catalog
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
