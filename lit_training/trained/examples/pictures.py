"""Predict pictures without torch: python predict.py PICTURE... (pip install numpy pillow onnxruntime)"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

network = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))
names = json.loads(network.get_modelmeta().custom_metadata_map["class_names"])
for path in sys.argv[1:]:
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")  # upright, as the camera was held
    white = Image.new("RGBA", picture.size, "white")  # behind transparent pixels
    pixels = np.asarray(Image.alpha_composite(white, picture).convert("RGB"))  # (H, W, 3) uint8
    (answers,) = network.run(None, {"image": pixels[None]})[0].tolist()
    print(json.dumps({"path": path, "probabilities": dict(zip(names, answers, strict=True))}))
