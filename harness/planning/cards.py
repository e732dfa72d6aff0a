"""Which GPUs hold a training step of a study, and the settings with which smaller ones do."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.planning.shapes import UnknownShapeError
from harness.planning.step_memory import QUERY_WORDS, StepMemory, images_per_device, step_memory
from harness.study.cell_spec import CellSpec
from harness.system.device import default_device
from harness.system.precision import resolve_precision
from projectors import ProjectorError

CARDS_GB = (24, 40, 80)
"""Nominal sizes of GPUs, in 10^9 bytes."""
USABLE = 0.95
"""Share of a device's memory that a step may take; CUDA's context and fragmentation take the rest."""
ASSUMPTIONS = (
    "  assumptions (harness/planning/step_memory.py): sdpa attention, the largest number of visual tokens, "
    f"{QUERY_WORDS} words per expression besides the template, cached frozen encoders, a projector without "
    f"transformer layers; a step may take {USABLE:.0%} of a device"
)


@dataclass(frozen=True, slots=True)
class Device:
    """A device on which a study may run.

    Args:
        name: as printed.
        memory_gib: its memory.
        kind: cuda or cpu.
        precision: the meaning of `training.precision: auto` on it.
    """

    name: str
    memory_gib: float
    kind: str
    precision: str

    def step_memory(self, spec: CellSpec) -> StepMemory:
        """The estimate for this device; raises as `step_memory` does."""
        precision = self.precision if spec.training.precision == "auto" else spec.training.precision
        return step_memory(spec, precision, self.kind)

    def holds(self, spec: CellSpec) -> bool:
        """Whether a training step fits into its memory."""
        return gib(self.step_memory(spec)) <= USABLE * self.memory_gib


CARDS = tuple(Device(f"{size} GB card", size * 1e9 / 2**30, "cuda", "bfloat16") for size in CARDS_GB)


def this_machine(name: str, memory_gib: float) -> Device:
    """The device of this process."""
    device = default_device()
    return Device(name, memory_gib, device.type, resolve_precision("auto", device))


def gib(memory: StepMemory) -> float:
    """The peak in GiB."""
    return memory.total / 2**30


def step_report(specs: Iterable[CellSpec], machine: Device | None) -> str:
    """Several lines on the cell whose training step takes the most memory: its estimate, and which devices hold it.

    Args:
        machine: the device of this machine, in addition to `CARDS`; None if its memory is unknown.
    """
    card, unknown = CARDS[-1], dict[str, None]()
    largest: tuple[float, CellSpec] | None = None
    for spec in specs:
        try:
            peak = gib(card.step_memory(spec))
        except UnknownShapeError as error:
            unknown[str(error)] = None
            continue
        except ProjectorError:
            continue  # the cell will be skipped
        if largest is None or peak > largest[0]:
            largest = peak, spec
    missing = f"memory of a training step: unknown with {', '.join(unknown)}, whose config.json is not on this machine"
    if largest is None:
        return missing if unknown else "memory of a training step: unknown, no cell can run"
    spec, devices = largest[1], [*CARDS, *([machine] if machine else [])]
    lines = [_heading(spec, card), *_verdicts(spec, devices), ASSUMPTIONS]
    return "\n".join([*lines, missing] if unknown else lines)


def _heading(spec: CellSpec, card: Device) -> str:
    memory = card.step_memory(spec)
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer state": memory.optimizer,
        "inputs": memory.inputs,
        "activations": memory.activations,
        "recomputed layer": memory.recomputed,
    }
    images = images_per_device(spec.training)
    size = min(spec.training.micro_batch_images or images, images)
    precision = card.precision if spec.training.precision == "auto" else spec.training.precision
    peak, digits = gib(memory), 1 if gib(memory) > 10 else 2
    return (
        f"training step: about {peak:.{digits}f} GiB (estimated peak) on a GPU in {precision}, for the largest cell: "
        f"projector {spec.projector['name']}, {size} images per micro-batch\n"
        f"  {', '.join(f'{name} {value / 2**30:.{digits}f}' for name, value in parts.items() if value)} GiB"
    )


def _verdicts(spec: CellSpec, devices: list[Device]) -> list[str]:
    """One line per device; a single line if all of them hold the step."""
    if all(device.holds(spec) for device in devices):
        return [f"  fits: {', '.join(device.name for device in devices)}"]
    width = max(len(device.name) for device in devices)
    return [f"  {device.name:{width}}  {_verdict(spec, device)}" for device in devices]


def _verdict(spec: CellSpec, device: Device) -> str:
    peak = gib(device.step_memory(spec))
    if device.holds(spec):
        return "fits"
    smaller = [*smaller_settings(spec)]
    for settings, changed in smaller:
        if device.holds(changed):
            return f"does not fit; fits with {settings} (about {gib(device.step_memory(changed)):.1f} GiB)"
    settings, changed = smaller[-1] if smaller else ("", spec)
    least = f"; about {gib(device.step_memory(changed)):.1f} GiB with {settings}" if smaller else ""
    return f"does not fit: about {peak:.1f} GiB{least}"


def smaller_settings(spec: CellSpec) -> Iterator[tuple[str, CellSpec]]:
    """Settings that take less memory, as text and applied: smaller micro-batches, then gradient checkpointing too."""
    images = images_per_device(spec.training)
    largest = min(spec.training.micro_batch_images or images, images)
    checkpointing = [False, True] if spec.llm.name != "tiny" and not spec.llm.gradient_checkpointing else [False]
    for is_checkpointed in checkpointing:
        size = largest if is_checkpointed else largest // 2
        while size:
            changes = [] if size == largest else [f"training.micro_batch_images: {size}"]
            changes += ["llm.gradient_checkpointing: true"] if is_checkpointed else []
            llm = spec.llm.model_copy(update={"gradient_checkpointing": True}) if is_checkpointed else spec.llm
            training = spec.training.model_copy(update={"micro_batch_images": size})
            yield " and ".join(changes), spec.model_copy(update={"llm": llm, "training": training})
            size //= 2
