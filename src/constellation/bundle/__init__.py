"""What production receives: a folder of plain files, a table in, a table out."""

from constellation.bundle.bundle import Bundle
from constellation.bundle.engagement import EngagementBundle
from constellation.bundle.files import locate

__all__ = ["Bundle", "EngagementBundle", "locate"]
