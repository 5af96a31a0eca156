"""TensorRT and TensorRT-RTX behind one face; what a package can is asked of it, not of its version."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import BuildError, RecipeError, RecPressError
from compress.provenance import version
from deploy.engine import Kernel, Profile


def _tensorrt() -> Any:
    import tensorrt

    return tensorrt


def _tensorrt_rtx() -> Any:
    import tensorrt_rtx

    return tensorrt_rtx


APIS: dict[str, Callable[[], Any]] = {"tensorrt": _tensorrt, "tensorrt-rtx": _tensorrt_rtx}
"""By the name that pip knows, in the order of preference where both are installed."""

INSTALL = {
    "tensorrt": "pip install tensorrt --extra-index-url https://pypi.nvidia.com",
    "tensorrt-rtx": "pip install 'tensorrt-rtx>=1.7'",
}


@dataclass(frozen=True)
class Built:
    """An engine, and how it came to be."""

    engine: bytes
    seconds: float
    layers: int


class TensorRt:
    """An installed package."""

    _timings = b""
    """Of kernels on this machine's GPU, all that the process has seen: stages, models and rows share many."""

    def __init__(self, package: str) -> None:
        """Raises: RecPressError if it is not installed, or cannot be loaded."""
        self.package = package
        self.version = version(package)
        try:
            self.api = APIS[package]()
        except ModuleNotFoundError:
            raise RecPressError(f"{package} is not installed: {INSTALL[package]}") from None
        except (ImportError, OSError) as error:
            raise RecPressError(f"{package} cannot be loaded: {error}; {INSTALL[package]}") from None
        self.log = _log(self.api)

    @property
    def capabilities(self) -> tuple[str, ...] | None:
        """GPU generations that it builds for without one; None: for the GPU that is here alone."""
        if not hasattr(self.api.IBuilderConfig, "set_compute_capability"):
            return None
        names = [name.removeprefix("SM") for name in self.api.ComputeCapability.__members__ if name.startswith("SM")]
        return tuple(f"{name[:-1]}.{name[-1]}" for name in names)

    def builds_for(self, targets: Sequence[str], here: str | None) -> bool:
        """Whether it builds for all of these. Args: here: the capability of this machine's GPU."""
        return set(targets) <= set(self.capabilities if self.capabilities is not None else filter(None, [here]))

    def build(
        self,
        graph: Path,
        profiles: Sequence[Profile],
        target: str,
        *,
        exact: bool,
        version_compatible: bool = False,
        hardware: str = "none",
    ) -> Built:
        """An engine of a graph.

        Args:
            exact: float32 products are that; else they may be TF32, whose factors have the digits of fp16.
            version_compatible: whether later versions are to run it.
            hardware: which other GPUs are, as `BuildSection` says.
        Raises: BuildError, one line, if it does not take the graph, or cannot do what is asked.

        """
        api = self.api
        builder = api.Builder(self.log)
        flags = getattr(api, "NetworkDefinitionCreationFlag", None)
        typed = getattr(flags, "STRONGLY_TYPED", None)  # TensorRT 11 knows no other way
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = api.OnnxParser(network, self.log)  # what it has read lives as long as it does
        if not parser.parse(graph.read_bytes()):
            raise BuildError(f"{graph.name}: {self.package} {self.version}: {_complaint(parser, self.log)}")
        config = builder.create_builder_config()
        for profile in profiles:
            sizes = builder.create_optimization_profile()
            for name, shapes in profile.items():
                sizes.set_shape(name, *shapes)
            config.add_optimization_profile(sizes)
        self._make_compatible(config, version_compatible=version_compatible, hardware=hardware)
        config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
        if exact and hasattr(api.BuilderFlag, "TF32"):
            config.clear_flag(api.BuilderFlag.TF32)
        if self.capabilities is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(api.ComputeCapability, f"SM{target.replace('.', '')}"), 0)
        else:  # kernels are timed on the GPU that is here
            timings = config.create_timing_cache(TensorRt._timings)
            config.set_timing_cache(timings, False)
        self.log.errors.clear()
        started = time.monotonic()
        plan = builder.build_serialized_network(network, config)
        seconds = time.monotonic() - started
        if plan is None:
            why = "; ".join(self.log.errors[:1]) or "it says no reason"
            raise BuildError(f"{graph.name}: {self.package} {self.version} builds nothing for {target}: {why}")
        if self.capabilities is None:
            TensorRt._timings = bytes(timings.serialize())
        return Built(bytes(plan), seconds, network.num_layers)

    def _make_compatible(self, config: Any, *, version_compatible: bool, hardware: str) -> None:
        """Raises: BuildError if the package has no such thing: some do not know it, some take it and do nothing."""
        api = self.api
        if version_compatible:
            flag = getattr(api.BuilderFlag, "VERSION_COMPATIBLE", None)
            if flag is None:
                raise BuildError(
                    f"{self.package} {self.version} has no version_compatible; leave it out, or: {INSTALL['tensorrt']}"
                )
            config.set_flag(flag)
        if hardware != "none":
            level = getattr(getattr(api, "HardwareCompatibilityLevel", None), hardware.upper(), None)
            if level is not None:
                config.hardware_compatibility_level = level
            if level is None or config.hardware_compatibility_level != level:
                raise BuildError(
                    f"{self.package} {self.version} has no hardware_compatibility: {hardware}; leave it out and name "
                    f"each GPU in compute_capabilities, or: {INSTALL['tensorrt']}"
                )

    def load(self, plan: bytes, name: str, *, version_compatible: bool = False) -> Any:
        """An engine on this machine's GPU.

        Args: version_compatible: it was built to be, and so holds code that runs on the host: allow it only of a plan
            whose hash was checked.
        Raises: RecPressError if it is for another GPU, or of another version.
        """
        self.runtime = self.api.Runtime(self.log)  # an engine does not outlive it
        if version_compatible:
            self.runtime.engine_host_code_allowed = True
        self.log.errors.clear()
        engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise RecPressError(
                f"{name}: {self.package} {self.version} cannot load it: {'; '.join(self.log.errors[:1])}"
            )
        return engine

    def kernels(self, plan: bytes, name: str, *, version_compatible: bool = False) -> list[Kernel]:
        """An engine's layers, as its inspector tells them; its GPU must be here."""
        engine = self.load(plan, name, version_compatible=version_compatible)
        inspector = engine.create_engine_inspector()
        told = json.loads(inspector.get_engine_information(self.api.LayerInformationFormat.JSON))
        return [Kernel.of(layer) for layer in told.get("Layers", [])]


