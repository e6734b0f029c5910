"""Compiled functions as targets of XLA's foreign function interface, and their work shared among XLA's threads.

The structures are those of XLA's stable binary interface (jaxlib/include/xla/ffi/api/c_api.h), read as arrays of 64-bit words.
"""

import ctypes
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.core.cpu import CPUContext
from numba.core.typing import Context, Signature

from lm.kernels.native.vectors import Intrinsic, Pointer, i32, i64, int32s, int64s, intrinsic, written

API, CONTEXT, ARGUMENTS, RESULTS, ATTRIBUTES = 2, 3, 9, 14, 20  # words of XLA_FFI_CallFrame; the last three are lists
DTYPE, DATA, SIZES = 2, 3, 5  # words of XLA_FFI_Buffer
DESTROY, SCHEDULE, THREADS = 8, 17, 18  # words of XLA_FFI_Api
VERSION = (0, 3)  # of the interface, major and minor; a runtime takes this and older ones of the same major version
ANSWER = types.int64(types.CPointer(types.int64))  # of a handler: 0 is success

# Words of a job. A thread that starts late finds no unit left and touches nothing but the job, so nobody waits for it.
NEXT, DONE, USERS, UNITS, CALL, GIVEN = 0, 1, 2, 3, 4, 10
WORDS = 48


@njit(error_model="numpy")
def is_call(frame: Pointer) -> bool:
    """Return whether XLA wants the function to compute. Otherwise it asks for the version, and this answers."""
    if frame[1] == 0:
        return True
    metadata = int32s(int64s(frame[1])[3])
    metadata[6], metadata[7] = VERSION
    return False


@njit(error_model="numpy")
def data(frame: Pointer, which: int, index: int) -> int:
    """Return the address of an array. which: ARGUMENTS or RESULTS."""
    return int64s(int64s(frame[which])[index])[DATA]


@njit(error_model="numpy")
def size(frame: Pointer, which: int, index: int, axis: int) -> int:
    return int64s(int64s(int64s(frame[which])[index])[SIZES])[axis]


@njit(error_model="numpy")
def width_of(frame: Pointer, which: int, index: int) -> int:
    """Return the bytes of a number of an array: float32, bfloat16, or one byte."""
    kind = int32s(int64s(frame[which])[index])[2 * DTYPE]
    return 4 if kind == 11 else 2 if kind == 16 else 1


@njit(error_model="numpy")
def attribute(frame: Pointer, index: int) -> int:
    """Return the address of a scalar attribute; attributes are sorted by name."""
    return int64s(int64s(frame[ATTRIBUTES])[index])[1]


@intrinsic
def add(typingctx: Context, address: types.Type, x: types.Type) -> Intrinsic:
    """Add to a word that threads share. Return what it was."""

    def codegen(context: CPUContext, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]) -> ir.Value:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], i64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@written(1, types.int64)
def malloc(builder: ir.IRBuilder, size: ir.Value) -> ir.Value:
    return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(i64, [i64]), "malloc"), [size])


@written(1)
def free(builder: ir.IRBuilder, address: ir.Value) -> None:
    kind = ir.FunctionType(ir.VoidType(), [i64])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, "free"), [address])


@written(0)
def give_way(builder: ir.IRBuilder) -> None:
    """Let another thread have the processor."""
    if sys.platform != "win32":
        builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(i32, []), "sched_yield"), [])


@written(2, types.int64)
def call_word(builder: ir.IRBuilder, function: ir.Value, argument: ir.Value) -> ir.Value:
    """Call a C function by its address with one word. Return its word."""
    return builder.call(builder.inttoptr(function, ir.FunctionType(i64, [i64]).as_pointer()), [argument])


