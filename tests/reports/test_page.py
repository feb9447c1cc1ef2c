import base64
import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaw.errors import ResultsError
from deltaw.reports import page


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_json_is_safe_in_a_script_and_reads_back(value):
    text = page.as_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value


def test_json_has_no_nan():
    assert json.loads(page.as_json({"x": [float("nan"), float("inf"), 1.5]})) == {"x": [None, None, 1.5]}


def test_the_policy_allows_exactly_what_is_in_the_page():
    policy = page.policy(["let a;"], ["b {}"])
    digest = base64.b64encode(hashlib.sha256(b"let a;").digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_sentences_are_escaped_and_marked():
    from deltaw.reports.text import code, strong

    html = page.prose(f"{strong('5 %')} in {code('<b>')} of *this* a*b*c")
    assert html == "<strong>5\u202f%</strong> in <code><bdi>&lt;b&gt;</bdi></code> of <em>this</em> a*b*c"


def test_a_report_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot be written"):
        page.write(tmp_path / "file" / "report.html", "x")


def test_a_report_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "report.html"
    assert page.write(path, "one") == path
    page.write(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("library", page.LIBRARIES)
def test_libraries_come_with_their_licences(library):
    assert library in page.asset("THIRD_PARTY_LICENSES.txt")
    assert "sourceMappingURL" not in page.asset(library)
    assert len(page.asset(library)) > 10_000


def test_the_palette_is_defined_for_both_themes():
    css = page.colours()
    for light, dark in page.style.DARK.items():
        same = light == dark  # a colour that is legible on both pages
        assert css.count(f"--c{light[1:]}:{light}") == (3 if same else 1)
        assert css.count(f"--c{light[1:]}:{dark}") == (3 if same else 2)
    assert re.search(r"@media screen and \(prefers-color-scheme:dark\)", css)
