"""The table of rows is whole, names tests that exist, and the tests of rows import nothing of the product."""

import ast
import re
from pathlib import Path

import pytest

from tests.rows.rows import ATTACKS, ROWS

HERE = Path(__file__).parent
REQUIRED = """
    T-01 T-02 T-04 T-09 T-10 T-12 T-13 T-14 T-15 T-20 V-01 V-02 V-03 V-04 V-06 A-01 A-02 A-03 A-07 A-12 A-13
    P-01 P-02 P-03 P-05 P-06 I-01 I-02 I-03 I-04 I-06 I-07 I-08 I-09
""".split()
LATER = {"A18", "B11", "B12", "B14", "B19", "B20", "B21"}  # need a part that is not there yet, or stand elsewhere
IN_TABLE = [f"A{number}" for number in range(1, 20)] + [f"B{number}" for number in range(1, 22)]


def functions_of(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_row_that_must_hold_is_in_the_table():
    assert set(REQUIRED) <= ROWS.keys()
    assert ATTACKS.keys() == set(IN_TABLE) - LATER


@pytest.mark.parametrize(("name", "row"), [*ROWS.items(), *ATTACKS.items()], ids=[*ROWS, *ATTACKS])
def test_a_row_names_tests_that_exist(name, row):
    assert row.tests
    for test in row.tests:
        file, _, function = test.partition("::")
        path = HERE.parent / file[1:] if file.startswith("/") else HERE / file
        assert function in functions_of(path), test


@pytest.mark.parametrize("path", sorted(HERE.rglob("*.py")), ids=lambda path: path.name)
def test_a_test_of_rows_imports_nothing_of_the_product(path):
    assert not re.search(r"^\s*(from|import) app\b", path.read_text(), re.MULTILINE)
