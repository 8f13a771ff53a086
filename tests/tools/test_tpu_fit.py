import json
import pathlib

import pytest

from tf_rnnt_kd.data.batching import Buckets
from tf_rnnt_kd.errors import UserError
from tools import tpu_fit
from tools.tpu_compiler import legal, one_line
from tools.tpu_fit import TRAIN, Answer, Compiler, Shape, check_topology, core_shapes, next_batch, read_shape

FITS = {"arguments": 7e9, "outputs": 7e9, "aliased": 7e9, "temporaries": 2e9, "code": 1e8, "flops": 3e12}
EFFORT = {"seconds": 4.0, "peak": 5e9}


def search(largest, start, *, base=7.0, slope=1.0, bend=0.0):
    """The batches that are tried, for memory of 7 + B, or bent; `largest` is what the compiler really lets pass."""

    def size(batch):
        return base + slope * batch + bend * batch**2

    fits, refused, tried, batch = {}, set(), [], start
    while batch is not None:
        tried.append(batch)
        if batch <= largest:
            fits[batch] = size(batch)
        else:
            refused.add(batch)
        batch = next_batch(fits, refused, size(largest) + 0.5 * slope)
    return max(fits, default=0), tried


@pytest.mark.parametrize("start", [1, 3, 8, 200])
@pytest.mark.parametrize("largest", [0, 1, 2, 7, 83])
@pytest.mark.parametrize("bend", [0.0, 0.01, -0.001])
def test_the_largest_batch_is_found_and_no_batch_is_tried_twice(largest, start, bend):
    found, tried = search(largest, start, bend=bend)
    assert found == largest and len(set(tried)) == len(tried) <= 16


def test_where_memory_is_linear_a_line_says_where_it_ends():
    assert search(83, 3)[1] == [3, 6, 83, 84]


def test_memory_that_does_not_grow_does_not_stop_the_search():
    assert next_batch({2: 5.0, 4: 5.0}, set(), 9.0) == 8


def test_a_core_has_its_part_of_a_batch():
    buckets = Buckets((8.0, 17.0), batch_seconds=4096.0, batch_multiple=64)
    assert core_shapes(buckets) == [Shape(8, 8.0), Shape(3, 17.0)]
    assert core_shapes(Buckets((2.0,), batch_seconds=8.0)) == [Shape(4, 2.0)]


def test_a_topology_is_checked_before_anything_is_built():
    for topology in ("v4:2x2x1", "v5e:2x2", "v6e:4x4", "v5p:2x2x4"):
        check_topology(topology)
    for topology in ("v9:2x2", "v4", "v4:", "v4:2", "v4:2x0", "v4:2x2x", "2x2", ""):
        with pytest.raises(
            UserError, match=r"is none: give one of v3, v4, v5e, v5p, v6e with its size, as in v4:2x2x1"
        ):
            check_topology(topology)


def test_a_shape_is_read():
    assert read_shape("4x16") == Shape(4, 16.0) and str(read_shape("4x16.5")) == "4 x 16.5 s"


@pytest.mark.parametrize("text", ["", "4", "x16", "4x", "0x16", "4x0", "4x-1", "4xnan", "four x 16", "1.5x2"])
def test_a_shape_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--shape '.*' is not BATCHxSECONDS, as in 4x16"):
        read_shape(text)


def test_memory_counts_what_is_updated_in_place_once():
    answer = Answer(FITS)
    assert answer.refused is None and answer.total == pytest.approx(9.1e9)
    assert str(answer) == "  7.00 GB arguments,   2.00 GB temporaries,   9.10 GB in all,    3.00 TFLOP"
    assert str(Answer({"refused": "out of memory"})) == "refused: out of memory"


def test_the_compilers_words_become_one_line():
    words = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (71.53G) exceeds available HBM (15.75G). HLO module: main.\nSee https://openxla.org for more."
    )
    wanted = "Ran out of memory on HBM, the total memory required for HLO temporaries (71.53G) exceeds available HBM "
    assert one_line(Exception(words)) == wanted + "(15.75G)."
    assert one_line(ValueError("")) == "ValueError"


def test_the_operation_that_the_compiler_does_not_read_is_replaced():
    line = "    %12 = mhlo.copy %11 : tensor<3x4xf32>\n    %13 = stablehlo.add %12, %12 : tensor<3x4xf32>"
    assert legal(line) == line.replace("mhlo.copy", "stablehlo.optimization_barrier")


class Processes:
    """In place of the processes of lowering and compiling: programs of batches up to 9 fit."""

    def __init__(self):
        self.started = []

    def __call__(self, python, tool, *arguments):
        self.started.append(tool.stem)
        if tool.stem == "tpu_lowering":
            program = json.loads(arguments[0])
            arguments[1].write_text(str(program["batch"]))
            return EFFORT
        batch = int(pathlib.Path(arguments[0]).read_text())
        if arguments[1] == "v0:1":
            return {"failed": "Invalid TPU external name"} | EFFORT
        return (FITS | {"temporaries": 2e8 * batch} if batch < 10 else {"refused": "too much"}) | EFFORT


@pytest.fixture
def processes(monkeypatch):
    processes = Processes()
    monkeypatch.setattr(tpu_fit, "_run", processes)
    return processes


def test_each_program_is_lowered_once_and_compiled_once_a_topology(processes, work_dir, capsys):
    compiler = Compiler(work_dir, "any.gin", ["STEPS=1"], "text", 6.0)
    for topology in ("v4:2x2x1", "v5p:2x2x1", "v4:2x2x1"):
        assert compiler.show("student", TRAIN, Shape(4, 16.0), topology).total == pytest.approx(7.9e9)
    assert processes.started == ["tpu_lowering", "tpu_compiler", "tpu_compiler"]
    again = Compiler(work_dir, "any.gin", ["STEPS=1"], "text", 6.0)
    again.show("student", TRAIN, Shape(4, 16.0), "v4:2x2x1")
    assert len(processes.started) == 3
    Compiler(work_dir, "any.gin", ["STEPS=1"], "other text", 6.0).show("student", TRAIN, Shape(4, 16.0), "v4:2x2x1")
    assert len(processes.started) == 5
    assert "step          4 x 16 s" in capsys.readouterr().out


def test_the_largest_batch_is_printed_with_the_refusal_of_the_next(processes, work_dir, capsys):
    compiler = Compiler(work_dir, "any.gin", [], "text", 6.0)
    assert compiler.find_largest("student", Shape(4, 16.0), "v4:2x2x1") == 9
    lines = capsys.readouterr().out.splitlines()
    assert any("10 x 16 s" in line and "refused: too much" in line for line in lines)
    assert lines[-1].split() == "v4:2x2x1 largest batch a core: 9 x 16 s (of about 16.4 GB)".split()


def test_a_topology_that_there_is_not_is_refused(processes, work_dir):
    compiler = Compiler(work_dir, "any.gin", [], "text", 6.0)
    with pytest.raises(UserError, match="failed for v0:1, student, train, 4 x 16 s: Invalid TPU external name"):
        compiler.show("student", TRAIN, Shape(4, 16.0), "v0:1")
