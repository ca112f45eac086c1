# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own photos
#
# From a folder to a confusion matrix and to predictions. Each class is a subfolder; nothing else is needed. To use
# your own, let `photos` name your folder and leave the next cell out.

# %%
import random
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

place = Path(tempfile.mkdtemp())
photos = place / "photos"
generator = random.Random(0)
for label in ("ball", "box", "stripes"):
    (photos / label).mkdir(parents=True)
    for number in range(40):
        picture = Image.new("RGB", (64, 64), tuple(generator.randrange(100, 256) for _ in range(3)))
        draw = ImageDraw.Draw(picture)
        left, top, side = generator.randrange(20), generator.randrange(20), generator.randrange(24, 40)
        colour = tuple(generator.randrange(90) for _ in range(3))
        if label == "ball":
            draw.ellipse((left, top, left + side, top + side), colour)
        elif label == "box":
            draw.rectangle((left, top, left + side, top + side), colour)
        else:
            for row in range(top % 8, 64, 8):
                draw.line((0, row, 64, row + generator.randrange(4)), colour, 3)
        picture.save(photos / label / f"{number}.png")

# %% [markdown]
# ## Train
#
# The same arguments as `python scripts/fit.py --data photos`. The default for photos is `LitTransfer`, a pretrained
# network that learns from few pictures and is downloaded once (45 MB): for it, leave out the two lines of LitCNN,
# which is small and needs no download.

# %%
from lit_training.cli.fit import print_start, report
from lit_training.cli.parser import FitCLI

arguments = ["--data", str(photos), "--default_root_dir", str(place), "--max_epochs", "8"]
arguments += ["--model", "LitCNN", "--data.batch_size", "8"]
arguments += ["--optimizer", "Adam", "--optimizer.lr", "0.002"]
cli = FitCLI(arguments)
print_start(cli)
cli.trainer.fit(cli.model, cli.datamodule, weights_only=True)
report(cli)

# %% [markdown]
# ## Judge
#
# On the photos that were held back.

# %%
# %matplotlib inline
from IPython.display import display

from lit_training import figures
from lit_training.runs import checkpoints
from lit_training.trained.evaluate import evaluate

run = Path(cli.trainer.log_dir)
evaluation, _ = evaluate(checkpoints.find(str(run)))
right = int((evaluation.predicted == evaluation.targets).sum())
print(f"{right} of {len(evaluation.targets)} right")
display(figures.confusion(evaluation.confusion(), evaluation.class_names))

# %% [markdown]
# ## Predict
#
# Any pictures, here one of each class, with the network's answer above each.

# %%
import torch
from torchvision.transforms.functional import pil_to_tensor

from lit_training.trained.predict import predict

files = [str(photos / label / "0.png") for label in evaluation.class_names]
model = checkpoints.load_model(checkpoints.read(checkpoints.find(str(run))))
answers = list(predict(model, files))
pictures = torch.stack([pil_to_tensor(Image.open(file)) for file in files])  # (3, 3, 64, 64) uint8
titles = [f"{label} {probability:.0%}" for label, probability in (answer.top[0] for answer in answers)]
display(figures.sheet(pictures / 255, titles))
