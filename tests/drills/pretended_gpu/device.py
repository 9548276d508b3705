"""A pretended H200: what torch, Inductor and Triton ask of a GPU, answered without one.

Inductor generates its kernels for it, Triton compiles them and ptxas assembles them for sm_90, all as on a real one. A
launch is a count. What `runtime.c` and `driver.c` answer, below Python, is only what is asked while torch is imported
and by fake tensors' operators.
"""

import contextlib
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses import fake_tensor

from .record import Kernel, Record

DEVICES = 8
CAPABILITY = (9, 0)
WARP = 32
MAX_SHARED = 232_448  # bytes of a thread block, which has to ask for more than 49,152
REGISTERS = 65_536  # of a thread block
PROPERTIES = SimpleNamespace(
    name="NVIDIA H200",
    major=CAPABILITY[0],
    minor=CAPABILITY[1],
    multi_processor_count=132,
    total_memory=150 * 2**30,
    warp_size=WARP,
    max_threads_per_block=1024,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=REGISTERS,
    shared_memory_per_block=49_152,
    shared_memory_per_block_optin=MAX_SHARED,
    shared_memory_per_multiprocessor=233_472,
    L2_cache_size=60 * 2**20,
    clock_rate=1_980_000,
    memory_clock_rate=3_201_000,
    memory_bus_width=6144,
    is_multi_gpu_board=0,
    is_integrated=0,
    gcnArchName="",
    uuid="pretended",
    pci_bus_id=0,
)


class Event:
    """An event that has always happened; waiting for it is recorded."""

    record_of: Record

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.record_of.wait("Event.synchronize")

    def elapsed_time(self, other: Any) -> float:
        return 1.0


class Stream:
    """A stream on which everything is done at once; waiting for it is recorded."""

    record_of: Record
    device = torch.device("cuda", 0)
    device_index, device_type = 0, 1
    stream_id = cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> Event:
        return event or Event()

    def synchronize(self) -> None:
        self.record_of.wait("Stream.synchronize")

    def query(self) -> bool:
        return True


def constant(value: Any) -> Any:
    """Return a function of any arguments that returns `value`; of a class a static one."""
    return staticmethod(lambda *_, **__: value)


def nothing(*_: Any, **__: Any) -> Any:
    """Stand for a context that changes nothing."""
    return contextlib.nullcontext()


def install(record: Record) -> None:
    """Replace the device of this process, for good. Compilers must be imported after it."""
    Event.record_of = Stream.record_of = record
    main = Stream()
    torch_cuda(record, main)
    inductor(main)
    triton(record)


def torch_cuda(record: Record, main: Stream) -> None:
    """Answer for `torch.cuda` and the functions of C++ behind it."""
    answers = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "_is_in_bad_fork": False,
        "_lazy_init": None,
        "device_count": DEVICES,
        "current_device": 0,
        "set_device": None,
        "get_device_name": PROPERTIES.name,
        "get_device_capability": CAPABILITY,
        "get_device_properties": PROPERTIES,
        "current_stream": main,
        "default_stream": main,
        "is_current_stream_capturing": False,
        "can_device_access_peer": True,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "mem_get_info": (140 * 2**30, PROPERTIES.total_memory),
        **dict.fromkeys(("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"), 0),
        "set_rng_state": None,
    }
    for name, value in answers.items():
        setattr(torch.cuda, name, constant(value).__func__)
    torch.accelerator.current_stream = constant(main).__func__
    torch.cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
    torch.cuda.default_generators = tuple(torch.Generator() for _ in range(DEVICES))
    torch.cuda.synchronize = lambda *_: record.wait("torch.cuda.synchronize")
    torch.cuda.Event = torch.Event = Event  # type: ignore[assignment,misc]
    torch.cuda.Stream = Stream  # type: ignore[assignment,misc]
    torch.cuda.device = torch.cuda.stream = torch.cuda._DeviceGuard = nothing  # type: ignore[assignment,misc]
    for name, value in {
        "_cuda_getCurrentRawStream": 0,
        "_cuda_getDevice": 0,
        "_cuda_getDeviceCount": DEVICES,
        "_cuda_exchangeDevice": 0,
        "_cuda_maybeExchangeDevice": 0,
        "_cuda_isCurrentStreamCapturing": False,
    }.items():
        setattr(torch._C, name, constant(value).__func__)
    fake_tensor.init_gpu_context = lambda device: None


