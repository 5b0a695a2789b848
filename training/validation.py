"""What a network in training says about images, and how good that is. Takes a Classifier and Images; gives figures.

Shapes: N images, B images of a batch, H rows, W columns, D features, L outputs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from models.networks import Classifier
from models.serving import precision_of
from training import metrics
from training.batches import resized
from training.data import Images

Line = dict[str, Any]
"""An epoch's figures by name, as `metrics.jsonl` holds them."""


@torch.inference_mode()
def outputs_of(
    network: Classifier,
    images: Images,
    size: int,
    device: torch.device,
    indices: range | None = None,
    *,
    precision: str = "auto",
    title: str = "",
) -> tuple[Tensor, Tensor]:
    """Return (logit_NL, feature_ND) on the CPU, float32.

    Parameters
    ----------
    indices
        Of the images; all of them unless given.
    precision
        Of the backbone, as the Predictor takes it: bf16 is emulated, four times slower, where the hardware lacks it.
    title
        Of a progress bar; none without.
    """
    network.eval()
    is_bf16 = precision_of(precision, device) == "bf16"
    logits, features = [], []
    parts = torch.split(torch.tensor(indices or range(len(images.items)), dtype=torch.int64), 32)
    for part in tqdm(parts, desc=title, unit="batch", disable=not title):
        image_B1HW = resized(torch.stack([images[int(index)] for index in part]), size).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            feature_BD = network.backbone(network.layout.seen(image_B1HW))
        features.append(feature_BD.float().cpu())
        logits.append(network.head(feature_BD.float()).float().cpu())
    return torch.cat(logits), torch.cat(features)


def validation_figures(logit_NL: Tensor, images: Images) -> Line:
    """Return AUC, accuracy and loss; the AUC is the mean over the sources that have images of both classes.

    The first output is "nothing found": the AUC is that of finding anything.
    """
    probability_N = 1 - torch.softmax(logit_NL, 1)[:, 0].numpy()
    truth_N = (images.label_N != 0).numpy().astype(int)
    source_N = np.array([item.source for item in images.items])
    of_source = {s: metrics.auc(truth_N[source_N == s], probability_N[source_N == s]) for s in sorted(set(source_N))}
    known = {source: auc for source, auc in of_source.items() if not math.isnan(auc)}
    mean = float(np.mean(list(known.values()) or [metrics.auc(truth_N, probability_N)]))
    hit_N = logit_NL.argmax(1) == images.label_N
    line: Line = {
        "validation_auc": round(mean, 5),
        "validation_accuracy": round(float(hit_N.float().mean()), 5),
        "validation_loss": round(float(functional.cross_entropy(logit_NL, images.label_N)), 5),
    }
    return line | {f"validation_auc_{source}": round(auc, 5) for source, auc in known.items() if len(known) > 1}
