"""Segments get codes and colors by their names."""

import json
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from SAM2AssistLib.io.terminology import Code, terminology_of

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
LEFT, RIGHT = "7771000", "24028007"
TOTAL_SEGMENTATOR = [
    "spleen",
    "kidney_right",
    "kidney_left",
    "gallbladder",
    "liver",
    "stomach",
    "pancreas",
    "adrenal_gland_right",
    "adrenal_gland_left",
    "lung_upper_lobe_left",
    "lung_lower_lobe_left",
    "lung_upper_lobe_right",
    "lung_middle_lobe_right",
    "lung_lower_lobe_right",
    "esophagus",
    "trachea",
    "thyroid_gland",
    "small_bowel",
    "duodenum",
    "colon",
    "urinary_bladder",
    "prostate",
    "kidney_cyst_left",
    "kidney_cyst_right",
    "sacrum",
    "vertebrae_S1",
    "heart",
    "aorta",
    "pulmonary_vein",
    "brachiocephalic_trunk",
    "subclavian_artery_right",
    "subclavian_artery_left",
    "common_carotid_artery_right",
    "common_carotid_artery_left",
    "brachiocephalic_vein_left",
    "superior_vena_cava",
    "inferior_vena_cava",
    "portal_vein_and_splenic_vein",
    "iliac_artery_left",
    "iliac_vena_right",
    "humerus_left",
    "scapula_right",
    "clavicula_left",
    "femur_left",
    "hip_right",
    "spinal_cord",
    "gluteus_maximus_left",
    "gluteus_medius_right",
    "gluteus_minimus_left",
    "autochthon_left",
    "iliopsoas_right",
    "brain",
    "skull",
    "sternum",
    "costal_cartilages",
]
PHANTOM = [
    "liver",
    "spleen",
    "kidney_left",
    "kidney_right",
    "aorta",
    "inferior_vena_cava",
    "stomach",
    "gallbladder",
    "pancreas",
    "spinal_cord",
    "vertebrae",
    "ribs",
    "lungs",
    "lung_left",
    "lung_right",
    "urinary_bladder",
    "bowel",
    "muscle",
    "body_fat",
    "fat",
    "bone",
    "tumor",
    "lesion",
    "liver_tumor",
    "cyst",
]


@pytest.mark.parametrize("name", [*TOTAL_SEGMENTATOR, *PHANTOM])
def test_common_names_are_known(name):
    assert terminology_of(name).known


def test_every_rib_and_every_vertebra_has_its_own_code():
    ribs = {terminology_of(f"rib_left_{n}").type.value for n in range(1, 13)}
    levels = [f"{part}{n}" for part, count in (("C", 7), ("T", 12), ("L", 5)) for n in range(1, count + 1)]
    vertebrae = {terminology_of(f"vertebrae_{level}").type.value for level in levels}
    assert (len(ribs), len(vertebrae)) == (12, 24)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared CT data are not here")
def test_all_names_in_the_real_data_are_known():
    names = {name for path in DATA.glob("**/labels.json") for name in json.loads(path.read_text())}
    assert [name for name in sorted(names) if not terminology_of(name).known] == []


@pytest.mark.parametrize(
    "name",
    ["kidney_left", "Kidney Left", "left kidney", "LEFT-KIDNEY", "LeftKidney", "kidney (L)", "l kidney", "kidney lt"],
)
def test_case_separators_and_the_place_of_left_do_not_matter(name):
    found = terminology_of(name)
    assert (found.type.value, found.modifier) == ("64033007", Code(LEFT, "Left"))


def test_singular_plural_and_spelling_variants_are_the_same():
    assert terminology_of("ribs") == terminology_of("rib")
    assert terminology_of("Oesophagus") == terminology_of("esophagus")
    assert terminology_of("gall bladder") == terminology_of("gallbladder")
    assert terminology_of("tumour") == terminology_of("tumor")


def test_a_side_of_something_that_has_no_sides_is_not_made_up():
    assert not terminology_of("spinal cord left").known


def test_a_finding_carries_the_organ_it_is_in_and_the_side_of_that():
    found = terminology_of("kidney_cyst_right")
    assert found.category.value == "49755003"
    assert found.type.meaning == "Cyst"
    assert (found.region, found.region_modifier) == (Code("64033007", "Kidney"), Code(RIGHT, "Right"))
    assert terminology_of("tumor of the liver") == terminology_of("liver_tumor")


def test_a_number_behind_a_finding_is_not_part_of_its_kind():
    assert terminology_of("lesion 3") == terminology_of("lesion")


def test_an_unknown_name_is_tissue_in_a_color_of_its_own():
    one, two = terminology_of("something"), terminology_of("something else")
    assert (one.category.value, one.type.value, one.known) == ("85756007", "85756007", False)
    assert one.color_rgb != two.color_rgb


def test_the_color_of_an_unknown_name_stays_the_same_from_run_to_run():
    assert [round(part * 255) for part in terminology_of("xyz").color_rgb] == [36, 56, 238]


def test_known_organs_have_the_color_that_slicer_gives_them():
    assert [round(part * 255) for part in terminology_of("liver").color_rgb] == [221, 130, 101]
    assert [round(part * 255) for part in terminology_of("spleen").color_rgb] == [157, 108, 162]


def test_the_tag_is_written_as_slicer_writes_it():
    assert terminology_of("left kidney").to_slicer_tag() == (
        "Segmentation category and type - 3D Slicer General Anatomy list"
        "~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~SCT^7771000^Left"
        "~Anatomic codes - DICOM master list~^^~^^"
    )


@given(st.text(max_size=40))
def test_any_text_is_a_name(name):
    found = terminology_of(name)
    assert found.to_slicer_tag().count("~") == 6
    assert all(0 <= part <= 1 for part in found.color_rgb)


def _table():
    return json.loads(resources.files("SAM2AssistLib.io").joinpath("terminology.json").read_text(encoding="utf-8"))


def test_no_name_in_the_table_stands_for_two_things():
    for entry in _table()["entries"]:
        for name in entry["names"]:
            assert terminology_of(name).type.value == entry["code"], name


def test_the_codes_in_the_table_are_valid_snomed_identifiers():
    """SNOMED CT identifiers end with a Verhoeff check digit, so a mistyped one is found (RF2 release guide, 5.4)."""
    table = _table()
    codes = {entry["code"] for entry in table["entries"]}
    codes |= {entry["region"][0] for entry in table["entries"] if "region" in entry}
    codes |= {pair[0] for key in ("categories", "sides") for pair in table[key].values()}
    assert not _has_valid_check_digit("10200005")  # the liver is 10200004
    assert [code for code in sorted(codes) if not _has_valid_check_digit(code)] == []


def _has_valid_check_digit(number: str) -> bool:
    """The Verhoeff scheme, by arithmetic in the dihedral group of order ten."""
    permutation = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit)
        for _ in range(place):
            value = permutation[value]
        total = _dihedral(total, value)
    return total == 0


def _dihedral(a: int, b: int) -> int:
    if a < 5:
        return (a + b) % 5 if b < 5 else 5 + (a + b - 5) % 5
    return 5 + (a - 5 - b) % 5 if b < 5 else (a - b) % 5
