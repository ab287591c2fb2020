"""`FAMILIES`: every video family with modular blocks, as a tiny random checkpoint."""

from tests.support.families.base import Family
from tests.support.families.helios import HELIOS
from tests.support.families.hunyuan import HUNYUAN
from tests.support.families.ltx import LTX
from tests.support.families.ltx2 import LTX2
from tests.support.families.wan import WAN_FAMILIES

FAMILIES: dict[str, Family] = {
    family.name: family for family in (*WAN_FAMILIES, LTX, LTX2, HUNYUAN, HELIOS)
}

__all__ = ["FAMILIES", "Family"]
