"""Compiles a plan's training steps and searches with the TPU compiler, without a TPU, and says what fits.

    python tools/tpu_compile.py --config configs/libri_nst.gin --topology v4:2x2x1,v5p:2x2x1 \
      --param 'LIBRISPEECH=""' --param 'LIBRILIGHT=""'
    python tools/tpu_compile.py --config configs/libri_nst.gin … --shape 512x16     # the compiler's refusal

For each generation (those with equal steps once): the step at the bucket of the longest utterances, memory, operations,
and by search the largest batch a core that still compiles; then the searches that label. A program is compiled for one
core, as the only replica: the sum over replicas (one gradient's size through the network a step) is not in it.

Programs and the compiler's answers are kept in --cache, so that a stopped run goes on. The compiler is installed into
./.venv-tpu (constraints-tpu.txt, about 1.1 GB). It is libtpu through private interfaces of JAX; nothing is executed.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import flags

from tf_rnnt_kd.errors import UserError, run_command
from tools.tpu_fit import TRAIN, Compiler, Shape, check_topology, core_shapes, ensure_compiler, read_shape

_TOPOLOGIES = ["v3:2x2x1", "v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"]
_CONFIG = flags.DEFINE_string("config", None, "Gin file of the plan.", required=True)
_PARAM = flags.DEFINE_multi_string("param", [], "Overrides a macro or binding of the config: NAME=value.")
_TOPOLOGY = flags.DEFINE_list("topology", _TOPOLOGIES, "What to compile for.")
_GENERATION = flags.DEFINE_multi_string("generation", [], "Only this one; may be repeated.")
_SHAPE = flags.DEFINE_list("shape", [], "BATCHxSECONDS on one core, in place of the longest bucket and of a search.")
_ALL_BUCKETS = flags.DEFINE_bool("all_buckets", False, "Also the buckets of shorter utterances.")
_LABELS = flags.DEFINE_float("labels_per_second", 6.0, "Room for labels, where only the records can tell.")
_BEAM = flags.DEFINE_list("beam", ["1", "8"], "Searches to compile, by their beam; 1 is greedy search. Empty: none.")
_CACHE = flags.DEFINE_string("cache", "runs/tpu_compile", "Folder of programs and answers.")

_LABEL_SECONDS = 120.0  # of audio that a labeller takes at a time


def main(argv):
    """Compiles what the flags ask for, and exits with 1 if a plan's own batch, or a --shape, does not fit."""
    del argv
    from tf_rnnt_kd import config

    plan, text = config.load_plan(_CONFIG.value, _PARAM.value)
    shapes = [read_shape(shape) for shape in _SHAPE.value]
    for topology in _TOPOLOGY.value:
        check_topology(topology)
    groups = list(_distinct(plan))
    ensure_compiler()
    compiler = Compiler(pathlib.Path(_CACHE.value), _CONFIG.value, _PARAM.value, text, _LABELS.value)
    print(f"{plan.name}: HBM of one core; a program is compiled as the only replica, without the sum over replicas")
    unfit = 0
    for names, generation, model_words in groups:
        print(f"\n{', '.join(names)}: {model_words}", flush=True)
        own = core_shapes(generation.training.buckets)
        for topology in _TOPOLOGY.value:
            for shape in shapes or (own[:-1] if _ALL_BUCKETS.value else []):
                unfit += compiler.show(generation.name, TRAIN, shape, topology).refused is not None
            if not shapes:
                unfit += compiler.find_largest(generation.name, own[-1], topology) < own[-1].batch
            for beam in _BEAM.value:
                rows = max(1, int(_LABEL_SECONDS / own[-1].seconds))
                compiler.show(generation.name, beam, Shape(rows, own[-1].seconds), topology)
    sys.exit(1 if unfit else 0)


def _distinct(plan) -> Iterator[tuple]:
    """(names, one generation, what it is in words) of those whose steps are equal."""
    from tools.tpu_lowering import build, vocabulary_of, weightless

    wanted = _GENERATION.value or [generation.name for generation in plan.generations]
    unknown = sorted(set(wanted) - {generation.name for generation in plan.generations})
    if unknown:
        raise UserError(f"--generation {unknown[0]!r} is none of: {', '.join(g.name for g in plan.generations)}")
    groups = {}
    for generation in (g for g in plan.generations if g.name in wanted):
        with weightless():
            model = build(generation, vocabulary_of(plan))
        key = json.dumps(model.get_config(), sort_keys=True, default=str), generation.codec, generation.targets_dtype
        key += repr(generation.objective), repr(dataclasses.replace(generation.training, learning_rate=None))
        remat = ", rematerialised" if model.encoder.rematerialise else ""
        words = f"{model.count_params() / 1e6:.1f} M weights, {generation.training.precision}{remat}"
        groups.setdefault(key, ([], generation, f"{words}, {generation.objective.summary}"))[0].append(generation.name)
    yield from groups.values()


if __name__ == "__main__":
    run_command(main)
