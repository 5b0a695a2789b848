"""The API that people usually write: FastAPI, PIL, torchvision ResNet50 in eager float32, all in one async handler.

Run as a program of its own (`python -m bench.usual_api PORT`), apart from the node.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

from models.vision import torchvision, torchvision_transforms

app = FastAPI()
network = torchvision.models.resnet50(num_classes=2).eval()
to_tensor = torchvision_transforms.Compose(
    [
        torchvision_transforms.Resize((224, 224)),
        torchvision_transforms.ToImage(),
        torchvision_transforms.ToDtype(torch.float32, scale=True),
        torchvision_transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


@app.post("/predict")
async def predict(file: UploadFile) -> dict[str, Any]:
    image_3HW = to_tensor(Image.open(io.BytesIO(await file.read())).convert("RGB"))
    with torch.no_grad():
        normal, pneumonia = torch.softmax(network(image_3HW[None]), dim=1)[0].tolist()
    word = "PNEUMONIA" if pneumonia >= 0.5 else "NORMAL"
    return {"status": "success", "prediction": word, "probabilities": {"NORMAL": normal, "PNEUMONIA": pneumonia}}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)
