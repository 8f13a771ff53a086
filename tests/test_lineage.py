import json
import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.files import dump_signed
from tf_rnnt_kd.lineage import (
    begin,
    code_version,
    examine,
    find_changes,
    fingerprint,
    finish,
    lineage_path,
    read_lineage,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def hash_of(path):
    return pathlib.Path(path).read_text() if os.path.exists(path) else None


@pytest.fixture
def made(work_dir):
    """Something made from `teacher` and `records/test`."""
    (work_dir / "teacher").write_text("t1")
    (work_dir / "test").write_text("r1")
    out = work_dir / "out" / "results.json"
    inputs = {"model": "t1", "records": {"test": "r1"}, "beam": 8}
    places = {"model": str(work_dir / "teacher"), "records": {"test": str(work_dir / "test")}}
    assert not begin(str(out), "results", inputs, places)
    out.write_text("figures")
    finish(str(out), "figures")
    return out, inputs, places


def test_the_lineage_of_a_file_lies_beside_it_and_that_of_a_folder_inside():
    assert lineage_path("a/results.json") == "a/results.lineage.json"
    assert lineage_path("a/run.v2") == "a/run.v2/lineage.json"


def test_what_was_made_from_the_same_is_gone_on_with(made):
    out, inputs, places = made
    assert begin(str(out), "results", inputs, places) and examine(str(out), hash_of) == []
    found = read_lineage(str(out))
    assert (found.kind, found.hash, found.code) == ("results", "figures", code_version())
    assert found.places == {"model": "../teacher", "records": {"test": "../test"}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"beam": 4}, "beam was 8, is 4"),
        ({"model": "t2"}, "model was t1, is t2"),
        ({"records": {"test": "r1", "dev": "d"}}, "records dev was absent, is d"),
        ({"records": {}}, "records test was r1, is absent"),
        ({"normaliser": "none"}, "normaliser was absent, is none"),
    ],
)
def test_what_was_made_from_something_else_is_refused(made, change, told):
    out, inputs, places = made
    with pytest.raises(UserError, match=told):
        begin(str(out), "results", {**inputs, **change}, places)
    assert not out.with_name("x").exists() and read_lineage(str(out)).inputs == inputs
    kept = {name: place for name, place in places["records"].items() if name in change.get("records", {name})}
    begin(str(out), "results", {**inputs, **change}, {**places, "records": kept}, anew=True)
    assert read_lineage(str(out)).hash is None


def test_an_input_that_changes_or_goes_is_found_in_its_place(made):
    out, _, _ = made
    teacher, test = (out.parents[1] / name for name in ("teacher", "test"))
    teacher.write_text("t2")
    test.unlink()
    out.write_text("other")
    told = ["model was t1, is t2", "records test was r1, is absent", "it was figures, is other"]
    assert examine(str(out), hash_of) == told


def test_a_folder_that_moves_with_its_inputs_still_fits(made):
    out, _, _ = made
    moved = out.parents[1].rename(out.parents[2] / "moved")
    assert examine(str(moved / "out" / "results.json"), hash_of) == []


def test_what_has_no_lineage_does_not_fit(work_dir):
    assert "no lineage" in examine(str(work_dir), hash_of)[0]


def test_a_flipped_byte_is_refused(made):
    path = made[0].with_name("results.lineage.json")
    path.write_text(path.read_text().replace('"t1"', '"t2"'))
    with pytest.raises(UserError, match="results.lineage.json is damaged"):
        read_lineage(str(made[0]))


@given(JSON, JSON)
def test_no_changes_mean_equal_inputs(one, other):
    one, other = {"x": one}, {"x": other}
    is_equal = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert bool(find_changes(one, other)) <= (not is_equal)
    assert find_changes(one, json.loads(json.dumps(one))) == []


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_fingerprints_of_different_lists_differ(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (one == other)


def test_a_lineage_in_anothers_place_is_refused(made):
    out, _, _ = made
    (out.parent / "lineage.json").write_bytes((out.parent / "results.lineage.json").read_bytes())
    with pytest.raises(UserError, match=r"out/lineage\.json is damaged: it is the lineage of 'results\.json'"):
        read_lineage(str(out.parent))
    (out.parent / "results.lineage.json").unlink()
    (out.parent / "results.lineage.json").symlink_to("nothing")
    with pytest.raises(UserError, match="is missing"):
        read_lineage(str(out))


def test_the_place_of_what_is_no_hash_is_refused(made):
    out, inputs, places = made
    path = out.parent / "results.lineage.json"
    content = json.loads(path.read_text())
    content.pop("sha256")
    path.write_bytes(dump_signed({**content, "inputs": {**content["inputs"], "model": {"a": "t1"}}}))
    with pytest.raises(UserError, match="places are paths, by the names of inputs"):
        read_lineage(str(out))
