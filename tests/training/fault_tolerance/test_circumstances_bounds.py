"""What is attached to an exception, and which codes of CUDA and of a disk are the node's fault, each to the letter."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import torch

from stoker.training.fault_tolerance import circumstances
from stoker.training.fault_tolerance.circumstances import annotate, annotating, circumstances_of
from training.fault_tolerance.test_failure_policy import cuda_error

NODES_CODES = {
    3: ("cudaErrorInitializationError", "the driver cannot be initialised"),
    35: ("cudaErrorInsufficientDriver", "the driver is too old"),
    46: ("cudaErrorDevicesUnavailable", "the device is busy or unavailable"),
    100: ("cudaErrorNoDevice", "no device"),
    101: ("cudaErrorInvalidDevice", "no such device"),
    127: ("cudaErrorStartupFailure", "the CUDA runtime cannot be started"),
    214: ("cudaErrorECCUncorrectable", "an ECC error that cannot be corrected"),
    220: ("cudaErrorNvlinkUncorrectable", "an NVLink error that cannot be corrected"),
    226: ("cudaErrorContained", "a contained memory error"),
    304: ("cudaErrorOperatingSystem", "an error of the operating system"),
    802: ("cudaErrorSystemNotReady", "the system is not ready (fabric manager)"),
    803: ("cudaErrorSystemDriverMismatch", "driver and library do not fit together"),
    804: ("cudaErrorCompatNotSupportedOnDevice", "the device does not support this driver"),
    805: ("cudaErrorMpsConnectionFailed", "the MPS server cannot be reached"),
    806: ("cudaErrorMpsRpcFailure", "the MPS server failed"),
    807: ("cudaErrorMpsServerNotReady", "the MPS server is not ready"),
    810: ("cudaErrorMpsClientTerminated", "the MPS server ended this client"),
    999: ("cudaErrorUnknown", "an error that CUDA does not know"),
}
"""of cudaError_t: the name in CUDA's documentation, and what a user reads"""
KERNELS_CODES = {
    700: "cudaErrorIllegalAddress",
    710: "cudaErrorAssert",
    714: "cudaErrorHardwareStackError",
    715: "cudaErrorIllegalInstruction",
    716: "cudaErrorMisalignedAddress",
    717: "cudaErrorInvalidAddressSpace",
    718: "cudaErrorInvalidPc",
    719: "cudaErrorLaunchFailure",
}
"""a kernel's own mistake gives them, on any node"""


def of_node(error: BaseException) -> str:
    annotate(error)
    attached = circumstances_of(error)
    assert attached is not None
    return attached.of_node


def test_the_codes_of_cuda_that_are_the_nodes_fault_and_how_each_is_told() -> None:
    found = {code: said for code in range(1200) if (said := of_node(cuda_error(code)))}
    assert found == {code: f"CUDA error {code}, {text}" for code, (_, text) in NODES_CODES.items()}
    assert not set(KERNELS_CODES) & set(found)


def test_the_codes_are_those_of_cudas_own_headers() -> None:
    """The bindings come with a torch for CUDA."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    names = {code: name for code, (name, _) in NODES_CODES.items()} | KERNELS_CODES
    assert names == {code: runtime.cudaError_t(code).name for code in names}


def test_a_step_is_added_to_what_was_attached_without_one() -> None:
    error = RuntimeError("read before the first step")
    for step in (None, 0, 7):
        annotate(error, step)
    attached = circumstances_of(error)
    assert attached is not None
    assert attached.step == 0


def test_the_errors_of_a_disk() -> None:
    found = {code for code in errno.errorcode if of_node(OSError(code, "it failed"))}
    names = {"EIO", "ENOSPC", "EROFS", "ENXIO", "ENODEV", "EDQUOT", "EUCLEAN", "EREMOTEIO"}
    assert {errno.errorcode[code] for code in found} == names
    assert of_node(OSError(errno.EIO, "Input/output error", "/cache/x")) == "Input/output error (/cache/x)"
    assert of_node(OSError(errno.EIO, "Input/output error")) == "Input/output error"
    bare = OSError()
    bare.errno = errno.EIO
    assert of_node(bare) == f"error {errno.EIO}"
    assert of_node(ValueError("errno 5")) == ""


@pytest.mark.parametrize("kind", ["DistError", "DistBackendError", "DistNetworkError", "DistStoreError"])
def test_errors_of_the_process_group_follow_from_another_ranks(kind: str) -> None:
    error: BaseException = getattr(torch.distributed, kind)("closed")
    annotate(error)
    attached = circumstances_of(error)
    assert attached is not None
    assert attached.is_echo
    assert attached.of_node == ""


def test_outside_of_ray_there_is_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("closed")
    with pytest.raises(RuntimeError), annotating():
        raise error
    attached = circumstances_of(error)
    assert attached == circumstances.Circumstances()
    assert circumstances_of(RuntimeError("never annotated")) is None


def test_the_node_is_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Context:
        def get_node_id(self) -> str:
            return "ab12"

    fakes: dict[str, Any] = {
        "is_initialized": lambda: True,
        "get_runtime_context": Context,
    }
    for name, value in fakes.items():
        monkeypatch.setattr(circumstances.ray, name, value)
    monkeypatch.setattr(circumstances.ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    error = RuntimeError("closed")
    annotate(error, 4)
    assert circumstances_of(error) == circumstances.Circumstances(step=4, node="ab12", host="10.0.0.7")