@intrinsic
def address_of(typingctx: Context, function: types.Dispatcher) -> Intrinsic:
    """Return the address of a C function of one word that calls this compiled function."""
    dispatcher: Any = function.dispatcher
    kind: Any = function.get_call_type(typingctx, (types.int64,), {})

    def codegen(context: CPUContext, builder: ir.IRBuilder, signature: Signature, args: Sequence[ir.Value]) -> ir.Value:
        name = f"task.{dispatcher.py_func.__module__}.{dispatcher.py_func.__name__}"
        task = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [i64]), name)
        if task.is_declaration:
            task.linkage = "internal"
            inside = ir.IRBuilder(task.append_basic_block())
            compiled = dispatcher.get_compile_result(kind)
            context.active_code_library.add_linking_library(compiled.library)
            target = context.declare_function(builder.module, compiled.fndesc)
            context.call_conv.call_function(inside, target, types.none, kind.args, task.args)
            inside.ret_void()
        return builder.ptrtoint(task, i64)

    return types.int64(function), codegen


@njit(error_model="numpy")
def new_job(units: int) -> int:
    """Return the address of a job. Its words from GIVEN on are the kernel's own."""
    job = malloc(8 * WORDS)
    words = int64s(job)
    words[NEXT], words[DONE], words[USERS], words[UNITS] = 0, 0, 1, units
    return job


@njit(error_model="numpy")
def next_unit(job: int) -> int:
    """Return the next unit that no thread has taken, or -1."""
    unit = add(job + 8 * NEXT, 1)
    return unit if unit < int64s(job)[UNITS] else -1


@njit(error_model="numpy")
def finished(job: int) -> None:
    add(job + 8 * DONE, 1)


@njit(error_model="numpy")
def leave(job: int) -> None:
    if add(job + 8 * USERS, -1) == 1:
        free(job)


@njit(error_model="numpy")
def failed(api: Pointer, error: int, job: int) -> bool:
    """Return whether a call of XLA failed; destroys its error."""
    if error == 0:
        return False
    arguments = int64s(job + 8 * CALL)
    arguments[0], arguments[1], arguments[2] = 24, 0, error
    call_word(api[DESTROY], job + 8 * CALL)
    return True


@njit(error_model="numpy")
def threads_for(frame: Pointer, job: int) -> int:
    """Return how many threads of XLA may do a job, this one included."""
    arguments = int64s(job + 8 * CALL)
    arguments[0], arguments[1], arguments[2], arguments[3] = 32, 0, frame[CONTEXT], job + 8 * (CALL + 4)
    arguments[4] = 1
    api = int64s(frame[API])
    return 1 if failed(api, call_word(api[THREADS], job + 8 * CALL), job) else arguments[4]


@njit(error_model="numpy")
def run(frame: Pointer, job: int, task: int) -> None:
    """Do a job on this thread and on those of XLA that are free. task: C function that takes units until none is left."""
    words, api = int64s(job), int64s(frame[API])
    count = words[UNITS]
    threads = threads_for(frame, job) if count > 1 else 1
    for _ in range(min(threads, count) - 1):
        arguments = int64s(job + 8 * CALL)
        arguments[0], arguments[1], arguments[2], arguments[3], arguments[4] = 40, 0, frame[CONTEXT], task, job
        add(job + 8 * USERS, 1)
        if failed(api, call_word(api[SCHEDULE], job + 8 * CALL), job):
            add(job + 8 * USERS, -1)
            break
    add(job + 8 * USERS, 1)
    call_word(task, job)
    turns = 0
    while add(job + 8 * DONE, 0) < count:
        turns += 1
        if turns > 64:
            give_way()
    leave(job)


def sources() -> str:
    """Return a digest of the kernels' code. Handlers hold it in their closure: numba compiles anew when a closure changes.

    By itself it would look at a handler's own file only, and run old code after a change of what the handler calls.
    """
    files = sorted(Path(__file__).parents[1].glob("*/*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def handler(function: Callable[[Pointer], int]) -> None:
    """Compile a function of a call frame, or load it from numba's cache on disk, and register it with XLA under its name."""
    try:
        compiled = cfunc(ANSWER, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder for a cache can be written
        compiled = cfunc(ANSWER, error_model="numpy")(function)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    jax.ffi.register_ffi_target(function.__name__, new(compiled.address, None, None), platform="cpu", api_version=1)
