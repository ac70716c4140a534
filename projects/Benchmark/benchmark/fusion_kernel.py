"""The Triton kernel of a GPU's inference, compiled ahead: registers and spills, without a GPU."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from tagclip.errors import ConfigError
from tagclip.modeling.inference.triton_fusion import TILE
from tagclip.projects.benchmark.findings import Findings
from tagclip.projects.benchmark.workload import Workload
from tagclip.utils.files import temporary_folder

__all__ = ["CAPABILITIES", "KernelResources", "kernel", "kernel_resources"]

# A100, H100.
CAPABILITIES = (80, 90)


@dataclass(frozen=True)
class KernelResources:
    """What ptxas says of a kernel.

    Attributes:
        registers: of a thread, at most 255.
        spilled: bytes that a thread writes to and reads from memory for want of registers.
    """

    registers: int
    spilled: int


def kernel_resources(
    capability: int, has_trusty: bool, tile: tuple[int, int] = TILE
) -> KernelResources:
    """Compile `fusion_kernel.fuse` for a compute capability such as 90.

    Raises:
        ConfigError: ptxas, which triton's wheel for CUDA brings, is not there or fails.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tagclip.modeling.inference.fusion_kernel import fuse

    constants = {"HAS_TRUSTY": has_trusty, "CLASSES": tile[0], "COLUMNS": tile[1]}
    pointers = {
        **{"labels": "*i32", "scores": "*fp32", "trusty_map": "*fp32"},
        **{"seen_mask": "*i1", "table": "*i64"},
    }
    floats = dict.fromkeys(("bias", "weight_of_map", "lowest"), "fp32")
    known = pointers | floats | dict.fromkeys(constants, "constexpr")
    signature = {name: known.get(name, "i32") for name in fuse.arg_names}
    options = {"num_warps": max(1, tile[1] // 32), "num_stages": 1}
    source, target = ASTSource(fuse, signature, constants), GPUTarget("cuda", capability, 32)
    code = triton.compile(source, target=target, options=options).asm["ptx"]
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with temporary_folder() as folder:
        file = folder / "kernel.ptx"
        file.write_text(code, encoding="utf-8")
        architecture = re.search(r"^\.target (\w+)", code, re.MULTILINE)[1]
        line = [ptxas, "-v", f"--gpu-name={architecture}", file, "-o", file.with_suffix(".cubin")]
        try:
            said = subprocess.run(line, capture_output=True, text=True, check=True).stderr
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigError(
                f"{ptxas}: cannot assemble the kernel for {architecture} ({error}); install a "
                "triton whose wheel brings ptxas"
            ) from error
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    return KernelResources(int(re.search(r"Used (\d+) registers", said)[1]), spilled)


def kernel(workload: Workload, runs: int) -> Findings:
    """Registers and spills of the fused kernel for each architecture; the device does not matter.

    Without triton, which torch brings on Linux alone, nothing is compiled.
    """
    found, capabilities = Findings("kernel"), CAPABILITIES if find_spec("triton") else ()
    found.add("architectures", len(capabilities), "count")
    for capability, has_trusty in product(capabilities, (True, False)):
        resources = kernel_resources(capability, has_trusty)
        name = f"sm_{capability}, {'with' if has_trusty else 'without'} trusty map"
        found.add(f"{name}: registers of a thread", resources.registers, "count")
        spilled = found.add(f"{name}: bytes spilled", resources.spilled, "count")
        found.add_bar(f"fused kernel, {name}: bytes spilled", spilled, "count", 0)
    return found
