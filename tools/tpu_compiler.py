"""Compiles StableHLO with the TPU compiler, for one core of a topology that need not be there.

    .venv-tpu/bin/python tools/tpu_compiler.py PROGRAM TOPOLOGY

Runs where constraints-tpu.txt is installed, without TensorFlow. `tools/tpu_compile.py` starts a process for each:
the compiler keeps gigabytes of what it has compiled. The last line of the output is JSON.
"""

import json
import os
import re
import resource
import sys
import time

# Read by libtpu when it is loaded: no metadata server, no chip, and others may compile at the same time.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}


def compile_program(program: bytes, topology: str) -> dict:
    """What the compiler says of a program on the first core of a topology, its only replica.

    Args:
      program: StableHLO, serialized or text.
      topology: such as "v4:2x2x1".

    Returns:
      `cores` and `kind` of the topology; bytes of `arguments`, `outputs`, `aliased` (outputs in place of arguments),
      `temporaries` and `code`, and `flops` of a call; or the compiler's words, as `refused` where memory does not
      suffice, else as `failed`.
    """
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies
    from jaxlib.mlir import ir

    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except JaxRuntimeError as error:
        return {"failed": one_line(error)}
    found = {"cores": len(devices), "kind": devices[0].device_kind}
    with mlir.make_ir_context():
        module = ir.Module.parse(legal(str(ir.Module.parse(program))))
        options = compiler.get_compile_options(num_replicas=1, num_partitions=1)
        try:
            compiled = devices[0].client.compile(module, _jax.DeviceList((devices[0],)), options)
        except JaxRuntimeError as error:
            verdict = "refused" if "RESOURCE_EXHAUSTED" in str(error) else "failed"
            return {**found, verdict: one_line(error)}
    memory, cost = compiled.get_compiled_memory_stats(), compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return {
        **found,
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "flops": cost["flops"],
    }


def legal(text: str) -> str:
    """The program without the one operation that TensorFlow writes and the TPU compiler does not read."""
    return re.sub(r"mhlo\.copy (%\S+) : (.*)", r"stablehlo.optimization_barrier \1 : \2", text)


def one_line(error: Exception) -> str:
    """The first sentence of what the compiler says, without its codes."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return re.sub(r"^(?:[A-Z_]+: |E\d+: |CompileTime\w+: )+", "", line).removesuffix(" HLO module: main.")


def main(argv: list[str]) -> None:
    """Compiles the program of a file and prints what came of it, with seconds and peak memory."""
    os.environ.update(_ENVIRONMENT)
    start = time.monotonic()
    with open(argv[1], "rb") as file:
        found = compile_program(file.read(), argv[2])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**found, "seconds": time.monotonic() - start, "peak": peak}))


if __name__ == "__main__":
    main(sys.argv)
