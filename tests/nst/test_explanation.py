import pytest

from tf_rnnt_kd.lineage import begin, finish
from tf_rnnt_kd.nst.explanation import explain


@pytest.mark.parametrize("place", [".", "../b"])
def test_what_says_that_it_was_made_from_itself_is_told(work_dir, place):
    for name, other in (("a", place), ("b", "../a")):
        artefact = work_dir / name
        begin(str(artefact), "record set", {"records": None}, {"records": str(artefact / other)})
        finish(str(artefact), "h" * 64)
    assert "! it says that it was made from itself" in explain(str(work_dir / "a"))
