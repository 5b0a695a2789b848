"""A backbone on a CPU, compiled by OpenVINO. Takes a torch module and the size it looks at; gives features.

Up to 1.7 times as fast as torch's own CPU kernels, and its threads do not spin while they wait.
Shapes: B images, H rows, W columns, D features.
"""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor, nn

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it would report every start to its makers
import openvino  # noqa: E402  (does without it)
from openvino.frontend import FrontEndManager  # noqa: E402
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: E402


class Compiled(nn.Module):
    """A backbone compiled for images of H rows and W columns; any number of them at once, from any thread.

    Parameters
    ----------
    precision
        "fp32" or "bf16".
    threads
        Of one forward pass.

    Attributes
    ----------
    precision
        What the CPU computes in: "fp32" where it has no bf16.
    """

    def __init__(self, backbone: nn.Module, size_HW: tuple[int, int], precision: str, threads: int) -> None:
        super().__init__()
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # TorchScript is deprecated in torch, and still what OpenVINO reads best
            traced = torch.jit.trace(backbone.eval(), torch.zeros(2, 3, *size_HW), check_trace=False)  # type: ignore[no-untyped-call]
        # Not openvino.convert_model: it silences the whole process's log while it runs.
        decoder = TorchScriptPythonDecoder(traced)  # must outlive the conversion
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
        model.reshape([-1, 3, *size_HW])
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp32": "f32"}[precision],
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # the worker and the web process would take the same cores
        }
        self._compiled = openvino.Core().compile_model(model, "CPU", options)
        is_bf16 = self._compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.bf16
        self.precision = "bf16" if is_bf16 else "fp32"

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Return feature_BD, float32."""
        request = self._compiled.create_infer_request()  # one for each call: two threads cannot share one
        return torch.from_numpy(request.infer([image_B3HW.contiguous().numpy()], share_inputs=True)[0])
