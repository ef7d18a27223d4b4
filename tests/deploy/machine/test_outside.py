"""A number that is none, or that nothing can compute with, is refused where a file is read."""

from __future__ import annotations

import pytest

from leuda_deploy.errors import InputError
from leuda_deploy.machine.outside import parse_json


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400", "-1e999", "1" + "0" * 400])
def test_numbers_of_no_size_are_no_json(number: str) -> None:
    with pytest.raises(InputError, match="is not JSON"):
        parse_json(f'{{"doubt": [{number}]}}', "report.json")


def test_other_numbers_are_as_python_reads_them() -> None:
    said = parse_json("[1e308, -5e-324, 18446744073709551615, -0.0, 1E2, 12]", "report.json")
    assert said == [1e308, -5e-324, 18446744073709551615, -0.0, 100.0, 12]
    assert [type(value) for value in said] == [float, float, int, float, float, int]


def test_half_a_character_is_no_json_but_of_a_file_name() -> None:
    with pytest.raises(InputError):
        parse_json('["n\\udcffame"]', "report.json")
    assert parse_json('["n\\udcffame"]', "report.json", file_names=True) == ["n\udcffame"]
    with pytest.raises(InputError):
        parse_json('["\\ud800"]', "report.json", file_names=True)
