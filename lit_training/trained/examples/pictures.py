"""Predict pictures without torch: python predict.py PICTURE... (pip install numpy pillow onnxruntime)"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

network = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))
names = json.loads(network.get_modelmeta().custom_metadata_map["class_names"])  # [] of a regression
for path in sys.argv[1:]:
    picture = ImageOps.exif_transpose(Image.open(path))  # upright, as the camera was held
    if picture.mode.startswith("I"):  # 16 bits per pixel
        picture = Image.fromarray((np.array(picture) / 257 + 0.5).astype(np.uint8))
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")  # behind transparent pixels
    pixels = np.asarray(Image.alpha_composite(white, picture).convert("RGB"))  # (H, W, 3) uint8
    (answers,) = network.run(None, {"image": pixels[None]})[0].tolist()
    found = {"probabilities": dict(zip(names, answers, strict=True))} if names else {"outputs": answers}
    print(json.dumps({"path": path} | found))
