"""`FAMILIES`: every video family with modular blocks, as a tiny random checkpoint."""

from tests.support.families.base import Family
from tests.support.families.wan import WAN_FAMILIES

FAMILIES: dict[str, Family] = {family.name: family for family in WAN_FAMILIES}

__all__ = ["FAMILIES", "Family"]