def inductor(main: Stream) -> None:
    """Answer for the compiler's view of a device, and for what its generated code calls."""
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import config
    from torch._inductor.fx_passes import joint_graph, post_grad
    from torch._inductor.runtime import triton_helpers

    answers = {
        "current_device": 0,
        "device_count": DEVICES,
        "set_device": None,
        "exchange_device": 0,
        "maybe_exchange_device": 0,
        "current_stream": main,
        "set_stream": None,
        "_set_stream_by_id": None,
        "get_raw_stream": 0,
        "synchronize": None,
        "is_available": True,
        "is_bf16_supported": True,
        "get_compute_capability": 90,
        "memory_allocated": 0,
        "is_triton_capable": True,
        "raise_if_triton_unavailable": None,
    }
    for name, value in answers.items():
        setattr(CudaInterface, name, constant(value))
    CudaInterface.Event, CudaInterface.Stream = Event, Stream  # type: ignore[assignment,misc]
    CudaInterface.device = CudaInterface.stream = staticmethod(nothing)  # type: ignore[assignment,misc]
    for name, value in {"set_device": None, "current_device": 0, "get_device_properties": PROPERTIES}.items():
        setattr(CudaInterface.Worker, name, constant(value))

    guards = torch._C._dynamo.guards
    guards._empty_strided_cuda = lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype, device="cuda:0")
    guards._reinterpret_tensor = lambda t, size, stride, offset=0: t.as_strided(size, stride, t.storage_offset() + offset)
    triton_helpers.set_driver_to_gpu = lambda: None

    config.compile_threads = 1
    config.fx_graph_cache = False  # what comes from a cache is not compiled, and not seen
    torch._functorch.config.enable_autograd_cache = False
    config.use_static_triton_launcher = False
    # Both compute on the device. What the patterns replace is not in our graphs: attention that is written out, and
    # products whose sides are no multiples of 8.
    joint_graph.lazy_init = post_grad.lazy_init = lambda *_: None
    config.joint_graph_constant_folding = False


def triton(record: Record) -> None:
    """Answer for Triton's driver; note what is compiled and what is launched."""
    import triton
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import ty_to_cpp

    utils = SimpleNamespace(
        load_binary=constant((1, 1, 128, 0, 1024)).__func__,  # module, function, registers, spills, most threads
        get_device_properties=constant(
            {
                "max_shared_mem": MAX_SHARED,
                "max_num_regs": REGISTERS,
                "multiprocessor_count": PROPERTIES.multi_processor_count,
                "sm_clock_rate": PROPERTIES.clock_rate,
                "mem_clock_rate": PROPERTIES.memory_clock_rate,
                "mem_bus_width": PROPERTIES.memory_bus_width,
                "warpSize": WARP,
            }
        ).__func__,
    )

    class Launcher:
        def __init__(self, source: Any, metadata: Any) -> None:
            self.name = metadata.name

        def __call__(self, *_: Any, **__: Any) -> None:
            record.launch(self.name)

    class Driver:
        launcher_cls, binary_ext = Launcher, "cubin"
        get_current_target = constant(GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], WARP))
        get_active_torch_device = constant(torch.device("cuda", 0))
        get_current_device = get_current_stream = constant(0)
        get_device_capability = constant(CAPABILITY)
        get_device_interface = constant(torch.cuda)
        set_current_device = clear_cache = constant(None)
        get_benchmarker = constant(lambda call, quantiles=None, **_: [1.0] * len(quantiles) if quantiles else 1.0)
        is_active = constant(True)
        map_python_to_cpp_type = staticmethod(ty_to_cpp)

    Driver.utils = utils  # type: ignore[attr-defined]
    triton.runtime.driver.set_active(Driver())

    compile_one = CachingAutotuner._precompile_config

    def compile_and_note(self: Any, config: Any) -> Any:
        compiled = compile_one(self, config)
        name, kernel = self.inductor_meta.get("kernel_name", "?"), compiled.kernel
        record.kernel(name, resources(kernel.asm["cubin"], kernel.metadata.shared, kernel.metadata.num_warps))
        return compiled

    CachingAutotuner._precompile_config = compile_and_note
    CachingAutotuner.run = lambda self, *_, **__: record.launch(self.inductor_meta.get("kernel_name", "?"))


def resources(cubin: bytes, shared: int, warps: int) -> Kernel:
    """Return what a kernel takes: shared memory is asked for at launch, registers and stack are in its binary.

    Args:
        cubin: one kernel's.
        shared: bytes that Triton asks for at launch, on top of what the binary has of its own.
        warps: of a thread block.
    """
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", said)}
    return Kernel(shared + found["SHARED"], found["REG"], found["STACK"] + found["LOCAL"], warps)
