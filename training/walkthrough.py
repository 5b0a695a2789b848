# %% [markdown]
# # The training package as an API
#
# From labelled images to a judged model, cell by cell (VS Code, Spyder and Jupyter with jupytext read the marks). It
# trains the smallest network for one short epoch, to show the way, not to give a useful model.
#
#     PACS_NODE_DATA=../shared/data python -m training.walkthrough

# %% Where the images are, and where everything goes
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from training.settings import Stage, load_recipe
from training.train import images_of, network_of

data = [Path(os.environ.get("PACS_NODE_DATA", "../shared/data")) / "kermany224"]
out = Path(tempfile.mkdtemp(prefix="walkthrough-"))

# %% A recipe decides everything; here a published one, cut short
short = Stage(epochs=1, size=64, batch_size=64)
recipe = replace(load_recipe("mobilenet-v2-recall"), weights="none", precision="fp32", stages=(short,))
print(recipe)

# %% Images: split by patient, preprocessed once by the code that serves
training, validation = images_of(recipe, data, out / "cache")
print(f"{len(training)} images for training, {len(validation)} for validation; each {tuple(training[0].shape)}")

# %% What the network sees of one image, three times
from training.augment import Augment

augment = Augment(recipe.augmentation, training.size)
print([round(float(augment(training[0], seed).mean()), 3) for seed in (1, 2, 3)])

# %% Train
from training.trainer import Trainer

trainer = Trainer(recipe, network_of(recipe), training, validation, checkpoint=out / "checkpoint.pt")
while not trainer.is_finished:
    print(trainer.run_epoch())

# %% A bundle: rounded, calibrated, with a card
from training.claims import ExportRefused
from training.export import CARDS, export

try:
    card = export(out, data, CARDS / "chest-pneumonia.toml", name="walkthrough", version="0.0.1", bundles=out)
    print(card.populations)
except ExportRefused as error:  # one short epoch is rarely good enough to be claimed, and export says so
    print(error)

# %% Judge a bundle on one image, as the node does
import numpy as np
from PIL import Image

from models.predictor import Predictor
from models.preprocess import from_array, squash
from models.registry import Registry

served = Registry([Path("models/bundles")]).newest()
predictor = Predictor(served)
picture = np.asarray(Image.open(validation.items[0].path).convert("L"))
[[prediction]] = predictor.predict(squash(from_array(picture), served.input_size)[None])
print(f"{prediction.finding}: {prediction.probability:.3f}, threshold {prediction.threshold}")
