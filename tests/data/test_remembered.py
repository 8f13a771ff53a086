import os

import numpy as np
import soundfile

from tf_rnnt_kd.data import corpora
from tf_rnnt_kd.data.corpora import read_librispeech
from tf_rnnt_kd.data.remembered import recaller, remembered_in


def test_a_later_start_does_not_look_into_files_again_unless_they_changed(work_dir, monkeypatch):
    (work_dir / "1" / "2").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, seconds in (("a", 5), ("b", 1)):
        soundfile.write(work_dir / f"1/2/{name}.flac", rng.uniform(-0.1, 0.1, 16_000 * seconds), 16_000)
    looked, cut = [], corpora._cut

    def counted(path, max_seconds):
        looked.append(os.path.basename(path))
        return cut(path, max_seconds)

    monkeypatch.setattr(corpora, "_cut", counted)

    def listed(max_seconds=2.0):
        looked.clear()
        with remembered_in(str(work_dir / "kept.json")):
            found = read_librispeech(str(work_dir), labelled=False, max_seconds=max_seconds)
        return [(u.id, u.source) for u in found], sorted(looked)

    first = listed()
    assert first[1] == ["a.flac", "b.flac"] and len(first[0]) > 2
    assert listed() == (first[0], [])
    with remembered_in(str(work_dir / "kept.json")):
        pass
    assert listed() == (first[0], [])  # a start that asked for nothing forgets nothing
    os.utime(work_dir / "1/2/b.flac", ns=(1, 1))
    assert listed()[1] == ["b.flac"]
    assert listed(max_seconds=3.0)[1] == ["a.flac", "b.flac"]
    with monkeypatch.context() as patched:
        patched.setattr(corpora, "_CUTS", "another rule")
        assert listed(max_seconds=3.0)[1] == ["a.flac", "b.flac"]
    (work_dir / "kept.json").write_text("[" * 100_000)
    assert listed(max_seconds=3.0)[1] == ["a.flac", "b.flac"]


def test_without_a_place_nothing_is_remembered():
    found = iter([[1.0], [2.0]])
    recall = recaller()
    assert [recall("key", lambda: next(found)) for _ in range(2)] == [[1.0], [2.0]]
