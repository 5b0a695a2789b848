"""Where in the image an output comes from: Grad-CAM. Takes a network and image_B1HW; gives heatmap_BHW in [0, 1].

The map is as coarse as the backbone's last stage (a place of 32 x 32 input pixels for ResNet50) and shows what
raised the output, not where the disease ends.

Shapes: B images, H rows, W columns, C channels of the last stage, h and w its rows and columns, L outputs.

References
----------
Selvaraju et al. 2017: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.card import ModelCard
from models.networks import Classifier
from models.weights import load_network


def grad_cam(model: ModelCard | Classifier, image_B1HW: np.ndarray | Tensor, output: int) -> np.ndarray:
    """Return heatmap_BHW, float32, each image's largest value 1; all 0 where nothing raised the output.

    Parameters
    ----------
    model
        A card, whose weights are loaded; or a network, on its own device, which is left as it was.
    image_B1HW
        float32, range [0, 1], as `Predictor.predict` takes it.
    output
        Which logit, counted as in the card's `outputs`.

    Raises
    ------
    ValueError
        The network has no such output.
    WeightsMismatch
        The weights are not those of the card.
    """
    network = load_network(model) if isinstance(model, ModelCard) else model
    was_training = network.training
    network.eval()
    try:
        # A caller's no_grad or inference mode must not reach in here: the map is made of gradients.
        with torch.inference_mode(False), torch.enable_grad():
            activation_BChw, gradient_BChw = _of_last_stage(network, torch.as_tensor(image_B1HW).clone(), output)
    finally:
        network.train(was_training)
    weight_BC11 = gradient_BChw.mean(dim=(2, 3), keepdim=True)
    raised_B1hw = (weight_BC11 * activation_BChw).sum(dim=1, keepdim=True).relu()
    layout, sides = network.layout, tuple(image_B1HW.shape[2:])
    heatmap_B1HW = functional.interpolate(raised_B1hw, tuple(map(layout.inner, sides)), mode="bilinear")
    rows, columns = map(layout.margin_of, sides)
    heatmap_B1HW = functional.pad(heatmap_B1HW, (columns, columns, rows, rows))  # nothing there was looked at
    peak_B111 = heatmap_B1HW.amax(dim=(1, 2, 3), keepdim=True)
    heatmap_BHW: np.ndarray = (heatmap_B1HW / peak_B111.clamp(min=torch.finfo(torch.float32).tiny))[:, 0].cpu().numpy()
    return heatmap_BHW


def _of_last_stage(network: Classifier, image_B1HW: Tensor, output: int) -> tuple[Tensor, Tensor]:
    """Return the last stage's activation_BChw and the logit's gradient with respect to it."""
    kept: list[Tensor] = []

    def keep(stage: nn.Module, taken: object, given: Tensor) -> None:
        kept.append(given)

    hook = network.stages()[-1].register_forward_hook(keep)
    try:
        device = next(network.parameters()).device
        logit_BL: Tensor = network(image_B1HW.to(device).requires_grad_())  # for a network that is frozen throughout
    finally:
        hook.remove()
    if not 0 <= output < logit_BL.shape[1]:
        raise ValueError(f"output must be 0 to {logit_BL.shape[1] - 1}, not {output}")
    (activation_BChw,) = kept
    (gradient_BChw,) = torch.autograd.grad(logit_BL[:, output].sum(), activation_BChw)
    return activation_BChw.detach(), gradient_BChw
