"""From images to probabilities. Takes a card and image_B1HW; gives Predictions; hides device, precision and fusing.

Shapes: B images, H rows, W columns, L network outputs. Weights are read from safetensors only, never unpickled.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from models.card import Finding, ModelCard
from models.errors import WeightsMismatch
from models.networks import Classifier, make_network

CPU_BATCH = 16


class DeviceOutOfMemory(Exception):
    """The device has no memory for this batch; a smaller one may fit."""


class DeviceFault(Exception):
    """The device failed in a way that this process cannot recover from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one model says about one finding on one image.

    Attributes
    ----------
    probability
        Of the finding, in [0, 1], after temperature scaling.
    threshold, abstain_low, abstain_high
        As in the card: present at threshold and above, undetermined in [abstain_low, abstain_high).
    """

    finding: str
    probability: float
    threshold: float
    abstain_low: float
    abstain_high: float
    model_name: str
    model_version: str

    @property
    def confidence(self) -> float:
        """Percent: how far the probability leans to either side."""
        return 100.0 * max(self.probability, 1.0 - self.probability)


class Predictor:
    """One model, ready to judge.

    Parameters
    ----------
    device
        "cpu", "cuda", or "auto" for CUDA where there is one.
    precision
        "fp32", "bf16", or "auto" for bf16 where the hardware multiplies it.
    threads
        Threads for one forward pass on the CPU, for the whole process; None leaves torch's choice.

    Raises
    ------
    WeightsMismatch
        The weights are not those of the card.
    ValueError
        The device or precision is unknown or absent.
    """

    def __init__(
        self, card: ModelCard, *, device: str = "auto", precision: str = "auto", threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.card = card
        chosen = _device(device)
        self.device = chosen.type
        self.precision = _precision(precision, chosen)
        self._network = _Serving(load_network(card), chosen, self.precision)
        self._reported = [(card.outputs.index(finding.name), finding) for finding in card.findings]

    def predict(self, image_B1HW: np.ndarray | Tensor) -> list[tuple[Prediction, ...]]:
        """Judge a batch: one tuple per image, in order, with one Prediction per finding of the card.

        Parameters
        ----------
        image_B1HW
            float32, shape (B, 1, size, size) with the card's size, range [0, 1], lung dark.

        Raises
        ------
        ValueError
            The shape is another one.
        DeviceOutOfMemory, DeviceFault
            The device failed.
        ArithmeticError
            The network gave something that is not a number.
        """
        probability_BL = self._probabilities(torch.as_tensor(image_B1HW))
        return [
            tuple(self._prediction(finding, float(row_L[output])) for output, finding in self._reported)
            for row_L in probability_BL
        ]

    def _probabilities(self, image_B1HW: Tensor) -> Tensor:
        size = self.card.input_size
        if image_B1HW.ndim != 4 or tuple(image_B1HW.shape[1:]) != (1, size, size):
            raise ValueError(f"images must have the shape (B, 1, {size}, {size}), not {tuple(image_B1HW.shape)}")
        if len(image_B1HW) == 0:
            return torch.empty(0, len(self.card.outputs))
        try:
            logit_BL = torch.cat([self._network(part_B1HW) for part_B1HW in self._parts(image_B1HW)]).double().cpu()
        except torch.OutOfMemoryError as error:
            raise DeviceOutOfMemory(str(error)) from error
        except torch.AcceleratorError as error:
            raise DeviceFault(str(error)) from error
        if not torch.isfinite(logit_BL).all():
            raise ArithmeticError("the network's output is not finite")
        return torch.softmax(logit_BL / self.card.temperature, dim=1)

    def _parts(self, image_B1HW: Tensor) -> tuple[Tensor, ...]:
        """On the CPU more images at once are slower: their activations no longer fit the cache."""
        return torch.split(image_B1HW, CPU_BATCH) if self.device == "cpu" else (image_B1HW,)

    def _prediction(self, finding: Finding, probability: float) -> Prediction:
        return Prediction(
            finding=finding.name,
            probability=probability,
            threshold=finding.threshold,
            abstain_low=finding.abstain_low,
            abstain_high=finding.abstain_high,
            model_name=self.card.name,
            model_version=self.card.version,
        )


def load_network(card: ModelCard) -> Classifier:
    """Return the card's network with its weights, float32, in evaluation mode, on the CPU.

    Raises
    ------
    WeightsMismatch
        The file's sha256 is not the card's, or its tensors do not fit the card's network.
    """
    try:
        content = card.weights_path.read_bytes()
    except OSError as error:
        raise WeightsMismatch(f"{card.weights_path}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != card.weights_sha256:
        raise WeightsMismatch(f"{card.weights_path}: sha256 differs from the card's")
    try:
        # On the meta device nothing is drawn at random only to be overwritten.
        with torch.device("meta"):
            network = make_network(card.network, len(card.outputs))
        weights = {key: _widened(value) for key, value in safetensors.torch.load(content).items()}
        network.load_state_dict(weights, strict=True, assign=True)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise WeightsMismatch(f"{card.weights_path}: {error}") from error
    return network.eval()


class _Serving(nn.Module):
    """A network as it serves: batch norm folded into the convolutions, channels last, backbone in bf16 if asked.

    The head stays in float32: it costs nothing, and bf16 logits would have steps of a hundredth.
    """

    def __init__(self, network: Classifier, device: torch.device, precision: str) -> None:
        super().__init__()
        self._device = device
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        backbone: nn.Module = fuse(network.backbone)
        self.backbone = backbone.to(device, self._dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = network.head.to(device)

    @torch.inference_mode()
    def forward(self, image_B1HW: Tensor) -> Tensor:
        """Return logit_BL, float32, on the device."""
        image_B3HW = Classifier.to_three_channels(image_B1HW.to(self._device, torch.float32))
        feature = self.backbone(image_B3HW.to(self._dtype).contiguous(memory_format=torch.channels_last))
        logit_BL: Tensor = self.head(feature.float())
        return logit_BL


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, not {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no CUDA device")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _precision(name: str, device: torch.device) -> str:
    if name not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision must be auto, fp32 or bf16, not {name!r}")
    if name != "auto":
        return name
    return "bf16" if _multiplies_bf16(device) else "fp32"


def _multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware itself multiplies bf16: an emulation would be slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has_avx512, has_amx = torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported()
    return bool(has_avx512 or has_amx)
