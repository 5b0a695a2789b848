"""A network as it serves, as fast as its device and precision allow. Takes a Classifier; gives logits and features.

Shapes: B images, H rows, W columns, D features, L outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from models.networks import Classifier


class Serving(nn.Module):
    """The backbone in bf16 if asked; by ONNX Runtime on a CPU in float32, by torch elsewhere.

    The head stays in torch and float32: it costs nothing, and bf16 logits would have steps of a hundredth.
    """

    def __init__(self, network: Classifier, device: torch.device, precision: str) -> None:
        super().__init__()
        self._device = device
        self._layout = network.layout
        self.backbone: nn.Module
        if device.type == "cpu" and precision == "fp32":
            from models.cpu import OnCpu  # ONNX Runtime is for those who serve on a CPU

            self.backbone = OnCpu(network.backbone, torch.get_num_threads())
        else:
            self.backbone = Fused(network.backbone, device, torch.bfloat16 if precision == "bf16" else torch.float32)
        self.head = network.head.to(device)

    @torch.inference_mode()
    def forward(self, image_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return logit_BL and the pooled feature_BD, both float32, on the device."""
        feature_BD: Tensor = self.backbone(self._layout.seen(image_B1HW.to(self._device, torch.float32)))
        logit_BL: Tensor = self.head(feature_BD)
        return logit_BL, feature_BD


class Fused(nn.Module):
    """A backbone in torch: batch norm folded into the convolutions, channels last."""

    def __init__(self, backbone: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        fused: nn.Module = fuse(backbone)
        self._fused = fused.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Return feature_BD, float32."""
        feature_BD: Tensor = self._fused(image_B3HW.to(self._dtype).contiguous(memory_format=torch.channels_last))
        return feature_BD.float()


def device_of(name: str) -> torch.device:
    """Return the device of "cpu", "cuda", or "auto": CUDA where there is one.

    Raises
    ------
    ValueError
        The name is another one, or there is no CUDA device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, not {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no CUDA device")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def precision_of(name: str, device: torch.device, *, is_training: bool = False) -> str:
    """Return "fp32" or "bf16"; "auto" is bf16 where that is faster.

    It is where the hardware multiplies bf16; with AVX-512 alone, a training's way back is slower than in float32.

    Raises
    ------
    ValueError
        The name is another one.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision must be auto, fp32 or bf16, not {name!r}")
    if name != "auto":
        return name
    if device.type == "cuda":
        is_faster = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_faster = torch.cpu._is_amx_tile_supported() or (not is_training and torch.cpu._is_avx512_bf16_supported())
    return "bf16" if is_faster else "fp32"
