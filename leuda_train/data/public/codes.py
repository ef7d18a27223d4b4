"""organ -> its SNOMED CT code, for the [codes] of a cohort.toml.

Codes and meanings are those of SNOMED CT, as DICOM uses them (PS3.16, CID 7166 and others).
"""

from __future__ import annotations

from collections.abc import Mapping

from leuda_deploy.model.card import Code

ORGANS: Mapping[str, tuple[str, str]] = {
    "liver": ("10200004", "Liver"),
    "right_kidney": ("9846003", "Right kidney"),
    "left_kidney": ("18639004", "Left kidney"),
    "spleen": ("78961009", "Spleen"),
}
HEART: Mapping[str, tuple[str, str]] = {
    "MYO": ("49848007", "Left Ventricle Myocardium"),
    "LAC": ("82471001", "Left atrium"),
    "LVC": ("87878005", "Left ventricle"),
    "AA": ("54247002", "Ascending aorta"),
    "LV": ("87878005", "Left ventricle"),
    "RV": ("53085002", "Right ventricle"),
}


def snomed(table: Mapping[str, tuple[str, str]], names: Mapping[str, object]) -> dict[str, Code]:
    """The codes of all these names; KeyError if the table lacks one."""
    return {name: Code("SCT", *table[name]) for name in names}