def choose(builder: str, targets: Sequence[str], here: str | None, where: str) -> TensorRt:
    """The package that builds for these GPUs.

    Args:
        builder: its name, or auto.
        here: the capability of this machine's GPU.
        where: of the recipe, for the error's line.
    Raises: RecipeError if none does.

    """
    found, troubles = [], []
    for package in APIS if builder == "auto" else [builder]:
        try:
            found.append(TensorRt(package))
        except RecPressError as error:
            troubles.append(str(error))
    for each in found:
        if each.builds_for(targets, here):
            return each
    for each in found:
        able = each.capabilities if each.capabilities is not None else [here] if here else []
        told = ", ".join(able) or "the GPU that is here, and there is none"
        troubles.append(f"{each.package} {each.version} builds for {told}")
    raise RecipeError(f"{where}: no builder for {', '.join(targets)}: {'; '.join(troubles)}")


def _complaint(parser: Any, log: Any) -> str:
    """Why a graph was not parsed: node, operator and reason, in one line."""
    if not parser.num_errors:
        return "; ".join(log.errors[:1]) or "no ONNX graph"
    error = parser.get_error(0)
    reason, _, _ = " ".join(error.desc().split()).partition(" [checkMacros")  # that there is no GPU is no fault here
    return f"node {error.node_name() or error.node()} ({error.node_operator()}): {reason}"


def _log(api: Any) -> Any:
    """A logger that keeps errors and prints nothing."""

    class Log(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(api.ILogger.Severity.ERROR):
                self.errors.append(" ".join(message.split()))

    return Log()
